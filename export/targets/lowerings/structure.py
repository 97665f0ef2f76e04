"""Operations that move, cut and subtract neighbours: ``roll``, ``diff``, ``unfold``, triangles."""

from collections.abc import Callable
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb

from coreflow.export.targets.lowerings.registry import Ints, torch_lowering
from coreflow.export.targets.lowerings.values import Var, axis_of, filled, fixed_size, is_bool
from coreflow.models.errors import ExportError


def part(x: Var, axis: int, begin: int = 0, end: int | None = None) -> Var:
    """``x[begin:end]`` along ``axis``."""
    begins, ends = [0] * x.rank, [0] * x.rank
    begins[axis], ends[axis] = begin, 0 if end is None else end
    everything = [place != axis for place in range(x.rank)]
    end_mask = [whole or (place == axis and end is None) for place, whole in enumerate(everything)]
    return mb.slice_by_index(x=x, begin=begins, end=ends, begin_mask=everything, end_mask=end_mask)


@torch_lowering("roll")
def roll(x: Var, shifts: Ints | int, dims: Ints | int = ()) -> Var:
    """concat of two slices a dimension"""
    shifts, dims = (value if isinstance(value, tuple) else (value,) for value in (shifts, dims))
    if not dims:
        flat = mb.reshape(x=x, shape=[-1])
        return mb.reshape(x=roll(flat, shifts, (0,)), shape=mb.shape(x=x))
    for shift, dim in zip(shifts, dims, strict=True):
        axis = axis_of(x, dim, "roll")
        cut = -shift % fixed_size(x, axis, "roll")
        if cut:
            x = mb.concat(values=[part(x, axis, cut), part(x, axis, 0, cut)], axis=axis)
    return x


@torch_lowering("diff")
def diff(x: Var, n: int = 1, dim: int = -1, prepend: Var | None = None, append: Var | None = None) -> Var:
    """sub of two slices, n times; logical_xor of truth values"""
    axis = axis_of(x, dim, "diff")
    ends = [value for value in (prepend, x, append) if value is not None]
    if len(ends) > 1:
        x = mb.concat(values=ends, axis=axis)
    for _ in range(n):
        if x.shape[axis] == 1:
            raise ExportError(f"diff with n={n} of size {x.shape[axis]} leaves nothing; an empty tensor has no counterpart in Core ML")
        later, earlier = part(x, axis, 1), part(x, axis, 0, -1)
        x = mb.logical_xor(x=later, y=earlier) if is_bool(x) else mb.sub(x=later, y=earlier)
    return x


@torch_lowering("unfold")
def unfold(x: Var, dimension: int, size: int, step: int) -> Var:
    """gather of overlapping windows, their elements last"""
    if x.rank == 0:
        return mb.expand_dims(x=x, axes=[0])
    axis = axis_of(x, dimension, "unfold")
    starts = np.arange(0, fixed_size(x, axis, "unfold") - size + 1, step)
    windows = mb.gather(x=x, indices=(starts[:, None] + np.arange(size)).astype(np.int32).reshape(-1), axis=axis)
    shape = [int(extent) for extent in x.shape]
    split = mb.reshape(x=windows, shape=[*shape[:axis], len(starts), size, *shape[axis + 1 :]])
    order = [place for place in range(x.rank + 1) if place != axis + 1]
    return mb.transpose(x=split, perm=[*order, axis + 1])


@torch_lowering("diagonal")
def diagonal(x: Var, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Var:
    """gather of the places of the diagonal, along one axis for both dimensions"""
    rows, columns = axis_of(x, dim1, "diagonal"), axis_of(x, dim2, "diagonal")
    height, width = fixed_size(x, rows, "diagonal"), fixed_size(x, columns, "diagonal")
    places = np.diagonal(np.arange(height * width, dtype=np.int32).reshape(height, width), offset)
    if not len(places):
        raise ExportError(f"diagonal {offset} of {height} x {width} is empty; an empty tensor has no counterpart in Core ML")
    others = [axis for axis in range(x.rank) if axis not in (rows, columns)]
    last = mb.transpose(x=x, perm=[*others, rows, columns])
    flat = mb.reshape(x=last, shape=[*(fixed_size(x, axis, "diagonal") for axis in others), height * width])
    return mb.gather(x=flat, indices=places, axis=len(others))


@torch_lowering("triu")
def triu(x: Var, diagonal: int = 0) -> Var:
    """select by a fixed mask: what is left out may be infinite"""
    return _triangle(x, np.triu, diagonal)


@torch_lowering("tril")
def tril(x: Var, diagonal: int = 0) -> Var:
    """select by a fixed mask: what is left out may be infinite"""
    return _triangle(x, np.tril, diagonal)


def _triangle(x: Var, side: Callable[..., Any], diagonal: int) -> Var:
    # coremltools subtracts the other triangle, and inf - inf is no number.
    shape = [fixed_size(x, axis, "a triangle") for axis in range(x.rank)]
    mask = np.broadcast_to(side(np.ones(shape[-2:], bool), diagonal), shape)
    if is_bool(x):
        return mb.logical_and(x=x, y=mask)
    return mb.select(cond=mask, a=x, b=filled(x, 0))


@torch_lowering("unsafe_chunk")
def unsafe_chunk(x: Var, chunks: int, dim: int = 0) -> list[Var]:
    """split into parts of one size, the last of which may be smaller"""
    axis = axis_of(x, dim, "unsafe_chunk")
    size = fixed_size(x, axis, "unsafe_chunk")
    step = -(-size // chunks)
    sizes = [min(step, size - begin) for begin in range(0, size, step)]
    return list(mb.split(x=x, split_sizes=sizes, axis=axis)) if len(sizes) > 1 else [x]
