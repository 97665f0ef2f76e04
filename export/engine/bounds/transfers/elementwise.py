"""Arithmetic, comparison and logic, element by element."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from coreflow.export.engine.bounds.bound import Ball, BallRule, Bound, aligned, middle_and_reach
from coreflow.export.engine.bounds.registry import Call, transfer
from coreflow.models.arrays import Bools, Floats


def _constant_ball(bound: Bound, axis: int, rank: int) -> Ball:
    """Intervals as a ball without radius."""
    middle, reach = middle_and_reach(aligned(bound.low, rank), aligned(bound.high, rank))
    one = np.ones((1,) * rank)
    return Ball(axis, middle, one, 0 * one, reach)


def _operand(bound: Bound, axis: int, rank: int, blocks: int) -> Ball:
    """A ball of an operand along an axis of the result; intervals alone where it is constant, or the same along that axis."""
    own = axis - (rank - bound.rank)
    if bound.data is not None or own < 0 or bound.shape[own] == 1:
        return _constant_ball(bound, axis, rank)
    ball = bound.known_ball(own, blocks)
    return _constant_ball(bound, axis, rank) if ball is None else ball.on(lambda array: aligned(array, rank), axis)


def _sum_rule(call: Call, sign: float) -> BallRule:
    x, y, rank = call["x"], call["y"], len(call.shape())

    def rule(axis: int, blocks: int) -> Ball | None:
        if all(operand.rule is None for operand in (x, y)):
            return None
        one, other = (_operand(operand, axis, rank, blocks) for operand in (x, y))
        centre, error = one.centre + sign * other.centre, one.error + other.error
        for ball, rest in ((one, other), (other, one)):
            if not rest.radius.any():
                return replace(ball, centre=centre, error=error)
        if one.blocks != other.blocks:
            one, other = one.merged(), other.merged()
        return Ball(axis, centre, np.ones((1,) * rank), one.radii() + other.radii(), error)

    return rule


@transfer("add")
def add(call: Call) -> Bound:
    """Ends are added, and so are balls."""
    x, y = call["x"], call["y"]
    return Bound(call.shape(), x.low + y.low, x.high + y.high, rule=_sum_rule(call, 1.0))


@transfer("sub")
def sub(call: Call) -> Bound:
    """Ends are subtracted crosswise."""
    x, y = call["x"], call["y"]
    return Bound(call.shape(), x.low - y.high, x.high - y.low, rule=_sum_rule(call, -1.0))


def products_of_ends(x: Bound, y: Bound) -> tuple[Floats, Floats]:
    """The least and the greatest product; 0 times what has no end is 0."""
    with np.errstate(invalid="ignore"):
        ends = [np.where((one == 0) | (other == 0), 0.0, one * other) for one in (x.low, x.high) for other in (y.low, y.high)]
    return np.minimum.reduce(np.broadcast_arrays(*ends)), np.maximum.reduce(np.broadcast_arrays(*ends))


@transfer("mul")
def mul(call: Call) -> Bound:
    """Products of ends; a ball is scaled by the largest magnitude of the other operand."""
    if call.same("x", "y"):
        return square_of(call["x"])
    x, y = call["x"], call["y"]
    low, high = products_of_ends(x, y)
    return Bound(call.shape(), low, high, rule=_product_rule(call))


def _product_rule(call: Call) -> BallRule:
    x, y, rank = call["x"], call["y"], len(call.shape())

    def rule(axis: int, blocks: int) -> Ball | None:
        balls = []
        for one, other in ((x, y), (y, x)):
            if one.rule is None:
                continue
            ball = _operand(one, axis, rank, blocks)
            middle, reach = middle_and_reach(aligned(other.low, rank), aligned(other.high, rank))
            largest = aligned(other.magnitude, rank)
            error = np.abs(ball.centre) * reach + ball.error * largest
            balls.append(Ball(axis, ball.centre * middle, ball.scale * largest, ball.radius, error))
        return min(balls, key=lambda ball: float(ball.length(_extent(call, axis)).max()), default=None)

    return rule


def _extent(call: Call, axis: int) -> int:
    return call.shape()[axis] or 1


def square_of(x: Bound) -> Bound:
    """x * x."""
    ends = np.square(x.low), np.square(x.high)
    least = np.where((x.low <= 0) & (x.high >= 0), 0.0, np.minimum(*ends))
    return Bound(x.shape, least, np.maximum(*ends))


@transfer("square")
def square(call: Call) -> Bound:
    """The square of ends, 0 where 0 lies between."""
    return square_of(call["x"])


@transfer("real_div")
def real_div(call: Call) -> Bound:
    """Quotients of ends; nothing is known where a divisor may be 0."""
    x, y = call["x"], call["y"]
    if call.op.outputs[0].dtype.startswith(("int", "uint")):
        low, high = products_of_ends(x, _reciprocal(y))
        return Bound(call.shape(), np.trunc(low - 1e-9), np.trunc(high + 1e-9))
    low, high = products_of_ends(x, _reciprocal(y))
    return Bound(call.shape(), low, high)


def _reciprocal(y: Bound) -> Bound:
    holds_zero = (y.low <= 0) & (y.high >= 0)
    with np.errstate(divide="ignore"):
        return Bound(y.shape, np.where(holds_zero, -np.inf, 1 / y.high), np.where(holds_zero, np.inf, 1 / y.low))


@transfer("maximum")
def maximum(call: Call) -> Bound:
    """The greater ends."""
    x, y = call["x"], call["y"]
    return Bound(call.shape(), np.maximum(x.low, y.low), np.maximum(x.high, y.high))


@transfer("minimum")
def minimum(call: Call) -> Bound:
    """The lesser ends."""
    x, y = call["x"], call["y"]
    return Bound(call.shape(), np.minimum(x.low, y.low), np.minimum(x.high, y.high))


@transfer("select")
def select(call: Call) -> Bound:
    """The ends of what may be chosen."""
    cond, a, b = call["cond"], call["a"], call["b"]
    low = np.where(cond.low >= 1, a.low, np.where(cond.high <= 0, b.low, np.minimum(a.low, b.low)))
    high = np.where(cond.low >= 1, a.high, np.where(cond.high <= 0, b.high, np.maximum(a.high, b.high)))
    return Bound(call.shape(), low, high)


@transfer("cast")
def cast(call: Call) -> Bound:
    """Whole numbers towards zero, truth values as 0 and 1; small integer types wrap around."""
    x, dtype = call["x"], call.text("dtype", "")
    if dtype == "bool":
        zero, other = (x.low == 0) & (x.high == 0), (x.low > 0) | (x.high < 0)
        return Bound(x.shape, np.where(other, 1.0, 0.0), np.where(zero, 0.0, 1.0))
    if dtype.startswith("fp"):
        return Bound(x.shape, x.low, x.high, rule=x.rule, shares=x.shares, excess=x.excess)
    low, high = np.trunc(x.low), np.trunc(x.high)
    least, greatest = _INTEGERS.get(dtype, _INTEGERS["int32"])
    fits = (low >= least) & (high <= greatest)
    return Bound(x.shape, np.where(fits, low, least), np.where(fits, high, greatest))


_INTEGERS = {
    "int8": (-128.0, 127.0),
    "uint8": (0.0, 255.0),
    "int16": (-32768.0, 32767.0),
    "uint16": (0.0, 65535.0),
    "int32": (-(2.0**31), 2.0**31 - 1),
    "uint32": (0.0, 2.0**32 - 1),
}

Surely = Callable[[Bound, Bound], Bools]  # where the comparison holds of all elements, whatever they are

_COMPARISONS: dict[str, tuple[Surely, Surely]] = {
    "equal": (lambda x, y: (x.low == x.high) & (y.low == y.high) & (x.low == y.low), lambda x, y: (x.low > y.high) | (x.high < y.low)),
    "greater": (lambda x, y: x.low > y.high, lambda x, y: x.high <= y.low),
    "greater_equal": (lambda x, y: x.low >= y.high, lambda x, y: x.high < y.low),
    "less": (lambda x, y: x.high < y.low, lambda x, y: x.low >= y.high),
    "less_equal": (lambda x, y: x.high <= y.low, lambda x, y: x.low > y.high),
    "logical_and": (lambda x, y: (x.low >= 1) & (y.low >= 1), lambda x, y: (x.high <= 0) | (y.high <= 0)),
    "logical_or": (lambda x, y: (x.low >= 1) | (y.low >= 1), lambda x, y: (x.high <= 0) & (y.high <= 0)),
}
_COMPARISONS["not_equal"] = _COMPARISONS["equal"][::-1]


@transfer(*_COMPARISONS)
def comparison(call: Call) -> Bound:
    """0 or 1 where the intervals decide, else both."""
    holds, fails = _COMPARISONS[call.op.type]
    x, y = call["x"], call["y"]
    return Bound(call.shape(), np.where(holds(x, y), 1.0, 0.0), np.where(fails(x, y), 0.0, 1.0))


@transfer("logical_not")
def logical_not(call: Call) -> Bound:
    """1 less."""
    x = call["x"]
    return Bound(x.shape, 1 - x.high, 1 - x.low)


@transfer("logical_xor")
def logical_xor(call: Call) -> Bound:
    """A truth value."""
    ones = np.ones((1,) * len(call.shape()))
    return Bound(call.shape(), 0 * ones, ones)
