"""Programs too small for the engine, and ops that cost far more than the planner thinks."""

from collections.abc import Iterator

from coreflow.export.engine.cost import estimate
from coreflow.export.engine.finding import Known
from coreflow.export.engine.rule import Context, EngineRule, Hit
from coreflow.export.engine.support import support
from coreflow.export.engine.targets import Evidence, Target, op_evidence


def _price(target: Target) -> float:
    """Milliseconds that a program on the engine costs before it saves any: a launch, and a switch at its end."""
    return target.launch_ms + target.switch_ms


def _saving(context: Context, target: Target) -> float | None:
    """The most milliseconds that the engine can save; None where it can save its price, or takes no op."""
    saved: float | None = None
    for _, features in context.features:
        if support(features, target).engine:
            ms = estimate(features, target).ms
            saved = (saved or 0.0) + max(0.0, min(ms["bnns"], ms["classic"]) - ms["ane"])
            if saved >= _price(target):
                return None
    return saved


def _find_small(context: Context) -> Iterator[Hit]:
    targets = {target.key: target for chip in context.chips for target in chip.targets}
    savings = {key: _saving(context, target) for key, target in targets.items()}
    details: dict[str, list[str]] = {}
    for chip in context.chips:
        most = [saved for target in chip.targets if (saved := savings[target.key]) is not None]
        if len(most) == len(chip.targets):
            price = _price(chip.targets[0])
            details.setdefault(f"saves at most {most[0]:.2g} ms of the {price:g} ms that it costs to go there", []).append(chip.name)
    for detail, chips in details.items():
        yield Hit(detail=detail, chips=tuple(chips))


def _find_slow(context: Context) -> Iterator[Hit]:
    remarks = op_evidence("remark")
    for op, features in context.features:
        if op.type in remarks:
            text, evidence = remarks[op.type]
            chips = tuple(chip.name for chip in context.chips if chip.refusal(features) is None)
            yield Hit(op=op, chips=chips, known=Known(text, evidence))


RULES = (
    EngineRule(
        id="small-program",
        title="Core ML will leave the whole program on the CPU: it is too small for the engine",
        severity="note",
        known=Known(
            "a launch and a switch cost 0.25 ms, which the ops must save by Apple's own estimates",
            Evidence("inference", "the tables of coreflow place: K on an M4; assumed for other chips"),
        ),
        remedy="more work a call, stages fused into one program, or the CPU; coreflow place shows what is missing",
        finds=_find_small,
    ),
    EngineRule(
        id="slow-on-engine",
        title="an op that Core ML places on the engine and that is slower there",
        severity="note",
        chips=("M4",),
        known=Known("Apple's estimate is far too low", Evidence("measured", "K")),
        remedy="return the scores, and choose on the host",
        finds=_find_slow,
    ),
)
