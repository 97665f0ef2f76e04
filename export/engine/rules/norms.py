"""Norms: those written by hand, epsilons that fp16 does not hold in full, and sizes that the engine's compiler refuses."""

import math
from collections.abc import Iterator

from coreflow.export.engine.finding import Known
from coreflow.export.engine.rule import Context, EngineRule, Hit, number
from coreflow.export.engine.targets import Evidence
from coreflow.export.package.graph import Op, Value
from coreflow.models import fp16

_SMALL_OF_NORM = 1e-6
_GUARDED = ("rsqrt", "sqrt", "log", "inverse", "real_div")
_FLUSHED = Known(
    "values near or below 6e-5 became 0, and 1 / sqrt of it infinite",
    Evidence("measured", "CoreML-LLM docs/PROBE_GEMMA4_VISION_ANE.md; an iPhone"),
)
_REFUSED_ROWS, _REFUSED_LENGTHS, _REFUSED_FROM = 512, (1024, 1536, 2560, 4096), 10240
_MOST_OF_RESPONSE = 15


def _find_added(context: Context) -> Iterator[Hit]:
    for op in context.of_type("add"):
        numbers = [value for name in ("x", "y") if (value := number(context.constant(op, name))) is not None]
        is_small = bool(numbers) and 0 < numbers[0] < fp16.SMALLEST_NORMAL and op.outputs[0].dtype == "float16"
        if is_small and any(reader.type in _GUARDED for reader in context.readers(op.outputs[0])):
            yield Hit(op=op, detail=f"{numbers[0]:.3g}")


def _find_in_norm(context: Context) -> Iterator[Hit]:
    for op in context.of_type("layer_norm", "instance_norm"):
        epsilon = number(context.constant(op, "epsilon"))
        if epsilon is not None and epsilon < _SMALL_OF_NORM and op.outputs[0].dtype == "float16":
            yield Hit(op=op, detail=f"{epsilon:.3g}")


def _squared(context: Context, op: Op | None) -> Value | None:
    """What ``op`` squares."""
    if op is None or op.type not in ("square", "mul", "pow"):
        return None
    x = op.argument("x")[0]
    is_square = op.type == "square" or op.argument("y")[0] is x or (op.type == "pow" and number(context.constant(op, "y")) == 2)
    return x if is_square else None


def _norms_by_hand(context: Context) -> Iterator[tuple[Op, Value]]:
    """The root of a mean of squares, and what is squared."""
    for op in context.of_type("rsqrt", "sqrt"):
        maker = context.maker(op.argument("x")[0])
        if maker is not None and maker.type == "add":
            operands = (context.maker(value) for name in ("x", "y") for value in maker.argument(name))
            maker = next((operand for operand in operands if operand is not None), None)
        if maker is not None and maker.type == "reduce_mean":
            squared = _squared(context, context.maker(maker.argument("x")[0]))
            if squared is not None and op.outputs[0].dtype == "float16":
                yield op, squared


def _is_centred(context: Context, value: Value) -> bool:
    """Whether a mean was taken off ``value``."""
    maker = context.maker(value)
    taken = None if maker is None or maker.type != "sub" else context.maker(maker.argument("y")[0])
    return taken is not None and taken.type == "reduce_mean"


def _find_rms_norm(context: Context) -> Iterator[Hit]:
    return (Hit(op=op) for op, squared in _norms_by_hand(context) if not _is_centred(context, squared))


def _find_layer_norm_by_hand(context: Context) -> Iterator[Hit]:
    return (Hit(op=op) for op, squared in _norms_by_hand(context) if _is_centred(context, squared))


def _find_refused_size(context: Context) -> Iterator[Hit]:
    for op in context.of_type("layer_norm"):
        shape, axes = op.argument("x")[0].shape, context.constant(op, "axes")
        if not shape or None in shape or axes is None:
            continue
        extents = [extent or 1 for extent in shape]
        length = math.prod(extents[int(axis)] for axis in axes)
        rows = math.prod(extents) // max(length, 1)
        older = tuple(chip.name for chip in context.chips if chip.family in ("M1", "M2"))
        newer = tuple(chip.name for chip in context.chips if chip.family == "M5")
        if length in _REFUSED_LENGTHS and older:
            yield Hit(op=op, detail=f"{rows} rows of {length}", chips=older, severity="warning" if rows == _REFUSED_ROWS else "note")
        if length >= _REFUSED_FROM and newer:
            yield Hit(op=op, detail=f"{rows} rows of {length}", chips=newer)


def _find_local_response(context: Context) -> Iterator[Hit]:
    for op in context.of_type("local_response_norm"):
        channels = ((op.argument("x")[0].shape or ()) + (0, 0))[1] or 0
        if channels > _MOST_OF_RESPONSE:
            yield Hit(op=op, detail=f"{channels} channels")


RULES = (
    EngineRule(
        id="small-epsilon",
        title="an epsilon below 6.1e-5, the smallest normal fp16 number, in front of a root or a log",
        severity="warning",
        strength="open",
        known=_FLUSHED,
        remedy="layer_norm with its own epsilon, or x scaled by s and s * s * epsilon, as coreflow export --engine-safe does",
        finds=_find_added,
    ),
    EngineRule(
        id="small-norm-epsilon",
        title="the epsilon of a norm is below 1e-6: rows that hardly vary are divided by zero",
        severity="note",
        strength="open",
        known=_FLUSHED,
        remedy="an epsilon of 1e-5, where rows of padding are normalised",
        finds=_find_in_norm,
    ),
    EngineRule(
        id="plain-rms-norm",
        title="x / sqrt(mean(x²)) in fp16: squares overflow from 256 on, and small ones vanish",
        severity="warning",
        strength="open",
        known=Known(
            "x * x is infinite from 256 on; mean(x * x) of small x became 0 on an iPhone",
            Evidence("measured", "ane-guide, chapter 3 (M1); CoreML-LLM docs/PROBE_GEMMA4_VISION_ANE.md"),
        ),
        remedy="the first half of the layer norm of [x, -x], as coreflow export --engine-safe does, and coreflow export for nn.RMSNorm",
        finds=_find_rms_norm,
    ),
    EngineRule(
        id="layer-norm-by-hand",
        title="a layer norm of single ops: squares overflow from 256 on",
        severity="note",
        strength="open",
        known=Known("high-level ops are better than their parts", Evidence("documented", "Apple, coreai-models, neural_engine_rules.md")),
        remedy="nn.LayerNorm, which stays one op",
        finds=_find_layer_norm_by_hand,
    ),
    EngineRule(
        id="layer-norm-size",
        title="a layer norm of this size did not compile for the engine",
        severity="warning",
        strength="open",
        chips=("M1", "M2", "M5"),
        known=Known(
            "with some gamma and beta: 512 rows of 1024, 1536, 2560 or 4096 on M1 and M2, rows from 10240 on on M5",
            Evidence("measured", "ANEForge issue 149, through the private route"),
        ),
        remedy="look at the compute plan on a Mac; other values of gamma and beta, or another number of rows, compiled",
        finds=_find_refused_size,
    ),
    EngineRule(
        id="local-response-norm",
        title="a local response norm over 16 channels or more does not compile for the engine",
        severity="warning",
        known=Known("16 channels failed, 15 passed", Evidence("measured", "ANEForge docs/developer/op-quirks.md, by the private route")),
        remedy="write the squares, an average over the channels, and the division",
        finds=_find_local_response,
    ),
)
