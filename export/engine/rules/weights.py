"""Weights: how large they are, how they are compressed, and whether functions share them."""

import math
from collections.abc import Iterator
from typing import Any

from coreflow.export.engine.features import bits_of
from coreflow.export.engine.finding import Known
from coreflow.export.engine.rule import Context, EngineRule, Hit
from coreflow.export.engine.targets import Evidence
from coreflow.export.package.graph import Op, Value
from coreflow.export.package.mlpackage import read_message

_APPLE = "coremltools docs-guides/opt-quantization-perf.md"
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


def _quantised(op: Op) -> str:
    """The element type of what a constant expression expands; empty where it is none."""
    data = next((op.argument(name)[0] for name in ("quantized_data", "data") if name in op.inputs), None)
    return "" if data is None or op.type not in ("constexpr_affine_dequantize", "constexpr_blockwise_shift_scale") else data.dtype


def _find_int8(context: Context) -> Iterator[Hit]:
    for op in context.of_type("linear", "matmul"):
        weights = [value for name in ("weight", "y") if name in op.inputs for value in op.argument(name)]
        makers = [maker for value in weights if (maker := context.maker(value)) is not None]
        for maker in makers:
            if _quantised(maker) in ("int8", "uint8"):
                yield Hit(op=op, detail=f"weights by {maker.type}")


def _find_blocks(context: Context) -> Iterator[Hit]:
    for op in context.of_type("constexpr_blockwise_shift_scale"):
        data, scale = op.argument("data")[0].shape or (), op.argument("scale")[0].shape or ()
        blocks = [extent for extent in scale[1:] if extent is not None and extent > 1]
        if _quantised(op) in ("int4", "uint4") and len(data) == len(scale) and blocks:
            yield Hit(op=op, detail=f"{blocks[0]} blocks a channel")


def _find_palette(context: Context) -> Iterator[Hit]:
    for op in context.of_type("constexpr_lut_to_dense"):
        table = op.argument("lut")[0]
        entries = (table.shape[-2] if table.shape and len(table.shape) > 1 else (table.shape or (0,))[0]) or 0
        bits = max(entries - 1, 0).bit_length()
        older = tuple(chip.name for chip in context.chips if chip.family == "M1")
        if bits in (1, 2):
            yield Hit(op=op, detail=f"{bits} bits")
        elif bits in (3, 6) and older:
            yield Hit(op=op, detail=f"{bits} bits", chips=older)


def _find_activations(context: Context) -> Iterator[Hit]:
    return (Hit(op=op) for op in context.of_type("quantize"))


def _find_unshared(context: Context) -> Iterator[Hit]:
    """Tables of this function whose places are stored once for it and an earlier function, and they themselves not."""
    names = list(context.program.functions)
    if names.index(context.function) == 0 or not any(context.of_type("constexpr_lut_to_dense")):
        return
    program = read_message(context.program.path)[0].mlProgram
    earlier: dict[int, set[int | None]] = {}
    for name in names[: names.index(context.function)]:
        for indices, table in _stored_tables(program.functions[name]).values():
            earlier.setdefault(indices, set()).add(table)
    own = _stored_tables(program.functions[context.function])
    for op in context.of_type("constexpr_lut_to_dense"):
        indices, table = own.get(op.outputs[0].name, (-1, None))
        if indices in earlier and table not in earlier[indices]:
            yield Hit(op=op)


def _stored_tables(function: Any) -> dict[str, tuple[int, int | None]]:
    """By result: where in the weight file the places and the table of a palette are stored; None for a table beside the program."""
    operations = function.block_specializations[function.opset].operations
    constants = {op.outputs[0].name: op.attributes["val"] for op in operations if op.type == "const"}

    def offset(op: Any, name: str) -> int | None:
        if name in op.attributes:  # until iOS17
            value = op.attributes[name]
        else:
            binding = op.inputs[name].arguments[0]
            value = binding.value if binding.WhichOneof("binding") == "value" else constants.get(binding.name)
        is_stored = value is not None and value.WhichOneof("value") == "blobFileValue"
        return int(value.blobFileValue.offset) if is_stored else None

    palettes = [op for op in operations if op.type == "constexpr_lut_to_dense"]
    return {op.outputs[0].name: (places, offset(op, "lut")) for op in palettes if (places := offset(op, "indices")) is not None}


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
    EngineRule(
        id="int4-blocks",
        title="int4 weights with several blocks a channel are meant for the GPU",
        severity="note",
        known=Known("a scale a block suits the GPU, a scale a channel the engine", Evidence("documented", f"Apple, {_APPLE}")),
        remedy="a palette of 4 bits, or one scale a channel",
        finds=_find_blocks,
    ),
    EngineRule(
        id="palette-bits",
        title="a palette of this many bits is expanded to fp16, and saves neither time nor memory",
        severity="note",
        known=Known(
            "tables of 4 and 8 bits are looked up on an M1, those of 3 and 6 bits later, of 1 and 2 bits never",
            Evidence("decompiled", "ane-guide, chapter 25"),
        ),
        remedy="4, 6 or 8 bits",
        finds=_find_palette,
    ),
    EngineRule(
        id="int8-activations",
        title="activations in int8 gain nothing before the M4",
        severity="note",
        chips=("M1", "M2", "M3"),
        known=Known("products of int8 are faster from the A17 Pro and the M4 on", Evidence("documented", f"Apple, {_APPLE}")),
        remedy="compress weights alone for these chips",
        finds=_find_activations,
    ),
    EngineRule(
        id="unshared-tables",
        title="functions share the places of a palette and not its table: the engine stores the weight once for each",
        severity="warning",
        known=Known(
            "a table that is not shared leads to places that are not shared either, after the ops are fused",
            Evidence("documented", "Apple, coremltools, const_deduplication.py"),
        ),
        remedy="palettize once, before the functions are merged, so that both have the same table",
        finds=_find_unshared,
    ),
)
