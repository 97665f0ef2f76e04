"""Values that leave their range on the engine: ruled out by bounds, seen in data, or open."""

from collections.abc import Callable, Iterator

from coreflow.export.engine.bounds.hazards import Hazard, Kind
from coreflow.export.engine.finding import Known, Severity, Strength
from coreflow.export.engine.rule import Context, EngineRule, Hit
from coreflow.export.engine.targets import Evidence


def _find(kind: Kind) -> Callable[[Context], Iterator[Hit]]:
    return lambda context: (_hit(hazard) for hazard in context.hazards if hazard.kind == kind and _is_news(hazard))


def _is_news(hazard: Hazard) -> bool:
    """Whether data show it, or it is open here and not in front of the op already."""
    return hazard.verdict == "seen" or (hazard.verdict == "open" and not hazard.follows)


def _hit(hazard: Hazard) -> Hit:
    """An error where data reach the limit, a warning where they come near, a note where nothing is known of the data."""
    severity: Severity = "note" if hazard.verdict == "open" else "error" if (hazard.seen or 0) >= hazard.limit else "warning"
    strength: Strength = "open" if hazard.verdict == "open" else "seen"
    if hazard.kind == "small":
        return Hit(op=hazard.op, detail=f"{hazard.bound:.1%} of the results", severity="warning", strength="seen")
    bound = f"up to {hazard.bound:.4g} by the bounds{f' ({hazard.reason})' if hazard.reason else ''}"
    detail = bound if hazard.seen is None else f"up to {hazard.seen:.4g} in the data, {bound}"
    return Hit(op=hazard.op, detail=detail, severity=severity, strength=strength)


RULES = (
    EngineRule(
        id="fp16-overflow",
        title="a result may leave fp16, and become infinite",
        severity="note",
        strength="open",
        known=Known(
            "65504 is the largest number of fp16, and 11.09 the largest exponent of exp", Evidence("measured", "ane-guide, chapter 3")
        ),
        remedy="declare the bounds of the inputs; scale by powers of two, or normalise before the op; --data tells whether it happens",
        finds=_find("overflow"),
    ),
    EngineRule(
        id="sum-overflow",
        title="a sum of products may reach 32768 in between, and stays infinite then",
        severity="note",
        strength="open",
        known=Known(
            "the accumulator ends at 2^15, for partial sums too, and the bias is its start; M1 to M6",
            Evidence("measured", "K, notes/numerics.md; ane-guide, chapter 3"),
        ),
        remedy="scale an operand down and the result up by a power of two",
        finds=_find("sum"),
    ),
    EngineRule(
        id="square-overflow",
        title="a norm squares numbers of 256 and more, which fp16 does not hold",
        severity="note",
        strength="open",
        known=Known("squares from 256 on are infinite", Evidence("measured", "ane-guide, chapter 3")),
        remedy="scale by a power of two before the norm, which undoes it",
        finds=_find("square"),
    ),
    EngineRule(
        id="small-products",
        title="products are so small that the accumulator loses more than 1 % of the results",
        severity="warning",
        strength="seen",
        known=Known(
            "every result is off by about 4.4e-6 times the root of its number of products, whatever its size",
            Evidence("inference", "R, published errors of products; K, notes/numerics.md"),
        ),
        remedy="scale an operand up and the result down by a power of two",
        finds=_find("small"),
    ),
)
