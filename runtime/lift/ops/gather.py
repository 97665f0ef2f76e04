"""Reading and writing elements by index. Negative indices count from the end; an index outside the axis is an error."""

import math

import torch
from torch import Tensor

from coreflow.runtime.lift.limits import bounded
from coreflow.runtime.lift.registry import lowering


def from_start(indices: Tensor, extent: int, *, validate: bool = False) -> Tensor:
    """``indices`` counted from the start of an axis of ``extent`` elements; validated ones (iOS17) must do so already."""
    if validate and bool(((indices < 0) | (indices >= extent)).any()):
        raise IndexError(f"an index is outside 0..{extent - 1}")
    return torch.where(indices < 0, indices + extent, indices)


def _bounded_gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> None:
    axis = axis % x.dim()
    bounded((*x.shape[:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :]))


def _bounded_gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> None:
    bounded((*indices.shape[:-1], *x.shape[batch_dims + indices.shape[-1] :]))


@lowering("gather", guard=_bounded_gather)
def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """x[..., indices, ...]: the index tensor takes the place of ``axis``; its first ``batch_dims`` axes are those of x.

    Source: MIL iOS15 scatter_gather.gather, batch_dims since iOS16, validate_indices since iOS17.
    """
    axis = axis % x.dim()
    chosen = from_start(indices, x.shape[axis], validate=validate_indices)
    if batch_dims == 0:
        taken = torch.index_select(x, axis, chosen.reshape(-1))
        return taken.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))
    batch = x.shape[:batch_dims]
    flat = chosen.reshape(-1, max(1, chosen[(0,) * batch_dims].numel()))
    rows = x.reshape(-1, *x.shape[batch_dims:])
    inner = axis - batch_dims + 1
    shape = [1] * rows.dim()
    shape[0], shape[inner] = flat.shape
    target = [rows.shape[0], *rows.shape[1:]]
    target[inner] = flat.shape[1]
    taken = torch.gather(rows, inner, flat.reshape(shape).expand(target).long())
    return taken.reshape(*batch, *x.shape[batch_dims:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :])


@lowering("gather_along_axis")
def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """numpy's take_along_axis: indices have x's shape but along ``axis``. Source: MIL iOS15 scatter_gather.gather_along_axis."""
    return torch.gather(x, axis, from_start(indices, x.shape[axis], validate=validate_indices).long())


@lowering("gather_nd", guard=_bounded_gather_nd)
def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """Slices x[i, j, ...] for every (i, j, ...) along the last axis of indices, per element of the first ``batch_dims`` axes.

    Source: MIL iOS15 scatter_gather.gather_nd, batch_dims since iOS16.
    """
    depth = indices.shape[-1]
    places: list[Tensor] = []
    for axis in range(batch_dims):
        shape = [1] * (indices.dim() - 1)
        shape[axis] = indices.shape[axis]
        places.append(torch.arange(indices.shape[axis], device=x.device).reshape(shape))
    for part in range(depth):
        own = indices[..., part]
        if validate_indices:
            from_start(own, x.shape[batch_dims + part], validate=True)
        places.append(own.long())  # torch counts from the end itself, once
    return x[tuple(places)]


@lowering("scatter")
def scatter(data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, mode: str = "add", validate_indices: bool = False) -> Tensor:
    """``data`` with ``updates`` combined into the slices that ``indices`` names along ``axis``; the indices' axes stand in its place.

    Source: MIL iOS15 scatter_gather.scatter.
    """
    axis = axis % data.dim()
    flat = from_start(indices, data.shape[axis], validate=validate_indices).reshape(-1)
    rows = updates.reshape(*data.shape[:axis], flat.numel(), *data.shape[axis + 1 :])
    shape = [1] * data.dim()
    shape[axis] = flat.numel()
    return _combine(data, flat.reshape(shape).expand_as(rows), rows, axis, mode)


@lowering("scatter_along_axis")
def scatter_along_axis(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """``data`` with every element of ``updates`` combined into the place that ``indices`` gives along ``axis``.

    Source: MIL iOS15 scatter_gather.scatter_along_axis.
    """
    return _combine(data, from_start(indices, data.shape[axis], validate=validate_indices), updates, axis, mode)


@lowering("scatter_nd")
def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool = False) -> Tensor:
    """``data`` with ``updates`` combined into the slices data[i, j, ...] for every (i, j, ...) along the last axis of indices.

    Source: MIL iOS15 scatter_gather.scatter_nd.
    """
    depth = indices.shape[-1]
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int32, device=data.device)
    outside = torch.zeros_like(flat, dtype=torch.bool)
    for axis, extent in enumerate(data.shape[:depth]):
        place = from_start(indices[..., axis], extent, validate=validate_indices)
        outside = outside | (place < 0) | (place >= extent)
        flat = flat * extent + place
    flat = torch.where(outside, math.prod(data.shape[:depth]), flat)  # past the end, which torch refuses, and not in the next row
    rest = math.prod(data.shape[depth:])
    rows = updates.reshape(-1, rest)
    combined = _combine(data.reshape(-1, rest), flat.reshape(-1, 1).expand_as(rows), rows, 0, mode)
    return combined.reshape(data.shape)


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
