"""Compressed constants and quantisation. Constant expressions are evaluated once, when a model is loaded.

Source: MIL iOS16 constexpr_ops, iOS17 quantization_ops, iOS18 compression.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from coreflow.export.package.weights import packed_bytes, unpack
from coreflow.models.arrays import Array
from coreflow.runtime.lift.limits import bounded
from coreflow.runtime.lift.registry import lowering

Bytes = npt.NDArray[np.uint8]


def _along(parameter: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A scalar as it is, a vector shaped to run along ``axis`` of x."""
    if parameter.dim() == 0 or axis is None:
        return parameter
    shape = [1] * x.dim()
    shape[axis] = 1 if parameter.numel() == 1 else x.shape[axis]
    return parameter.reshape(shape)


@lowering("constexpr_affine_dequantize")
def constexpr_affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    """scale * (data - zero_point)."""
    return _along(scale, quantized_data, axis) * (quantized_data - _along(zero_point, quantized_data, axis)).to(scale.dtype)


@lowering("constexpr_cast")
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """The same values in a larger type."""
    return source_val


@lowering("constexpr_lut_to_dense")
def constexpr_lut_to_dense(indices: Bytes, lut: Tensor, shape: Sequence[int]) -> Tensor:
    """Every index (1, 2, 4, 6 or 8 bits, packed) replaced by its entry of the table."""
    bits = int(lut.numel() - 1).bit_length()
    numbers = _unpacked(indices, f"uint{bits}", shape).astype(np.uint8, copy=False)
    return torch.from_numpy(np.take(lut.cpu().numpy(), numbers)).to(lut.device)


@lowering("constexpr_sparse_to_dense")
def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Bytes, shape: Sequence[int]) -> Tensor:
    """Zeros but where the mask (packed bits) is set; there the values in turn."""
    places = torch.from_numpy(_unpacked(mask, "uint1", shape)).to(nonzero_data.device)
    return _spread(places, nonzero_data)


@lowering("constexpr_sparse_to_dense", since="iOS18")
def constexpr_sparse_to_dense_ios18(nonzero_data: Tensor, mask: Tensor) -> Tensor:
    """Zeros but where the mask is 1; there the values in turn."""
    return _spread(mask, nonzero_data)


@lowering("constexpr_lut_to_dense", since="iOS18")
def constexpr_lut_to_dense_ios18(indices: Tensor, lut: Tensor, vector_axis: int | None = None) -> Tensor:
    """Every index replaced by its entry of its block's table; lut (blocks..., entries, length of an entry).

    An entry that is a vector lies along ``vector_axis``, which grows by its length.
    """
    bounded((indices.numel(), lut.shape[-1]))
    group = torch.zeros((1,) * indices.dim(), dtype=torch.int64, device=indices.device)
    for axis, (extent, blocks) in enumerate(zip(indices.shape, lut.shape[:-2], strict=True)):
        shape = [1] * indices.dim()
        shape[axis] = extent
        own = torch.arange(extent, device=indices.device) // _block(extent, blocks)
        group = group * blocks + own.reshape(shape)
    entries, length = lut.shape[-2:]
    chosen = lut.reshape(-1, length)[group * entries + indices]
    if length == 1:
        return chosen.squeeze(-1)
    assert vector_axis is not None
    axis = vector_axis % indices.dim()
    return chosen.movedim(-1, axis + 1).flatten(axis, axis + 1)


@lowering("constexpr_blockwise_shift_scale")
def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale * (data - offset), each of them for a block of data."""
    values = data.to(scale.dtype)
    if offset is not None:
        values = values - _repeated(offset, data).to(scale.dtype)
    return values * _repeated(scale, data)


@lowering("constexpr_lut_to_sparse")
def constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """The mask of what is not zero, and those values looked up in the table."""
    dense = constexpr_lut_to_dense_ios18(_spread(indices_mask, indices_nonzero_data), lut, vector_axis)
    length = lut.shape[-1]
    mask = indices_mask if vector_axis is None or length == 1 else indices_mask.repeat_interleave(length, vector_axis)
    return mask, dense[mask != 0]


@lowering("constexpr_sparse_blockwise_shift_scale")
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mask of what is not zero, and those values as scale * (data - offset)."""
    dense = constexpr_blockwise_shift_scale(_spread(data_mask, nonzero_data), scale, offset)
    return data_mask, dense[data_mask != 0]


@lowering("quantize")
def quantize(input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """round(input / scale) + zero_point, kept within the type."""
    whole = torch.round(input / _along(scale, input, axis))
    if zero_point is not None:
        whole = whole + _along(zero_point, input, axis)
    bits, signed = int(output_dtype.lstrip("uint")), not output_dtype.startswith("u")
    low = -(1 << (bits - 1)) if signed else 0
    return torch.clamp(whole, low, low + (1 << bits) - 1).to(torch.int32)


@lowering("dequantize")
def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """scale * (input - zero_point)."""
    shifted = input if zero_point is None else input - _along(zero_point, input, axis)
    return _along(scale, input, axis) * shifted.to(scale.dtype)


def _unpacked(packed: Bytes, dtype: str, shape: Sequence[int]) -> Array:
    if packed_bytes(dtype, math.prod(shape)) != packed.size:
        raise ValueError(f"{packed.size} bytes are not those of {dtype} {list(shape)}")
    return unpack(packed, dtype, tuple(shape))


def _spread(mask: Tensor, values: Tensor) -> Tensor:
    dense = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    dense[mask != 0] = values
    return dense


def _repeated(parameter: Tensor, data: Tensor) -> Tensor:
    """``parameter`` with every element repeated over its block, in the shape of ``data``."""
    for axis, (extent, blocks) in enumerate(zip(data.shape, parameter.shape, strict=True)):
        if blocks not in (1, extent):
            parameter = parameter.repeat_interleave(_block(extent, blocks), axis)
    return parameter


def _block(extent: int, blocks: int) -> int:
    """How many elements along one axis share a parameter."""
    if blocks < 1 or extent % blocks:
        raise ValueError(f"an axis of {extent} elements cannot be cut into {blocks} blocks")
    return extent // blocks
