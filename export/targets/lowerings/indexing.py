"""Writing to and reading from places given by indices: ``index_add``, ``scatter_reduce``, ``take_along_dim`` and others."""

from collections.abc import Callable
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb

from coreflow.export.targets.lowerings.arithmetic import multiply
from coreflow.export.targets.lowerings.registry import torch_lowering
from coreflow.export.targets.lowerings.structure import part
from coreflow.export.targets.lowerings.values import Var, axis_of, broadcast, filled, fixed_size, is_bool, is_float, promote
from coreflow.models.errors import ExportError

_MODES = {"sum": "add", "mean": "add", "prod": "mul", "amax": "max", "amin": "min"}


@torch_lowering("index_add")
def index_add(x: Var, dim: int, index: Var, source: Var, alpha: float = 1) -> Var:
    """scatter in mode add"""
    return _at_index(x, dim, index, source if alpha == 1 else multiply(source, alpha), "add")


@torch_lowering("index_copy")
def index_copy(x: Var, dim: int, index: Var, source: Var) -> Var:
    """scatter in mode update"""
    return _at_index(x, dim, index, source, "update")


@torch_lowering("index_fill")
def index_fill(x: Var, dim: int, index: Var, value: Var) -> Var:
    """scatter of one value in mode update"""
    axis = axis_of(x, dim, "index_fill")
    shape = [fixed_size(x, place, "index_fill") for place in range(x.rank)]
    shape[axis] = fixed_size(index, 0, "index_fill") if index.rank else 1
    filling = mb.fill(shape=shape, value=np.float32(0) if is_float(x) else np.int32(0))
    return _at_index(x, dim, index, mb.add(x=filling, y=mb.cast(x=value, dtype="fp32" if is_float(x) else "int32")), "update")


def _at_index(x: Var, dim: int, index: Var, source: Var, mode: str) -> Var:
    def scatter(data: Var, updates: Var) -> Var:
        places = index if index.rank else mb.expand_dims(x=index, axes=[0])
        return mb.scatter(data=data, indices=places, updates=updates, axis=axis_of(data, dim, "an index"), mode=mode)

    if x.rank == 0:
        return mb.squeeze(x=_of_numbers(scatter, mb.expand_dims(x=x, axes=[0]), mb.reshape(x=source, shape=[-1])), axes=[0])
    return _of_numbers(scatter, x, source)


def _of_numbers(scatter: Callable[[Var, Var], Var], x: Var, updates: Var) -> Var:
    """``scatter`` of whole numbers where ``x`` holds truth values, which MIL does not scatter."""
    if not is_bool(x):
        return scatter(*promote(x, updates))
    return mb.cast(x=scatter(mb.cast(x=x, dtype="int32"), mb.cast(x=updates, dtype="int32")), dtype="bool")


@torch_lowering("scatter_reduce")
def scatter_reduce(x: Var, dim: int, index: Var, src: Var, reduce: str, include_self: bool = True) -> Var:
    """scatter_along_axis in mode add, mul, max or min; mean divides by a scattered count"""
    axis = axis_of(x, dim, "scatter_reduce")
    sizes = [fixed_size(index, place, "scatter_reduce") for place in range(index.rank)]
    for place, size in enumerate(sizes):  # the source may be larger than the index
        if fixed_size(src, place, "scatter_reduce") > size:
            src = part(src, place, 0, size)
    return _of_numbers(lambda data, updates: _reduce(data, axis, index, updates, reduce, include_self), x, src)


def _reduce(x: Var, axis: int, index: Var, src: Var, reduce: str, include_self: bool) -> Var:
    for place in range(x.rank):
        size = index.shape[place]
        if place != axis and size < fixed_size(x, place, "scatter_reduce"):
            # What lies beyond the index stays; MIL wants both of one size.
            head = _reduce(part(x, place, 0, size), axis, index, src, reduce, include_self)
            return mb.concat(values=[head, part(x, place, size)], axis=place)

    def scatter(data: Var, updates: Var, mode: str) -> Var:
        return mb.scatter_along_axis(data=data, indices=index, updates=updates, axis=axis, mode=mode)

    if not include_self:
        x = scatter(x, filled(src, _neutral(src, reduce)), "update")
    result = scatter(x, src, _MODES[reduce])
    if reduce != "mean":
        return result
    count = scatter(filled(x, 1 if include_self else 0), filled(src, 1), "add")
    count = count if include_self else mb.maximum(x=count, y=filled(x, 1))
    return mb.real_div(x=result, y=count) if is_float(x) else mb.floor_div(x=result, y=count)


def _neutral(x: Var, reduce: str) -> Any:
    """A value that changes no result of the reduction."""
    limits: Any = np.finfo(np.float32) if is_float(x) else np.iinfo(np.int32)
    return {"sum": 0, "mean": 0, "prod": 1, "amax": limits.min, "amin": limits.max}[reduce]


@torch_lowering("take_along_dim")
def take_along_dim(x: Var, indices: Var, dim: int | None = None) -> Var:
    """gather_along_axis, both broadcast but for the dimension"""
    if is_bool(x):
        return mb.cast(x=take_along_dim(mb.cast(x=x, dtype="int32"), indices, dim), dtype="bool")
    if dim is None:
        return mb.gather_along_axis(x=mb.reshape(x=x, shape=[-1]), indices=mb.reshape(x=indices, shape=[-1]), axis=0)
    axis = axis_of(x, dim, "take_along_dim")
    if x.rank != indices.rank:
        raise ExportError(f"take_along_dim: a tensor of rank {x.rank} and indices of rank {indices.rank}; give both the same")
    sides = broadcast(but=axis, x=x, indices=indices)
    return mb.gather_along_axis(**sides, axis=axis)


@torch_lowering("bucketize")
def bucketize(x: Var, boundaries: Var, out_int32: bool = False, right: bool = False) -> Var:
    """count of the boundaries that are less, or not greater"""
    x, boundaries = promote(mb.expand_dims(x=x, axes=[-1]), boundaries)
    # Not the opposite comparison: what is no number comes behind all boundaries.
    reached = mb.greater(x=boundaries, y=x) if right else mb.greater_equal(x=boundaries, y=x)
    return mb.reduce_sum(x=mb.cast(x=mb.logical_not(x=reached), dtype="int32"), axes=[-1])
