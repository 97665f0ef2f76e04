"""Ops that move elements: shapes, slices, joins. Every element of a result is one of an argument."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from coreflow.export.engine.bounds.bound import (
    Ball,
    Bound,
    full,
    hull,
)
from coreflow.export.engine.bounds.registry import Call, transfer
from coreflow.export.package.graph import Shape
from coreflow.models.arrays import Array, Floats


def moved(x: Bound, shape: Shape, change: Callable[[Floats], Floats], axis_before: Callable[[int], int | None]) -> Bound:
    """``x`` with its axes in other places: ``change`` of every array; ``axis_before`` says which axis of x one of the result was."""

    def rule(axis: int, blocks: int) -> Ball | None:
        before = axis_before(axis)
        ball = None if before is None else x.known_ball(before, blocks)
        return None if ball is None else ball.on(change, axis)

    shares = next((axis for axis in range(len(shape)) if axis_before(axis) == x.shares), None) if x.shares is not None else None
    return Bound(shape, change(x.low), change(x.high), rule=rule, shares=shares, excess=x.excess)


def anywhere(x: Bound, shape: Shape) -> Bound:
    """Each element of the result is some element of ``x``, or the result has none."""
    ones = np.ones((1,) * len(shape))
    return Bound(shape, x.lowest * ones, x.highest * ones)


@transfer("identity")
def identity(call: Call) -> Bound:
    """The same bound."""
    return call["x"]


@transfer("transpose")
def transpose(call: Call) -> Bound:
    """The same arrays transposed."""
    x, permutation = call["x"], call.integers("perm") or ()
    order = [x.axis(axis) for axis in permutation]
    return moved(x, tuple(x.shape[axis] for axis in order), lambda array: array.transpose(order), lambda axis: order[axis])


@transfer("expand_dims")
def expand_dims(call: Call) -> Bound:
    """New axes of extent 1."""
    x, axes = call["x"], call.integers("axes") or ()
    rank = x.rank + len(axes)
    new = sorted(axis % rank for axis in axes)
    kept = [axis for axis in range(rank) if axis not in new]
    shape = tuple(1 if axis in new else x.shape[kept.index(axis)] for axis in range(rank))
    return moved(x, shape, lambda array: np.expand_dims(array, tuple(new)), lambda axis: kept.index(axis) if axis in kept else None)


@transfer("squeeze")
def squeeze(call: Call) -> Bound:
    """Without axes of extent 1."""
    x, axes = call["x"], call.integers("axes")
    gone = [axis for axis, extent in enumerate(x.shape) if extent == 1] if axes is None else [x.axis(axis) for axis in axes]
    kept = [axis for axis in range(x.rank) if axis not in gone]
    return moved(x, tuple(x.shape[axis] for axis in kept), lambda array: array.squeeze(tuple(gone)), lambda axis: kept[axis])


def taken(x: Bound, axis: int, indices: Array) -> Bound:
    """The elements at ``indices`` (I,) along one axis; an axis with one bound for all keeps it."""
    shape = (*x.shape[:axis], len(indices), *x.shape[axis + 1 :])
    if not len(indices):
        return anywhere(x, shape)
    extent = x.extent(axis)
    is_run = len(indices) == 1 or bool((np.diff(indices) == 1).all())

    def change(array: Floats) -> Floats:
        return array if array.shape[axis] == 1 else array.take(indices, axis)

    def rule(along: int, blocks: int) -> Ball | None:
        if along != axis:
            ball = x.known_ball(along, blocks)
            return None if ball is None else ball.on(change)
        if not is_run or blocks > 1:
            return None
        return _part(x, axis, int(indices[0]), len(indices), extent)

    return Bound(shape, change(x.low), change(x.high), rule=rule, shares=x.shares if x.shares != axis else None, excess=x.excess)


def _part(x: Bound, axis: int, first: int, count: int, extent: int) -> Ball | None:
    """The ball of neighbours: of the block that they are, where they are one."""
    blocks = extent // count if extent % count == 0 and first % count == 0 else 1
    ball = x.known_ball(axis, blocks)
    if ball is None:
        return None
    if ball.blocks != blocks:
        ball = ball.merged()
    places = np.arange(first, first + count)
    radius = ball.radius.take([first // count], axis) if ball.blocks == blocks > 1 else ball.radius
    arrays = [array if array.shape[axis] == 1 else array.take(places, axis) for array in (ball.centre, ball.scale, ball.error)]
    return Ball(axis, arrays[0], arrays[1], radius, arrays[2])


@transfer("split")
def split(call: Call) -> tuple[Bound, ...]:
    """Runs of elements along an axis."""
    x = call["x"]
    axis = x.axis(call.integer("axis", 0))
    extent = x.extent(axis)
    sizes = call.integers("split_sizes")
    if sizes is None:
        count = call.integer("num_splits", 1)
        sizes = (extent // count,) * count
    ends = np.cumsum(sizes)
    return tuple(taken(x, axis, np.arange(end - size, end)) for end, size in zip(ends, sizes, strict=True))


@dataclass(frozen=True, slots=True)
class Slice:
    """One axis of ``slice_by_index``.

    >>> Slice(begin=-2, end=0, stride=1, begin_is_open=False, end_is_open=True, is_squeezed=False).places(5)
    array([3, 4])
    """

    begin: int
    end: int
    stride: int
    begin_is_open: bool
    end_is_open: bool
    is_squeezed: bool

    def places(self, extent: int) -> Array:
        """The places that it takes, as the lowering of the op has them: one before the first element is the first."""
        places = np.arange(extent)
        if self.is_squeezed:
            return places[[0 if self.begin_is_open else self.begin]]
        first, last = self.begin, self.end
        is_one = not self.begin_is_open and not self.end_is_open and first < 0 and last < 0 and first - last <= -self.stride
        if not is_one and extent > 1:
            first, last = (max(0, place + extent) if place < 0 else place for place in (first, last))
        return places[slice(None if self.begin_is_open else first, None if self.end_is_open else last, self.stride)]


def slices_of(call: Call, rank: int) -> list[Slice] | None:
    """A slice an axis; None where one is computed."""
    if any(call.array(name) is None for name in ("begin", "end")):
        return None
    begin, end = call.integers("begin") or (), call.integers("end") or ()
    strides = call.integers("stride") or (1,) * rank
    masks = [[bool(bit) for bit in call.integers(f"{name}_mask") or (0,) * rank] for name in ("begin", "end", "squeeze")]
    return [Slice(*arguments) for arguments in zip(begin, end, strides, *masks, strict=True)]


@transfer("slice_by_index")
def slice_by_index(call: Call) -> Bound:
    """Every axis sliced as numpy does."""
    x = call["x"]
    slices = slices_of(call, x.rank)
    if None in x.shape or slices is None:
        return anywhere(x, call.shape())
    result = x
    for axis, part in enumerate(slices):
        places = part.places(x.extent(axis))
        if len(places) != x.extent(axis) or part.stride < 0:
            result = taken(result, axis, places)
    gone = tuple(axis for axis, part in enumerate(slices) if part.is_squeezed)
    kept = [axis for axis in range(x.rank) if axis not in gone]
    return moved(result, tuple(result.shape[axis] for axis in kept), lambda array: array.squeeze(gone), lambda axis: kept[axis])


@transfer("slice_by_size")
def slice_by_size(call: Call) -> Bound:
    """So many elements from a place on, on every axis."""
    x, sizes = call["x"], call.integers("size") or ()
    if None in x.shape:
        return anywhere(x, call.shape())
    if call.array("begin") is None:
        return anywhere(x, call.shape()) if any(size != x.shape[axis] for axis, size in enumerate(sizes)) else x
    for axis, (first, size) in enumerate(zip(call.integers("begin") or (), sizes, strict=True)):
        extent = x.extent(axis)
        start = first % extent if first < 0 else first
        x = taken(x, axis, np.arange(start, extent if size == -1 else start + size))
    return x


@transfer("concat")
def concat(call: Call) -> Bound:
    """The values one after the other; interleaved, they take turns."""
    values = [
        value if value.rank else moved(value, (1,), lambda array: array.reshape(1), lambda _: None) for value in call.values("values")
    ]
    axis = values[0].axis(call.integer("axis", 0))
    shape = call.shape()
    values = [value for value in values if value.shape[axis] != 0]
    if not values or None in shape or call.flag("interleave"):
        return hull(shape, [anywhere(value, shape) for value in values]) if values else anywhere(call.values("values")[0], shape)
    extents = [value.extent(axis) for value in values]

    def rule(along: int, blocks: int) -> Ball | None:
        if along == axis:
            return _joined(values, axis, extents, blocks)
        balls = [value.known_ball(along, blocks) for value in values]
        known = [ball for ball in balls if ball is not None and ball.blocks == blocks]
        if len(known) < len(values):
            return None
        parts = zip(*((ball.centre, ball.scale, ball.radius, ball.error) for ball in known), strict=True)
        return Ball(along, *(_concatenated(arrays, axis, extents) for arrays in parts))

    low, high = (_concatenated([getattr(value, side) for value in values], axis, extents) for side in ("low", "high"))
    return Bound(shape, low, high, rule=rule)


def _joined(values: Sequence[Bound], axis: int, extents: Sequence[int], blocks: int) -> Ball | None:
    """Balls along the axis on which the values are joined: blocks of the result where the parts are of one size."""
    if all(value.rule is None for value in values):
        return None
    balls = [value.ball(axis).merged() for value in values]
    centre, error = (_concatenated([getattr(ball, name) for ball in balls], axis, extents) for name in ("centre", "error"))
    radii = [ball.radius for ball in balls]
    if len(set(extents)) == 1:
        radius = _concatenated(radii, axis, [1] * len(radii))
    elif blocks == 1:
        radius = np.sqrt(sum(np.square(radius) for radius in radii))
    else:
        return None
    return Ball(axis, centre, np.ones((1,) * centre.ndim), radius, error)


def _concatenated(arrays: Sequence[Floats], axis: int, extents: Sequence[int]) -> Floats:
    """Arrays of bounds one after the other, with all their extent on the axis, and on others where one has it."""
    whole = [full(array, axis, extent) for array, extent in zip(arrays, extents, strict=True)]
    shape = list(np.broadcast_shapes(*((*array.shape[:axis], 1, *array.shape[axis + 1 :]) for array in whole)))
    return np.concatenate([np.broadcast_to(a, (*shape[:axis], a.shape[axis], *shape[axis + 1 :])) for a in whole], axis)


@transfer("stack")
def stack(call: Call) -> Bound:
    """The values along a new axis."""
    values = call.values("values")
    shape = call.shape()
    axis = call.integer("axis", 0) % len(shape)
    low, high = (
        _concatenated([np.expand_dims(getattr(value, side), axis) for value in values], axis, [1] * len(values)) for side in ("low", "high")
    )
    return Bound(shape, low, high)
