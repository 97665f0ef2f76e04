"""Norms and softmax: what they give is bounded whatever they read."""

import numpy as np

from coreflow.export.engine.bounds.bound import Ball, Bound, UnboundedError, full
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


@transfer("instance_norm")
def instance_norm(call: Call) -> Bound:
    """beta + gamma * u of every channel, |u|_2 <= the root of the number of places."""
    x = call["x"]
    axes = tuple(range(2, x.rank))
    count = 1
    for axis in axes:
        count *= x.extent(axis)
    shape = [-1 if axis == 1 else 1 for axis in range(x.rank)]
    gamma, beta = (
        np.full([1] * x.rank, default) if (array := call.array(name)) is None else np.asarray(array, np.float64).reshape(shape)
        for name, default in (("gamma", 1.0), ("beta", 0.0))
    )
    call.note("square", deviation(x, axes))
    reach = np.abs(gamma) * np.sqrt(count)
    return Bound(x.shape, beta - reach, beta + reach)


@transfer("l2_norm")
def l2_norm(call: Call) -> Bound:
    """No element, and no length along an axis, exceeds 1."""
    x = call["x"]
    call.note("square", x.largest)
    one = np.ones((1,) * x.rank)

    def rule(axis: int, blocks: int) -> Ball | None:
        return Ball(axis, 0 * one, one, one, 0 * one) if axis >= x.rank - 3 else None

    spare = 4 * call.slack.relative
    low, high = np.where(x.low >= 0, 0.0, -1.0 - spare), np.where(x.high <= 0, 0.0, 1.0 + spare)
    return Bound(x.shape, low, high, rule=rule)


@transfer("local_response_norm")
def local_response_norm(call: Call) -> Bound:
    """No larger than x over the k that it is divided by at least."""
    x = call["x"]
    k, beta = call.number("k", 1.0), call.number("beta", 0.75)
    if k <= 0 or beta < 0 or call.number("alpha", 1e-4) < 0:
        raise UnboundedError("the divisor may be 0")
    call.note("square", x.largest)
    factor = k**-beta * (1 + 4 * call.slack.relative)
    return Bound(x.shape, np.minimum(x.low, 0) * factor, np.maximum(x.high, 0) * factor)
