"""Weights: how large, and how they are stored."""

import math
from collections.abc import Iterator

from coreflow.export.engine.features import bits_of
from coreflow.export.engine.finding import Known
from coreflow.export.engine.rule import Context, EngineRule, Hit
from coreflow.export.engine.targets import Evidence
from coreflow.export.package.graph import Value

_PHONE_BYTES, _ANY_BYTES = 0.95e9, 2e9
_TAKEN_ANYWHERE = Known(
    "1.5 GB of constants compiled, 3.4 GB did not",
    Evidence("measured", "ANEForge PR 45, through the private route"),
)


def _stored_bytes(value: Value) -> int:
    size = math.prod(extent or 1 for extent in value.shape or ())
    return math.ceil(size * bits_of(value.dtype) / 8)


def _find_size(context: Context) -> Iterator[Hit]:
    constants = {id(value): value for op in context.ops for value in op.input_values() if value.data is not None}
    stored = sum(_stored_bytes(value) for value in constants.values())
    detail = f"{stored / 1e9:.2f} GB"
    if stored > _ANY_BYTES:
        yield Hit(detail=detail, severity="error", known=_TAKEN_ANYWHERE)
    elif stored > _PHONE_BYTES:
        yield Hit(detail=detail)


def _find_int8(context: Context) -> Iterator[Hit]:
    for op in context.of_type("linear", "matmul"):
        weights = [value for name in ("weight", "y") if name in op.inputs for value in op.argument(name)]
        for maker in (context.maker(value) for value in weights):
            if maker is None or not maker.type.startswith("constexpr_"):
                continue
            data = next((maker.argument(name)[0] for name in ("quantized_data", "data") if name in maker.inputs), None)
            if data is not None and data.dtype in ("int8", "uint8") and maker.type != "constexpr_lut_to_dense":
                yield Hit(op=op, detail=f"weights by {maker.type}")


RULES = (
    EngineRule(
        id="weight-size",
        title="the weights of one program are near or beyond what the engine takes",
        severity="warning",
        known=Known(
            "1 GB is the limit on an iPhone; from 1.4 GB on, an iPhone 17 Pro went to the GPU without a word",
            Evidence("documented", "coremltools docs-guides/mlmodel-utilities.md; the second measured, CoreML-LLM docs/QWEN35_LESSONS.md"),
        ),
        remedy="palettize, or split the model into several programs",
        finds=_find_size,
    ),
    EngineRule(
        id="int8-weights",
        title="int8 weights: the product is infinite where an input is above 4094",
        severity="warning",
        strength="open",
        chips=("M1", "M2", "M5"),
        known=Known(
            "above 4094 infinite",
            Evidence("measured", "ANEForge issue 153 and PyPI aneforge 0.4.0; M1 Max, M2 Pro, M5 Pro, through the private route"),
        ),
        remedy="palettize instead, or scale the input down and the result up",
        finds=_find_int8,
    ),
)
