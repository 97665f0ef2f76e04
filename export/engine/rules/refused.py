"""Ops that the engine does not take, by the tables of ``coreflow place``: Core ML runs them on the CPU."""

from collections.abc import Callable, Iterator, Sequence

from coreflow.export.engine.finding import Known, Severity
from coreflow.export.engine.rule import Context, EngineRule, Hit
from coreflow.export.engine.rules.gather_guard import guard_ops
from coreflow.export.engine.support import Refusal, Support
from coreflow.export.engine.targets import DEFAULT_TARGET, Evidence, Target, instead_of

_TAKEN_ELSEWHERE = "the engine does not take it, and Core ML places it elsewhere"
_SIZES: tuple[Refusal, ...] = ("rank", "extent", "kernel", "window", "inner")
_TABLES = Evidence("measured", "the tables of coreflow place: K on an M4 under macOS 27, G for older chips; each finding says which")


def _find(*kinds: Refusal) -> Callable[[Context], Iterator[Hit]]:
    def find(context: Context) -> Iterator[Hit]:
        guards = guard_ops(context) if "integer" in kinds else frozenset()
        for op, by_chip in context.refusals:
            reasons: dict[str, list[tuple[str, Target, Support]]] = {}
            for chip, (target, support) in by_chip.items():
                if support.refusal in kinds and id(op) not in guards:
                    reasons.setdefault(support.reason.removeprefix(f"{target.key} has "), []).append((chip, target, support))
            for reason, refusals in reasons.items():
                chips = tuple(chip for chip, _, _ in refusals)
                remedy = instead_of(op.type) if set(kinds) & {"op", "index", "integer"} else ""
                yield Hit(op=op, detail=reason, chips=chips, known=Known(_TAKEN_ELSEWHERE, _evidence(refusals)), remedy=remedy or None)

    return find


def _evidence(refusals: Sequence[tuple[str, Target, Support]]) -> Evidence:
    """The evidence for one chip, that of the tables' own target before others; of sizes, which differ, that of the rest too."""
    chips: dict[Evidence, list[str]] = {}
    for name, target, refusal in sorted(refusals, key=lambda entry: entry[1].key != DEFAULT_TARGET):
        evidence = refusal.evidence or Evidence("inference", "no plan was read")
        of_neighbour = evidence is target.evidence["limits"] and not target.key.startswith(name)
        chips.setdefault(Evidence("assumed", f"the table of {target.key}") if of_neighbour else evidence, []).append(name)
    (first, _), *others = chips.items()
    is_size = refusals[0][2].refusal in _SIZES
    rest = [f"; {', '.join(names)}: {known.label}, {known.source}" for known, names in others if is_size or known.label == "assumed"]
    return Evidence(first.label, first.source + "".join(rest))


def _rule(name: str, title: str, remedy: str, *kinds: Refusal, severity: Severity = "warning") -> EngineRule:
    return EngineRule(
        id=name,
        title=title,
        severity=severity,
        known=Known(_TAKEN_ELSEWHERE, _TABLES),
        remedy=remedy,
        finds=_find(*kinds),
    )


RULES = (
    _rule("never-on-engine", "the engine has no such op", "compute it on the host, or beforehand", "op"),
    _rule("fp32-op", "fp32 is not computed on the engine", "convert in fp16, and leave no .float() in forward", "fp32", "cast"),
    _rule("integer-work", "integers are not computed on the engine", "compute positions and masks on the host, and pass fp16", "integer"),
    _rule("run-time-index", "a slice or look-up whose place is known at run time only", "slice at a constant place", "index"),
    _rule("rank", "more axes than Core ML and the engine take", "fold axes that stay together into one", "rank", severity="error"),
    _rule("extent", "an axis is longer than the engine takes", "split the axis and concatenate the results", "extent"),
    _rule("matmul-inner", "a matmul sums over more than the engine takes", "split the sum, and add the parts", "inner"),
    _rule("conv-kernel", "a kernel is larger than the engine takes", "two kernels in a row, k = k1 + k2 - 1", "kernel"),
    _rule("conv-form", "a form of convolution that the engine does not take", "fixed weights over one or two axes", "conv_3d", "weight"),
    _rule("pool-window", "a window of max_pool is wider than the engine takes", "two windows in a row", "window"),
)  # fmt: skip
