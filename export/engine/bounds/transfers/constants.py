"""Compressed constants, decoded when they are asked for, and quantised activations.

Source of every formula: MIL iOS16 constexpr_ops, iOS17 quantization_ops, iOS18 compression.
"""

from collections.abc import Callable

import numpy as np

from coreflow.export.engine.bounds.bound import Bound, Constant, UnboundedError
from coreflow.export.engine.bounds.registry import Call, transfer
from coreflow.export.package.weights import unpack
from coreflow.models.arrays import Array

Decode = Callable[[Call], Array]


def _need(call: Call, name: str) -> Array:
    array = call.array(name)
    if array is None:
        raise UnboundedError(f"{name} is computed")
    return array


def _along(parameter: Array, axis: int, rank: int) -> Array:
    return parameter.reshape([-1 if place == axis % rank else 1 for place in range(rank)]) if parameter.ndim else parameter


def _affine(call: Call) -> Array:
    data, axis = _need(call, "quantized_data"), call.integer("axis", 0)
    scale, zero = (_along(_need(call, name), axis, data.ndim) for name in ("scale", "zero_point"))
    return scale * (data.astype(np.int32) - zero.astype(np.int32)).astype(scale.dtype)


def _blockwise(call: Call, data: Array) -> Array:
    scale = _need(call, "scale")
    values = data.astype(scale.dtype)
    if "offset" in call.op.inputs:
        values = values - _repeated(_need(call, "offset"), data).astype(scale.dtype)
    return values * _repeated(scale, data)


def _repeated(parameter: Array, data: Array) -> Array:
    for axis, (extent, blocks) in enumerate(zip(data.shape, parameter.shape, strict=True)):
        if blocks not in (1, extent):
            parameter = np.repeat(parameter, extent // blocks, axis)
    return parameter


def _is_packed(call: Call) -> bool:
    return "shape" in call.op.inputs  # up to iOS17


def _table(call: Call, indices: Array) -> Array:
    """Every index replaced by its entry of its block's table; an entry of several numbers lies along ``vector_axis``."""
    lut = _need(call, "lut")
    if _is_packed(call):
        shape = call.integers("shape") or ()
        bits = int(lut.size - 1).bit_length()
        return lut.reshape(-1)[unpack(indices, f"uint{bits}", shape)]
    group = np.zeros((1,) * indices.ndim, np.int64)
    for axis, (extent, blocks) in enumerate(zip(indices.shape, lut.shape[:-2], strict=True)):
        group = group * blocks + _along(np.arange(extent) // (extent // blocks), axis, indices.ndim)
    entries, length = lut.shape[-2:]
    chosen = lut.reshape(-1, length)[group * entries + indices]
    if length == 1:
        return chosen[..., 0]
    axis = call.integer("vector_axis", 0) % indices.ndim
    extents = [extent * length if place == axis else extent for place, extent in enumerate(indices.shape)]
    return np.moveaxis(chosen, -1, axis + 1).reshape(extents)


def _spread(mask: Array, values: Array) -> Array:
    dense = np.zeros(mask.shape, values.dtype)
    dense[mask != 0] = values.reshape(-1)
    return dense


def _sparse(call: Call) -> Array:
    mask = _need(call, "mask")
    return _spread(unpack(mask, "uint1", call.integers("shape") or ()) if _is_packed(call) else mask, _need(call, "nonzero_data"))


_DENSE: dict[str, Decode] = {
    "constexpr_affine_dequantize": _affine,
    "constexpr_blockwise_shift_scale": lambda call: _blockwise(call, _need(call, "data")),
    "constexpr_cast": lambda call: _need(call, "source_val"),
    "constexpr_lut_to_dense": lambda call: _table(call, _need(call, "indices")),
    "constexpr_sparse_to_dense": _sparse,
}


@transfer(*_DENSE)
def dense(call: Call) -> Bound:
    """The elements, decoded whenever they are read."""
    decode = _DENSE[call.op.type]
    return Constant(call.shape(), lambda: decode(call))


@transfer("constexpr_lut_to_sparse", "constexpr_sparse_blockwise_shift_scale")
def sparse(call: Call) -> tuple[Bound, ...]:
    """The mask of what is not zero, and those values."""
    is_table = call.op.type == "constexpr_lut_to_sparse"
    mask_name, data_name = ("indices_mask", "indices_nonzero_data") if is_table else ("data_mask", "nonzero_data")

    def mask() -> Array:
        bits = _need(call, mask_name)
        length = _need(call, "lut").shape[-1] if is_table else 1
        return bits if length == 1 else np.repeat(bits, length, call.integer("vector_axis", 0))

    def values() -> Array:
        spread = _spread(_need(call, mask_name), _need(call, data_name))
        return (_table(call, spread) if is_table else _blockwise(call, spread))[mask() != 0]

    return Constant(call.shape(0), mask), Constant(call.shape(1), values)


@transfer("quantize")
def quantize(call: Call) -> Bound:
    """Within the type."""
    kind = call.text("output_dtype", "int8")
    bits = int(kind.lstrip("uint"))
    low = 0.0 if kind.startswith("u") else -(2.0 ** (bits - 1))
    ones = np.ones((1,) * len(call.shape()))
    return Bound(call.shape(), low * ones, (low + 2.0**bits - 1) * ones)


@transfer("dequantize")
def dequantize(call: Call) -> Bound:
    """A factor and an offset, a channel at most."""
    x, axis = call["input"], call.integer("axis", 0)
    scale = _along(_need(call, "scale").astype(np.float64), axis, x.rank)
    zero = _along(_need(call, "zero_point").astype(np.float64), axis, x.rank) if "zero_point" in call.op.inputs else np.zeros(())
    one, other = scale * (x.low - zero), scale * (x.high - zero)
    return Bound(x.shape, np.minimum(one, other), np.maximum(one, other))
