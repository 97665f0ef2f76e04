"""Reading and writing elements by index; an index outside the axis is an error.

Up to iOS16 negative indices count from the end. Since iOS17 they are out of bounds like others beyond the axis, whose result MIL leaves
undefined without ``validate_indices``: here they are refused with it and without.
"""

import math

import torch
from torch import Tensor

from coreflow.runtime.lift.limits import bounded
from coreflow.runtime.lift.registry import lowering


def from_start(indices: Tensor, extent: int) -> Tensor:
    """``indices`` counted from the start of an axis of ``extent`` elements."""
    return torch.where(indices < 0, indices + extent, indices)


class NegativeIndexError(IndexError):
    """An index below 0 where none counts from the end."""


def refuse_negative(indices: Tensor) -> None:
    """Raise ``NegativeIndexError`` for an index below 0; a graph that torch exports cannot ask."""
    if not torch.compiler.is_compiling() and bool((indices < 0).any()):
        raise NegativeIndexError(f"index {int(indices.min())} is negative, and since iOS17 none counts from the end")


def _bounded_gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> None:
    axis = axis % x.dim()
    bounded((*x.shape[:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :]))


def _bounded_gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> None:
    bounded((*indices.shape[:-1], *x.shape[batch_dims + indices.shape[-1] :]))


@lowering("gather", guard=_bounded_gather)
def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0) -> Tensor:
    """x[..., indices, ...]: the index tensor takes the place of ``axis``; its first ``batch_dims`` axes are those of x.

    Source: MIL iOS15 scatter_gather.gather, batch_dims since iOS16.
    """
    return _gather(x, from_start(indices, x.shape[axis]), axis, batch_dims)


@lowering("gather", since="iOS17", guard=_bounded_gather)
def gather_from_zero(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """``gather`` by indices none of which is negative. Source: MIL iOS17 scatter_gather.gather."""
    refuse_negative(indices)
    return _gather(x, indices, axis, batch_dims)


def _gather(x: Tensor, indices: Tensor, axis: int, batch_dims: int) -> Tensor:
    axis = axis % x.dim()
    if batch_dims == 0:
        taken = torch.index_select(x, axis, indices.reshape(-1))
        return taken.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))
    batch = x.shape[:batch_dims]
    flat = indices.reshape(-1, max(1, indices[(0,) * batch_dims].numel()))
    rows = x.reshape(-1, *x.shape[batch_dims:])
    inner = axis - batch_dims + 1
    shape = [1] * rows.dim()
    shape[0], shape[inner] = flat.shape
    target = [rows.shape[0], *rows.shape[1:]]
    target[inner] = flat.shape[1]
    taken = torch.gather(rows, inner, flat.reshape(shape).expand(target).long())
    return taken.reshape(*batch, *x.shape[batch_dims:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :])


@lowering("gather_along_axis")
def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """numpy's take_along_axis: indices have x's shape but along ``axis``. Source: MIL iOS15 scatter_gather.gather_along_axis."""
    return torch.gather(x, axis, from_start(indices, x.shape[axis]).long())


@lowering("gather_along_axis", since="iOS17")
def gather_along_axis_from_zero(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """``gather_along_axis`` by indices none of which is negative. Source: MIL iOS17 scatter_gather.gather_along_axis."""
    refuse_negative(indices)
    return torch.gather(x, axis, indices.long())


@lowering("gather_nd", guard=_bounded_gather_nd)
def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    """Slices x[i, j, ...] for every (i, j, ...) along the last axis of indices, per element of the first ``batch_dims`` axes.

    Source: MIL iOS15 scatter_gather.gather_nd, batch_dims since iOS16.
    """
    depth = indices.shape[-1]
    places: list[Tensor] = []
    for axis in range(batch_dims):
        shape = [1] * (indices.dim() - 1)
        shape[axis] = indices.shape[axis]
        places.append(torch.arange(indices.shape[axis], device=x.device).reshape(shape))
    places += (indices[..., part].long() for part in range(depth))  # torch counts from the end itself, once
    return x[tuple(places)]


@lowering("gather_nd", since="iOS17", guard=_bounded_gather_nd)
def gather_nd_from_zero(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """``gather_nd`` by indices none of which is negative. Source: MIL iOS17 scatter_gather.gather_nd."""
    refuse_negative(indices)
    return gather_nd(x, indices, batch_dims)


@lowering("scatter")
def scatter(data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, mode: str = "add") -> Tensor:
    """``data`` with ``updates`` combined into the slices that ``indices`` names along ``axis``; the indices' axes stand in its place.

    Source: MIL iOS15 scatter_gather.scatter.
    """
    axis = axis % data.dim()
    flat = from_start(indices, data.shape[axis]).reshape(-1)
    rows = updates.reshape(*data.shape[:axis], flat.numel(), *data.shape[axis + 1 :])
    shape = [1] * data.dim()
    shape[axis] = flat.numel()
    return _combine(data, flat.reshape(shape).expand_as(rows), rows, axis, mode)


@lowering("scatter", since="iOS17")
def scatter_from_zero(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """``scatter`` by indices none of which is negative. Source: MIL iOS17 scatter_gather.scatter."""
    refuse_negative(indices)
    return scatter(data, indices, updates, axis=axis, mode=mode)


@lowering("scatter_along_axis")
def scatter_along_axis(data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, mode: str = "add") -> Tensor:
    """``data`` with every element of ``updates`` combined into the place that ``indices`` gives along ``axis``.

    Source: MIL iOS15 scatter_gather.scatter_along_axis.
    """
    return _combine(data, from_start(indices, data.shape[axis]), updates, axis, mode)


@lowering("scatter_along_axis", since="iOS17")
def scatter_along_axis_from_zero(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """``scatter_along_axis`` by indices none of which is negative. Source: MIL iOS17 scatter_gather.scatter_along_axis."""
    refuse_negative(indices)
    return scatter_along_axis(data, indices, updates, axis=axis, mode=mode)


@lowering("scatter_nd")
def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add") -> Tensor:
    """``data`` with ``updates`` combined into the slices data[i, j, ...] for every (i, j, ...) along the last axis of indices.

    Source: MIL iOS15 scatter_gather.scatter_nd.
    """
    depth = indices.shape[-1]
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int32, device=data.device)
    outside = torch.zeros_like(flat, dtype=torch.bool)
    for axis, extent in enumerate(data.shape[:depth]):
        place = from_start(indices[..., axis], extent)
        outside = outside | (place < 0) | (place >= extent)
        flat = flat * extent + place
    flat = torch.where(outside, math.prod(data.shape[:depth]), flat)  # past the end, which torch refuses, and not in the next row
    rest = math.prod(data.shape[depth:])
    rows = updates.reshape(-1, rest)
    combined = _combine(data.reshape(-1, rest), flat.reshape(-1, 1).expand_as(rows), rows, 0, mode)
    return combined.reshape(data.shape)


@lowering("scatter_nd", since="iOS17")
def scatter_nd_from_zero(data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool = False) -> Tensor:
    """``scatter_nd`` by indices none of which is negative. Source: MIL iOS17 scatter_gather.scatter_nd."""
    refuse_negative(indices)
    return scatter_nd(data, indices, updates, mode)


def _combine(data: Tensor, places: Tensor, updates: Tensor, axis: int, mode: str) -> Tensor:
    """``data`` with updates put or folded into ``places`` along ``axis``; all three have one rank."""
    places = places.long()
    if mode == "update":
        return torch.scatter(data, axis, places, updates)
    if mode in ("add", "sub"):
        return torch.scatter_add(data, axis, places, updates if mode == "add" else -updates)
    if mode in ("max", "min"):
        return torch.scatter_reduce(data, axis, places, updates, "amax" if mode == "max" else "amin")
    if mode == "mul":
        return torch.scatter_reduce(data, axis, places, updates, "prod")
    if mode == "div":
        divisor = torch.scatter_reduce(torch.ones_like(data), axis, places, updates, "prod")
        return data / divisor if data.is_floating_point() else torch.div(data, divisor, rounding_mode="trunc")
    raise ValueError(f"scatter mode {mode!r}")
