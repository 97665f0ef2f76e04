"""Norms and softmax: what they give is bounded whatever they read."""

import numpy as np

from coreflow.export.engine.bounds.bound import Ball, Bound, full
from coreflow.export.engine.bounds.registry import Call, transfer
from coreflow.models.arrays import Floats


def _vector(call: Call, name: str, default: float, shape: list[int]) -> Floats:
    array = call.array(name)
    return np.full([1] * len(shape), default) if array is None else np.asarray(array, np.float64).reshape(shape)


@transfer("layer_norm")
def layer_norm(call: Call) -> Bound:
    """beta + gamma * u with |u|_2 <= sqrt(n), so that |u_i| <= sqrt(n).

    An exact mean leaves |u_i| <= sqrt(n - 1); a rounded one does not cancel, and n is large.
    """
    x = call["x"]
    axes = sorted({x.axis(axis) for axis in call.integers("axes") or range(x.rank)})
    count = 1
    for axis in axes:
        count *= x.extent(axis)
    shape = [x.extent(axis) if axis in axes else 1 for axis in range(x.rank)]
    gamma, beta = np.abs(_vector(call, "gamma", 1.0, shape)), _vector(call, "beta", 0.0, shape)
    call.note("square", deviation(x, tuple(axes)))
    length = np.sqrt(count)

    def rule(axis: int, blocks: int) -> Ball | None:
        if axis not in axes or any(x.shape[other] != 1 for other in axes if other != axis):
            return None
        return Ball(axis, beta, gamma, np.full((1,) * x.rank, length), np.zeros((1,) * x.rank))

    return Bound(x.shape, beta - gamma * length, beta + gamma * length, rule=rule)


def deviation(x: Bound, axes: tuple[int, ...]) -> float:
    """The largest distance of an element from the mean over ``axes``."""
    low, high = x.low, x.high
    for axis in axes:
        low, high = full(low, axis, x.extent(axis)), full(high, axis, x.extent(axis))
    above = high - low.mean(axes, keepdims=True)
    below = high.mean(axes, keepdims=True) - low
    return float(np.nan_to_num(np.maximum(above, below), nan=np.inf, posinf=np.inf).max(initial=0.0))


@transfer("softmax")
def softmax(call: Call) -> Bound:
    """From 0 to 1, and shares of 1 along the axis."""
    x = call["x"]
    axis = x.axis(call.integer("axis", -1))
    relative, absolute = call.slack.of("softmax")
    excess = relative + absolute * (x.shape[axis] or 2**16)
    ones = np.ones((1,) * x.rank)
    return Bound(x.shape, 0 * ones, ones, shares=axis, excess=excess)
