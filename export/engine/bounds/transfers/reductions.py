"""Sums, means and extremes over axes."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from coreflow.export.engine.bounds.bound import Bound, Squares, join
from coreflow.export.engine.bounds.registry import Call, transfer
from coreflow.export.engine.bounds.transfers.elementwise import square_of
from coreflow.export.package.graph import Value
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
    low, high = _sum(call, x.low, axes), _sum(call, x.high, axes)
    low = np.where(join(x.low, axes, least=True) >= 0, np.maximum(low - rounding, 0), low - rounding)
    high = np.where(join(x.high, axes) <= 0, np.minimum(high + rounding, 0), high + rounding)
    result = _reduced(call, low / divisor, high / divisor, axes)
    if x.squares is not None and x.squares.form == "square" and call.flag("keep_dims"):
        more = 1 + 2 * call.slack.relative * math.ceil(math.log2(max(2, count)))
        squares = x.squares
        result.squares = replace(
            squares, form="sum", axes=axes, weight=1 / divisor, factor=squares.factor * more, less=squares.less * count / divisor
        )
    return result


@transfer("reduce_sum_square", "reduce_l2_norm")
def length(call: Call) -> Bound:
    """The sum of the squares, and its root; no more than a ball allows."""
    x, axes = call["x"], _axes(call)
    call.note("square", x.largest)
    squares = square_of(x)
    low, high = _sum(call, squares.low, axes), _sum(call, squares.high, axes)
    if len(axes) == 1:
        high = np.minimum(high, np.square(x.ball(axes[0]).length(x.extent(axes[0]))))
    rounding = _rounding(call, high, _count(call, axes))
    low, high = np.maximum(low - rounding, 0), high + rounding
    is_root = call.op.type == "reduce_l2_norm"
    result = _reduced(call, np.sqrt(low), np.sqrt(high), axes) if is_root else _reduced(call, low, high, axes)
    value = call.op.inputs["x"]
    if call.flag("keep_dims") and isinstance(value, Value):
        more = 1 + 2 * call.slack.relative * (1 + math.ceil(math.log2(max(2, _count(call, axes)))))
        less = -call.slack.absolute * _count(call, axes)
        result.squares = Squares("root" if is_root else "sum", id(value), axes, weight=1.0, factor=more, less=less)
    return result


@transfer("reduce_l1_norm")
def sum_of_magnitudes(call: Call) -> Bound:
    """The sum of the magnitudes."""
    x, axes = call["x"], _axes(call)
    least = np.where((x.low <= 0) & (x.high >= 0), 0.0, np.minimum(np.abs(x.low), np.abs(x.high)))
    high = _sum(call, x.magnitude, axes)
    rounding = _rounding(call, high, _count(call, axes))
    return _reduced(call, np.maximum(_sum(call, least, axes) - rounding, 0), high + rounding, axes)


@transfer("reduce_log_sum_exp")
def log_sum_exp(call: Call) -> Bound:
    """Between the greatest element and that plus the log of their number."""
    x, axes = call["x"], _axes(call)
    call.note("exponent", x.highest)
    low, high = x.low.max(axes, keepdims=True), x.high.max(axes, keepdims=True)
    rounding = 4 * call.slack.relative * np.maximum(np.abs(low), np.abs(high)) + 1e-12
    return _reduced(call, low - rounding, high + math.log(max(1, _count(call, axes))) + rounding, axes)


@transfer("reduce_log_sum")
def log_sum(call: Call) -> Bound:
    """The log of the sum; without end where that may be 0."""
    x, axes = call["x"], _axes(call)
    rounding = _rounding(call, _sum(call, x.magnitude, axes), _count(call, axes))
    low, high = _sum(call, x.low, axes) - rounding, _sum(call, x.high, axes) + rounding
    return _reduced(call, np.where(low > 0, np.log(np.maximum(low, 1e-300)), -np.inf), np.log(np.maximum(high, 1e-300)), axes)


@transfer("reduce_prod")
def product(call: Call) -> Bound:
    """No larger than the product of the largest magnitudes, and not negative where none is."""
    x, axes = call["x"], _axes(call)
    count = _count(call, axes)
    high = np.power(x.magnitude.max(axes, keepdims=True), count)
    high = high * (1 + count * 2 * call.slack.relative)
    return _reduced(call, np.where(x.low.min(axes, keepdims=True) >= 0, 0.0, -high), high, axes)


@transfer("reduce_max", "reduce_min")
def extreme(call: Call) -> Bound:
    """The extreme of the ends."""
    x, axes = call["x"], _axes(call)
    function: Callable[..., Floats] = np.max if call.op.type == "reduce_max" else np.min
    return _reduced(call, function(x.low, axes, keepdims=True), function(x.high, axes, keepdims=True), axes)
