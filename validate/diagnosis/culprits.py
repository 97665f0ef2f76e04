"""The ops that explain an error: where the numbers stop being torch's, overflow, vanish, or are amplified."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor, nn

from coreflow.export.package.graph import Graph, Op, Value
from coreflow.runtime.lift.registry import find
from coreflow.validate.diagnosis.provenance import Matcher, TracedValue
from coreflow.validate.gates.tolerance import FP16_MAX
from coreflow.validate.ladder.localise import SMALLEST_NORMAL, Walked
from coreflow.validate.report.model import ConstantReport, Culprit, OpReport, Origin

# A local error of so many roundings is more than rounding; healthy ops are at 0.5 to 1.3.
_MUCH_LOST = 3.0
# Above this an op is said to amplify. A softmax of sharp scores reaches 20 in healthy transformers, and harms nothing.
_MUCH_AMPLIFIED = 25.0
_MOVING = (
    *("_reshape_alias", "_unsafe_view", "_to_copy", "alias", "clone", "copy_", "detach", "expand", "permute", "repeat", "select", "slice"),
    *("squeeze", "t", "transpose", "unsqueeze", "view"),
)
_CUTTING = ("clip", "threshold", "clamped_relu")  # a limit beyond all fp16 numbers limits nothing
_KINDS = ("translation", "non-finite", "underflow", "rounding", "amplification")
_SMALLEST_SUBNORMAL = 2.0**-24


def origins_of(ops: Sequence[Op], values: Sequence[Tensor | None], matcher: Matcher) -> tuple[dict[int, Origin], dict[int, int]]:
    """Of every op whose result torch computes too, by its place: the origin, and the place in torch's run.

    ``values`` are the ops' first results. Of several equal values the next one after what the op reads is taken.
    """
    origins, places = {}, {}
    made: dict[int, int] = {}  # id of a value -> place in torch's run
    for index, (op, value) in enumerate(zip(ops, values, strict=True)):
        before = max((made[id(each)] for each in op.input_values() if id(each) in made), default=-1)
        found: TracedValue | None = None if value is None or not value.numel() else matcher.match(value, before)
        if found is not None:
            origins[index], places[index] = found.origin, found.index
        made.update((id(each), before if found is None else found.index) for each in op.outputs)
    return origins, places


def mistranslated(
    graph: Graph, ops: Sequence[Op], places: Mapping[int, int], traced: Sequence[TracedValue], ratio: float
) -> tuple[Culprit, ...]:
    """The ops at which a program leaves torch: their inputs are torch's, their results are not, and nothing after them is any more.

    An op whose result torch does not have, but some later one does, is another way to compute the same.
    """
    index_of = {id(value): index for index, op in enumerate(ops) for value in op.outputs}
    readers: dict[int, list[int]] = {index: [] for index in range(len(ops))}
    sources: dict[int, list[int]] = {}
    for index, op in enumerate(ops):
        sources[index] = [index_of[id(value)] for value in op.input_values() if id(value) in index_of]
        for source in sources[index]:
            readers[source].append(index)
    lost: set[int] = set()
    for index in range(len(ops) - 1, -1, -1):
        if index not in places and all(reader in lost for reader in readers[index]):
            lost.add(index)
    used = set(places.values())
    found = []
    for index in sorted(lost):
        if any(source in lost for source in sources[index]):
            continue
        before = max((places[source] for source in sources[index] if source in places), default=-1)
        size = math.prod(extent or 1 for extent in ops[index].outputs[0].shape or ()) if ops[index].outputs else 0
        likely = (each for each in traced[before + 1 :] if each.index not in used and each.fingerprint.count == size)
        expected = next((each for each in likely if _computes(each) or _moves(ops[index], graph)), None)
        should = f"; torch computes {expected.origin.operation} there" if expected is not None else ""
        found.append(
            Culprit(
                kind="translation",
                name=ops[index].name,
                type=ops[index].type,
                ratio=ratio,
                text=f"what it reads is what torch has there, its result is not{should}",
                origin=None if expected is None else expected.origin,
            )
        )
    return tuple(found)


def _computes(value: TracedValue) -> bool:
    """Whether the torch operation makes new values; a program may move them in other ways."""
    return value.origin.operation.split(".")[1] not in _MOVING


def _moves(op: Op, graph: Graph) -> bool:
    """Whether the op only moves values: then so may what it should have been."""
    lowering = find(op.type, graph.opset)
    return lowering is not None and lowering.exact


def lossy(reports: Sequence[OpReport]) -> tuple[Culprit, ...]:
    """The ops whose own arithmetic explains an error, the worst first within each kind."""
    found = [culprit for report in reports for culprit in _kinds_of(report)]
    return tuple(sorted(found, key=lambda each: (_KINDS.index(each.kind), -each.ratio)))


def misheld(constants: Sequence[ConstantReport], walked: Walked, origins: Mapping[int, Origin]) -> tuple[Culprit, ...]:
    """The ops whose result is another with their constants in fp16, the worst first; ``walked`` is a program that holds them whole.

    A constant that fp16 does not hold is no fault by itself: an epsilon may be added to what is large.
    """
    problems: dict[str, list[str]] = {}
    for each in constants:
        problems.setdefault(each.op, []).append(f"its constant {each.value:.3g} {each.problem}")
    found = [
        Culprit(
            kind="constant",
            name=op.name,
            type=op.type,
            ratio=walked.lost[op.name],
            text=", and ".join(problems[op.name]),
            origin=origins.get(index),
        )
        for index, op in enumerate(walked.ops)
        if walked.lost.get(op.name, 0.0) > _MUCH_LOST
    ]
    return tuple(sorted(found, key=lambda each: -each.ratio))


def _kinds_of(op: OpReport) -> Iterator[Culprit]:
    def culprit(kind: str, ratio: float, text: str) -> Culprit:
        return Culprit(kind=kind, name=op.name, type=op.type, ratio=ratio, text=text, origin=op.origin)  # type: ignore[arg-type]

    if op.overflowed:
        text = f"{op.overflowed} of its results are beyond {FP16_MAX:.0f}, or not a number, and its inputs are finite"
        yield culprit("non-finite", float(op.overflowed), text)
    elif op.local_rho > _MUCH_LOST and op.underflowed > 0:
        text = f"{op.underflowed:.0%} of its results are below {SMALLEST_NORMAL:.2g}, of which fp16 holds few digits or none"
        yield culprit("underflow", op.local_rho, text)
    elif op.local_rho > _MUCH_LOST or op.ulps > op.ulps_limit:
        yield culprit("rounding", max(op.local_rho, op.ulps / op.ulps_limit), f"loses {op.local_rho:.1f} times a rounding by itself")
    if op.amplification > _MUCH_AMPLIFIED:
        text = f"makes the error of what it reads {op.amplification:.0f} times as large, relative to the values"
        yield culprit("amplification", op.amplification, text)


def poorly_held(saved: Graph, fresh: Graph | None) -> tuple[ConstantReport, ...]:
    """Constants that fp16 turns into something else: those of a fresh conversion in fp32, or, without one, what the saved program has."""
    found: dict[tuple[str, str], ConstantReport] = {}
    for op in (fresh or saved).walk():
        for argument, value in op.inputs.items():
            for each in value if isinstance(value, tuple) else (value,):
                report = _constant(op, argument, each)
                if report is not None and not _is_default(op, argument, report.value, (fresh or saved).opset):
                    found[report.name, report.op] = report
    return tuple(found.values())


def holds_only_weights_of(saved: Graph, module: nn.Module) -> bool:
    """Whether every floating constant of several elements is a parameter or buffer of ``module``, number for number in its own dtype.

    Laid out alike or transposed. What a converter folded or compressed is not found: True means that the weights are right, False says
    little.
    """
    tensors = [each.detach().cpu() for each in (*module.parameters(), *module.buffers()) if each.is_floating_point()]
    layouts = (*tensors, *(each.t() for each in tensors if each.ndim == 2))
    known = [each.reshape(-1).float().numpy() for each in layouts]
    weights = [
        each.data.reshape(-1)
        for op in saved.walk()
        for value in op.inputs.values()
        for each in (value if isinstance(value, tuple) else (value,))
        if isinstance(each.data, np.ndarray) and each.data.dtype.kind == "f" and each.data.size > 1
    ]
    compressed = any(op.type.startswith("constexpr_") for op in saved.walk())
    with np.errstate(over="ignore"):
        return not compressed and all(
            any(np.array_equal(weight, each.astype(weight.dtype)) for each in known if each.size == weight.size) for weight in weights
        )


def _is_default(op: Op, argument: str, value: float, opset: str) -> bool:
    """Whether the op has this value if nobody gives another: the converter writes it down, and no model asked for it."""
    lowering = find(op.type, opset)
    default = None if lowering is None else inspect.signature(lowering.function).parameters[argument].default
    return isinstance(default, float) and math.isclose(value, default, rel_tol=1e-3)


def _constant(op: Op, argument: str, value: Value) -> ConstantReport | None:
    if not isinstance(value.data, np.ndarray) or value.data.dtype.kind != "f" or not value.data.size:
        return None
    with np.errstate(invalid="ignore"):
        sizes = np.abs(value.data.reshape(-1).astype(np.float64))
    name = value.name or f"{op.name}.{argument}"
    # ("subnormal" is worth saying of a number that stands alone: among many weights it is below their rounding.)
    checks = (
        ("overflows", (sizes > FP16_MAX) & np.isfinite(sizes), op.type not in _CUTTING),
        ("is 0 in fp16", (sizes > 0) & (sizes < _SMALLEST_SUBNORMAL / 2), value.data.size == 1),
        ("is subnormal in fp16", (sizes >= _SMALLEST_SUBNORMAL / 2) & (sizes < SMALLEST_NORMAL), value.data.size == 1),
    )
    for problem, which, counts in checks:
        if counts and which.any():
            worst = float(value.data.reshape(-1)[int(np.argmax(np.where(which, sizes, -1)))])
            return ConstantReport(name=name, op=op.name, problem=problem, value=worst, elements=int(which.sum()))
    return None
