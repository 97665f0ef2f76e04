"""Convolutions that are slow on the engine, leave it, or take long to be compiled."""

import math
from collections.abc import Iterator

from coreflow.export.engine.compute_plan import LARGEST_KERNEL
from coreflow.export.engine.features import Features
from coreflow.export.engine.finding import Known
from coreflow.export.engine.rule import Context, EngineRule, Hit
from coreflow.export.engine.targets import Evidence
from coreflow.export.package.graph import Op

_APPLE = Evidence("documented", "Apple, coreai-models, neural_engine_rules.md")


def _convolutions(context: Context) -> Iterator[tuple[Op, Features]]:
    return ((op, features) for op, features in context.features if op.type == "conv")


def _settings(context: Context, op: Op, name: str) -> tuple[int, ...]:
    constant = context.constant(op, name)
    return () if constant is None else tuple(int(number) for number in constant)


def _is_smooth(number: int) -> bool:
    """Whether 2 and 3 are its only prime factors."""
    for factor in (2, 3):
        while number % factor == 0:
            number //= factor
    return number == 1


def _find_odd_stride(context: Context) -> Iterator[Hit]:
    for op, _ in _convolutions(context):
        strides = _settings(context, op, "strides")
        if len(set(strides)) > 1 or not all(map(_is_smooth, strides)):
            yield Hit(op=op, detail=f"strides {list(strides)}")


def _find_odd_dilation(context: Context) -> Iterator[Hit]:
    for op, features in _convolutions(context):
        if any(dilation > 3 for dilation in features.dilations):
            yield Hit(op=op, detail=f"dilations {list(features.dilations)}")


def _find_column(context: Context) -> Iterator[Hit]:
    for op, features in _convolutions(context):
        channels, result = features.inputs[0].shape[1:2], features.outputs[0].shape
        if features.groups > 1 and channels == (features.groups,) and math.prod(result[2:]) == 1 and not features.is_open:
            yield Hit(op=op, detail=f"{features.groups} channels")


def _find_long_compile(context: Context) -> Iterator[Hit]:
    for op, features in context.features:
        if op.type in ("conv", "conv_transpose") and math.prod(features.kernel) > LARGEST_KERNEL:
            yield Hit(op=op, detail=f"a kernel of {' x '.join(map(str, features.kernel))}")


def _find_transposed(context: Context) -> Iterator[Hit]:
    for op in context.of_type("conv_transpose"):
        strides = _settings(context, op, "strides")
        if any(stride > 1 for stride in strides):
            yield Hit(op=op, detail=f"strides {list(strides)}")


RULES = (
    EngineRule(
        id="odd-stride",
        title="strides that differ, or have other factors than 2 and 3",
        severity="note",
        known=Known("strides of 2 and 4 are best, then those of the factors 2 and 3; equal along both axes", _APPLE),
        remedy="before training: strides of the factors 2 and 3, equal along both axes",
        finds=_find_odd_stride,
    ),
    EngineRule(
        id="odd-dilation",
        title="a dilation above 3",
        severity="note",
        known=Known("dilations of 2 and 3 in a chain are better than one large one", _APPLE),
        remedy="before training: chain dilations of 2 and 3",
        finds=_find_odd_dilation,
    ),
    EngineRule(
        id="depthwise-column",
        title="a depthwise convolution with one output column goes to the CPU",
        severity="warning",
        known=Known(
            "ten of ten with 1024 groups, a kernel of 1 x 3 and one token were on the CPU; over sequences they stayed",
            Evidence("measured", "CoreML-LLM docs/LFM2_CONVERSION_FINDINGS.md"),
        ),
        remedy="stack the taps, multiply, and sum over them",
        finds=_find_column,
    ),
    EngineRule(
        id="long-compile",
        title="a kernel that takes the engine's compiler minutes and gigabytes",
        severity="warning",
        chips=("M4", "M6"),
        known=Known("16 x 16 took 212 to 229 s and 11.7 GB, 13 x 13 2 to 23 s, all smaller ones under 1 s", Evidence("measured", "K")),
        remedy="smaller kernels in a row, or a stride that turns the convolution into a product of patches",
        finds=_find_long_compile,
    ),
    EngineRule(
        id="conv-transpose",
        title="a transposed convolution with a stride",
        severity="note",
        known=Known(
            "wrong in fp16 in two reports, and the engine's compiler spoke of a stride limit in a third; K places all on an M4",
            Evidence("reported", "coremltools issues 2281, 2324 (closed) and 2450 (iPhone 15 Pro Max)"),
        ),
        remedy="compare with torch in fp16; or upsample by nearest neighbours and convolve",
        finds=_find_transposed,
    ),
)  # fmt: skip
