"""Slices that begin inside the last axis, which pass a fixed-point copy on chips before the M4."""

from collections.abc import Iterator

from coreflow.export.engine.finding import Known
from coreflow.export.engine.rule import Context, EngineRule, Hit
from coreflow.export.engine.targets import Evidence
from coreflow.export.package.graph import Op


def _offset(context: Context, op: Op) -> int:
    """Where on the last axis a static fp16 slice begins; 0 for every other op."""
    if op.type not in ("slice_by_index", "slice_by_size") or op.outputs[0].dtype != "float16":
        return 0
    shape, begin, masked = op.argument("x")[0].shape, context.constant(op, "begin"), context.constant(op, "begin_mask")
    if not shape or begin is None or (masked is not None and masked[-1]):
        return 0
    first = int(begin[-1])
    return first + (shape[-1] or 0) if first < 0 else first


def _find_gain(context: Context) -> Iterator[Hit]:
    for op in context.of_type("slice_by_index", "slice_by_size"):
        if offset := _offset(context, op):
            yield Hit(op=op, detail=f"begins at {offset}")


def _find_joined(context: Context) -> Iterator[Hit]:
    for op in context.of_type("concat"):
        makers = [maker for value in op.argument("values") if (maker := context.maker(value)) is not None]
        offsets = [offset for maker in makers if (offset := _offset(context, maker))]
        if len(offsets) > 1:
            detail = f"{len(offsets)} slices, which begin at {', '.join(map(str, offsets))}"
            yield Hit(op=op, detail=detail, chips=tuple(chip.name for chip in context.chips if chip.family != "M3"))
            assumed = Known("the source assumes it of all chips before the M4", Evidence("assumed", "PyPI aneforge 0.4.0; no M3 was seen"))
            m3 = tuple(chip.name for chip in context.chips if chip.family == "M3")
            yield Hit(op=op, detail=detail, chips=m3, severity="warning", known=assumed)


RULES = (
    EngineRule(
        id="slice-gain",
        title="a slice that begins inside the last axis is infinite where a value is 4095 or more",
        severity="warning",
        strength="open",
        chips=("M1", "M2"),
        known=Known(
            "16 times the value in a fixed-point copy: 4094 passes; absent on M4, M5 and M6",
            Evidence("measured", "ane-guide, chapters 3 and 19 (M1, M2 Pro); ANEForge bench (M1 Max, M2 Max, M4 to M6)"),
        ),
        remedy="slice another axis, or keep values below 4094",
        finds=_find_gain,
    ),
    EngineRule(
        id="joined-slices",
        title="two or more slices that begin inside the last axis, joined, give wrong elements",
        severity="error",
        chips=("M1", "M2", "M3"),
        known=Known(
            "wrong elements on chips before the M4",
            Evidence("measured", "ANEForge docs/developer/op-quirks.md; PyPI aneforge 0.4.0, through the private route"),
        ),
        remedy="slice and join another axis, or multiply with a matrix of 0 and 1",
        finds=_find_joined,
    ),
)
