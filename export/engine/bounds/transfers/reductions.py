"""Sums, means and extremes over axes."""

import math
from collections.abc import Callable

import numpy as np

from coreflow.export.engine.bounds.bound import Bound
from coreflow.export.engine.bounds.registry import Call, transfer
from coreflow.models.arrays import Floats


def _axes(call: Call) -> tuple[int, ...]:
    x, axes = call["x"], call.integers("axes")
    return tuple(range(x.rank)) if axes is None else tuple(sorted({x.axis(axis) for axis in axes}))


def _reduced(call: Call, low: Floats, high: Floats, axes: tuple[int, ...]) -> Bound:
    """A bound whose arrays have an extent of 1 on ``axes``, without those axes where the op drops them."""
    if not call.flag("keep_dims"):
        low, high = low.squeeze(axes), high.squeeze(axes)
    return Bound(call.shape(), low, high)


def _sum(call: Call, array: Floats, axes: tuple[int, ...]) -> Floats:
    """The sum of an end over axes, one with one number for all counted as often as it stands."""
    times = math.prod(call["x"].extent(axis) // array.shape[axis] for axis in axes)
    return array.sum(axes, keepdims=True) * times


def _count(call: Call, axes: tuple[int, ...]) -> int:
    return math.prod(call["x"].extent(axis) for axis in axes)


def _rounding(call: Call, magnitudes: Floats, count: int) -> Floats:
    """What partial sums may lose: each is rounded in one of log2(count) levels."""
    return (call.slack.relative * math.ceil(math.log2(max(2, count)))) * magnitudes


@transfer("reduce_sum", "reduce_mean")
def reduce_sum(call: Call) -> Bound:
    """The sum of the ends; of a mean, by their number."""
    x, axes = call["x"], _axes(call)
    count = _count(call, axes)
    rounding = _rounding(call, _sum(call, x.magnitude, axes), count)
    divisor = max(1, count) if call.op.type == "reduce_mean" else 1
    return _reduced(call, (_sum(call, x.low, axes) - rounding) / divisor, (_sum(call, x.high, axes) + rounding) / divisor, axes)


@transfer("reduce_max", "reduce_min")
def extreme(call: Call) -> Bound:
    """The extreme of the ends."""
    x, axes = call["x"], _axes(call)
    function: Callable[..., Floats] = np.max if call.op.type == "reduce_max" else np.min
    return _reduced(call, function(x.low, axes, keepdims=True), function(x.high, axes, keepdims=True), axes)
