"""What a caller sees: element types, open shapes, and the last axis of inputs and outputs."""

import math
from collections.abc import Iterable, Iterator

from coreflow.export.engine.finding import Known
from coreflow.export.engine.rule import Context, EngineRule, Hit
from coreflow.export.engine.targets import Evidence
from coreflow.export.package.graph import Feature, Value

_GRANULE = 32  # fp16 elements of 64 bytes


def _arrays(context: Context) -> Iterator[tuple[str, Feature]]:
    for role, features in (("input", context.interface.inputs), ("output", context.interface.outputs)):
        yield from ((f"{role} {feature.name} {list(feature.shape)}", feature) for feature in features if feature.kind == "array")


def _find_ragged_rows(context: Context) -> Iterator[Hit]:
    for label, feature in _arrays(context):
        rows = feature.shape[-1] if len(feature.shape) > 1 else 0
        if feature.dtype == "float16" and rows % _GRANULE:
            padded = -(-rows // _GRANULE) * _GRANULE
            is_waste = rows == 1 and math.prod(feature.shape) >= _GRANULE
            yield Hit(detail=f"{label}: rows of {rows} take the room of {padded}", severity="warning" if is_waste else "note")


def _find_fp32(context: Context) -> Iterator[Hit]:
    if any(value.dtype == "float16" for op in context.ops for value in op.outputs):
        yield from (Hit(detail=label) for label, feature in _arrays(context) if feature.dtype == "float32")


def _find_open(context: Context) -> Iterator[Hit]:
    for label, feature in _arrays(context):
        if any(low != high for low, high in feature.ranges):
            yield Hit(detail=f"{label}: {', '.join(f'{low} to {high}' for low, high in feature.ranges if low != high)}")
        elif len(feature.enumerated) > 1:
            norms = next(context.of_type("layer_norm"), None)
            detail = f"{label}: {len(feature.enumerated)} shapes{'' if norms is None else ', with layer norms'}"
            yield Hit(detail=detail, severity="note" if norms is None else "warning", known=_ENUMERATED)
    for op in context.ops:
        if _is_open(op.outputs) and not _is_open(op.input_values()):
            yield Hit(op=op, detail="its shape depends on values")


def _is_open(values: Iterable[Value]) -> bool:
    return any(value.shape is None or None in value.shape for value in values if value.kind == "tensor")


_ENUMERATED = Known(
    "up to 128 listed shapes may stay on the engine; layer norm, slices and concat left it",
    Evidence("reported", "coremltools docs-guides/faqs.md (Apple); coremltools issue 1909"),
)
RULES = (
    EngineRule(
        id="ragged-rows",
        title="the last axis of an input or output is no multiple of 32",
        severity="note",
        known=Known(
            "rows are padded to 64 bytes: a last axis of 1 takes 32 times the memory in fp16",
            Evidence("documented", "Apple, coreai-models, neural_engine_rules.md"),
        ),
        remedy="put the sequence or the width last, or pad it to a multiple of 32",
        finds=_find_ragged_rows,
    ),
    EngineRule(
        id="fp32-door",
        title="an input or output in fp32 around fp16 arithmetic: a copy and a cast",
        severity="note",
        known=Known(
            "with fp16 inputs and outputs GPT-2 large took 62 ms, not 89, in Xcode",
            Evidence("measured", "more-ane-transformers NOTES.md 2023-09-28"),
        ),
        remedy="declare fp16 inputs and outputs, from iOS16 on",
        finds=_find_fp32,
    ),
    EngineRule(
        id="open-shape",
        title="a shape that is known at run time only tends to keep a program off the engine",
        severity="warning",
        known=Known(
            "a range of shapes left the engine; in another report an encoder with one stayed, 217 of 217 ops",
            Evidence("reported", "executorch docs coreml-partitioner.md (Meta); LuuOW/meridian-mcp"),
        ),
        remedy="one program or function for every shape, padding and masks inside",
        finds=_find_open,
    ),
)  # fmt: skip
