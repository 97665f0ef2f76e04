"""Ops that put elements in another order, or zeros between them."""

import numpy as np

from coreflow.export.engine.bounds.bound import Bound, hull, join
from coreflow.export.engine.bounds.registry import Call, transfer
from coreflow.export.engine.bounds.transfers.moves import anywhere, slices_of


@transfer("reverse")
def reverse(call: Call) -> Bound:
    """From the end to the start."""
    x, axes = call["x"], call.integers("axes")
    flipped = tuple(range(x.rank)) if axes is None else tuple(x.axis(axis) for axis in axes)
    return Bound(x.shape, np.flip(x.low, flipped), np.flip(x.high, flipped))


@transfer("reverse_sequence", "sliding_windows", "batch_to_space", "crop")
def same_elements(call: Call) -> Bound:
    """Elements of x, wherever they are."""
    return anywhere(call["x"], call.shape())


@transfer("depth_to_space", "space_to_depth", "pixel_shuffle", "pixel_unshuffle")
def blocks(call: Call) -> Bound:
    """Elements of one picture."""
    x = call["x"]
    axes = range(1, x.rank)
    return Bound(call.shape(), join(x.low, axes, least=True), join(x.high, axes))


@transfer("space_to_batch")
def space_to_batch(call: Call) -> Bound:
    """Elements of x, or zeros of the padding."""
    x, shape = call["x"], call.shape()
    result = anywhere(x, shape)
    return Bound(shape, np.minimum(result.low, 0), np.maximum(result.high, 0))


@transfer("slice_update")
def slice_update(call: Call) -> Bound:
    """An element of x or of the update; on an axis that is updated as a whole, both at its own place."""
    x, update = call["x"], call["update"]
    slices = slices_of(call, x.rank)
    if slices is None or None in x.shape or x.rank != update.rank:
        return hull(x.shape, [x, anywhere(update, x.shape)])
    parts = [axis for axis, part in enumerate(slices) if len(part.places(x.extent(axis))) != x.shape[axis] or part.stride != 1]
    low, high = (join(update.low, parts, least=True), join(update.high, parts)) if parts else (update.low, update.high)
    return Bound(x.shape, np.minimum(x.low, low), np.maximum(x.high, high))
