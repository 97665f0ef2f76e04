"""Laws of compressed constants and quantisation; coremltools' own numpy decompression is the oracle."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from coreflow.export.package.coremltools_quiet import quiet_coremltools

if TYPE_CHECKING:
    from tests.runtime.lift.laws.conftest import Draw, Law

Arguments = dict[str, Any]


def blocks(draw: "Draw", rank: int) -> tuple[list[int], list[int]]:
    """How many blocks along every axis, and the extents."""
    counts = draw.wholes(rank, 1, 3)
    return counts, [count * draw.whole(1, 3) for count in counts]


def affine(draw: "Draw") -> Arguments:
    shape = draw.shape(1, 4)
    axis = draw.axis(len(shape))
    kind = draw.one([np.int8, np.uint8])
    data = draw.ints(*shape, low=-100 if kind is np.int8 else 0, high=100, dtype=kind)
    one = draw.flag()
    scale, zero = draw.floats(*[] if one else [shape[axis]], low=0.1, high=2), draw.ints(*[] if one else [shape[axis]], low=0, dtype=kind)
    opset = draw.since("CoreML6")
    return {"quantized_data": data, "zero_point": draw.one([zero, kind(3)]), "scale": scale, "axis": axis, "opset": opset}


def packed_palette(draw: "Draw") -> Arguments:
    bits, shape = draw.one([1, 2, 4, 6, 8]), draw.shape(1, 5)
    indices = draw.ints(math.ceil(bits * math.prod(shape) / 8), low=0, high=255, dtype=np.uint8)
    return {"indices": indices, "lut": draw.floats(2**bits), "shape": np.array(shape, np.uint32), "opset": draw.one(["CoreML6", "CoreML7"])}


def packed_sparse(draw: "Draw") -> Arguments:
    mask = draw.bools(*draw.shape(1, 5))
    mask.flat[0] = True  # MIL has no empty vectors
    packed = np.packbits(mask.ravel(), bitorder="little")
    values = draw.floats(int(mask.sum()))
    return {"nonzero_data": values, "mask": packed, "shape": np.array(mask.shape, np.uint32), "opset": draw.one(["CoreML6", "CoreML7"])}


def palette(draw: "Draw") -> Arguments:
    rank = draw.whole(1, 4)
    counts, extents = blocks(draw, rank)
    bits = draw.one([1, 2, 3, 4])
    length = draw.one([1, 1, 2, 3])
    indices = draw.ints(*extents, low=0, high=2**bits - 1, dtype=np.uint8)
    lut = draw.floats(*counts, 2**bits, length)
    return {"indices": indices, "lut": lut, "vector_axis": draw.axis(rank) if length > 1 else None, "opset": "CoreML8"}


def shift_scale(draw: "Draw") -> Arguments:
    counts, extents = blocks(draw, draw.whole(1, 4))
    data = draw.ints(*extents, low=-100, high=100, dtype=np.int8)
    offset = draw.one([None, draw.ints(*counts, dtype=np.int8), draw.floats(*counts)])
    return {"data": data, "scale": draw.floats(*counts, low=0.1, high=2), "offset": offset, "opset": "CoreML8"}


def mask_of(draw: "Draw", shape: Any) -> Any:
    mask = draw.ints(*shape, low=0, high=1, dtype=np.uint8)
    mask.flat[0] = 1
    return mask


def sparse(draw: "Draw") -> Arguments:
    mask = mask_of(draw, draw.shape(1, 5))
    return {"nonzero_data": draw.floats(int(mask.sum())), "mask": mask, "opset": "CoreML8"}


def sparse_palette(draw: "Draw") -> Arguments:
    arguments = palette(draw)
    mask = mask_of(draw, arguments["indices"].shape)
    rest = {name: arguments[name] for name in ("lut", "vector_axis", "opset")}
    return {"indices_mask": mask, "indices_nonzero_data": arguments["indices"][mask != 0], **rest}


def sparse_shift_scale(draw: "Draw") -> Arguments:
    arguments = shift_scale(draw)
    mask = mask_of(draw, arguments["data"].shape)
    return {"data_mask": mask, "nonzero_data": arguments.pop("data")[mask != 0], **arguments}


LAWS: dict[str, tuple[str, Callable[["Draw"], Arguments]]] = {
    "constexpr_affine_dequantize": ("quantized_data zero_point scale axis", affine),
    "constexpr_lut_to_dense": ("lut indices shape", packed_palette),
    "constexpr_lut_to_dense since iOS18": ("indices lut vector_axis", palette),
    "constexpr_sparse_to_dense": ("nonzero_data mask shape", packed_sparse),
    "constexpr_sparse_to_dense since iOS18": ("nonzero_data mask", sparse),
    "constexpr_blockwise_shift_scale": ("data scale offset", shift_scale),
    "constexpr_lut_to_sparse": ("indices_mask indices_nonzero_data lut vector_axis", sparse_palette),
    "constexpr_sparse_blockwise_shift_scale": ("data_mask nonzero_data scale offset", sparse_shift_scale),
}


@pytest.mark.parametrize("case", LAWS)
def test_constants_equal_those_of_coremltools(law: "Law", case: str) -> None:
    quiet_coremltools()
    from coremltools.converters.mil.mil.ops.defs.iOS16 import constexpr_ops
    from coremltools.converters.mil.mil.ops.defs.iOS18 import compression

    op = case.partition(" ")[0]
    names, arguments_of = LAWS[case]
    older = case == op and hasattr(constexpr_ops, op)
    decompress = getattr(constexpr_ops if older else compression, op).decompress
    law.agrees_with(lambda **given: decompress(*(given.get(name) for name in names.split())), op, arguments_of)


def test_a_cast_constant_keeps_its_values(law: "Law") -> None:
    def arguments(draw: "Draw") -> Arguments:
        return {"source_val": draw.floats(*draw.shape(1, 5)).astype(np.float16), "output_dtype": "fp32", "opset": draw.since("CoreML6")}

    law.agrees_with(lambda source_val, output_dtype: source_val.astype(np.float64), "constexpr_cast", arguments)


def per_axis(draw: "Draw") -> Arguments:
    """Parameters of one number, or of one for every place along an axis."""
    shape = draw.shape(1, 4)
    axis = draw.axis(len(shape))
    own = draw.one([[], [shape[axis]]])
    kind = draw.one(["int8", "uint8"])
    zero = draw.one([None, draw.ints(*own, low=0, high=9, dtype=kind)])
    return {"shape": shape, "axis": axis if own else None, "kind": kind, "scale": draw.floats(*own, low=0.1, high=2), "zero_point": zero}


def quantize(draw: "Draw") -> Arguments:
    """No input lies half way between two steps: there the last digit of a float decides."""
    given = per_axis(draw)
    shape, kind = given.pop("shape"), given.pop("kind")
    return {"input": draw.floats(*shape, low=-300, high=300), **given, "output_dtype": kind, "opset": draw.since("CoreML7")}


def dequantize(draw: "Draw") -> Arguments:
    given = per_axis(draw)
    shape, kind = given.pop("shape"), given.pop("kind")
    return {"input": draw.ints(*shape, low=0, high=100, dtype=kind), **given, "opset": draw.since("CoreML7")}


def dequantized(input: Any, scale: Any, zero_point: Any = 0, axis: int = 0) -> Any:
    last = np.moveaxis(input.astype(np.float64), axis, -1)
    return np.moveaxis((last - np.float64(zero_point)) * scale, -1, axis)


def test_quantize_rounds_to_steps_within_its_type(law: "Law") -> None:
    law.agrees_with_mil("quantize", quantize)


def test_dequantize_scales_the_difference_from_the_zero_point(law: "Law") -> None:
    law.agrees_with_mil("dequantize", dequantize, dequantized)
