"""Arithmetic, comparison and logic, element by element."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from coreflow.export.engine.bounds.bound import Ball, BallRule, Bound, Squares, UnboundedError, aligned, middle_and_reach
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
    if bound.fetch is not None or own < 0 or bound.shape[own] == 1:
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
    """Ends are added, and so are balls; a sum of squares plus epsilon tells a length, too."""
    x, y = call["x"], call["y"]
    result = Bound(call.shape(), x.low + y.low, x.high + y.high, rule=_sum_rule(call, 1.0))
    for one, epsilon in ((x, y), (y, x)):
        if one.squares is not None and one.squares.form in ("square", "sum") and epsilon.lowest >= 0 and one.shape == result.shape:
            result.squares = replace(one.squares, less=one.squares.less + one.squares.factor * stored_down(call, epsilon.lowest))
    return result


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
        return squared(call)
    x, y = call["x"], call["y"]
    low, high = products_of_ends(x, y)
    result = Bound(call.shape(), low, high, rule=_product_rule(call))
    for name, other in (("x", y), ("y", x)):
        if other.squares is not None and other.squares.form == "inverse":
            result = of_length(call, result, name, other.squares, other.highest) or result
    return result


def of_length(call: Call, result: Bound, name: str, squares: Squares, largest: float) -> Bound | None:
    """``result``, an argument times the inverse of its length, with the length that it has; ``largest`` is that of the inverse.

    With weight * sum of x^2 <= factor / t^2 - less it is weight * sum of (x t)^2 <= factor - less * t^2.
    """
    value = call.op.inputs[name]
    total = squares.factor + max(0.0, -squares.less) * largest**2
    if id(value) != squares.source or not np.isfinite(total):
        return None
    length = np.sqrt(total / squares.weight)
    one = np.ones((1,) * result.rank)

    def rule(axis: int, blocks: int) -> Ball | None:
        if axis not in squares.axes or any(result.shape[other] != 1 for other in squares.axes if other != axis):
            return None
        return Ball(axis, 0 * one, one, length * one, 0 * one)

    return Bound(result.shape, np.maximum(result.low, -length), np.minimum(result.high, length), rule=rule)


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


def squared(call: Call) -> Bound:
    """The square of the argument x, which tells its length."""
    result, value = square_of(call["x"]), call.op.inputs["x"]
    result.squares = Squares("square", id(value), axes=(), weight=1.0, factor=1.0, less=0.0)
    return result


def stored_down(call: Call, epsilon: float) -> float:
    """The least that a small number is as fp16 stores it: 0 below 2^-24."""
    if not call.slack.product or call.op.outputs[0].dtype != "float16":
        return epsilon
    return epsilon * (1 - call.slack.relative) if epsilon >= 2.0**-24 else 0.0


@transfer("square")
def square(call: Call) -> Bound:
    """The square of ends, 0 where 0 lies between."""
    return squared(call)


@transfer("pow")
def power(call: Call) -> Bound:
    """A square as such; of positive numbers the powers of ends; of others the magnitude for a whole exponent from 0 on."""
    x, exponent = call["x"], call.array("y")
    if exponent is not None and exponent.size == 1:
        number = float(exponent.reshape(-1)[0])
        if number == 2:
            return squared(call)
        if number.is_integer() and number >= 0:
            high = np.power(x.magnitude, number)
            return Bound(call.shape(), np.where(x.low >= 0, np.power(np.maximum(x.low, 0), number), -high if number % 2 else 0.0), high)
    if x.lowest <= 0:
        raise UnboundedError("a power of what may be 0 or negative")
    y = call["y"]
    ends = np.broadcast_arrays(*(np.power(base, up) for base in (x.low, x.high) for up in (y.low, y.high)))
    low, high = np.minimum.reduce(ends), np.maximum.reduce(ends)
    return Bound(call.shape(), low * (1 - 1e-9), high * (1 + 1e-9))


@transfer("mod")
def remainder(call: Call) -> Bound:
    """Less than the divisor, with its sign."""
    y = call["y"]
    ones = np.ones((1,) * len(call.shape()))
    return Bound(call.shape(), min(y.lowest, 0.0) * ones, max(y.highest, 0.0) * ones)


@transfer("floor_div")
def floor_div(call: Call) -> Bound:
    """The floor of quotients of ends."""
    low, high = products_of_ends(call["x"], _reciprocal(call["y"]))
    return Bound(call.shape(), np.floor(low - 1e-9), np.floor(high + 1e-9))


@transfer("real_div")
def real_div(call: Call) -> Bound:
    """Quotients of ends; nothing is known where a divisor may be 0."""
    x, y = call["x"], call["y"]
    if call.op.outputs[0].dtype.startswith(("int", "uint")):
        low, high = products_of_ends(x, _reciprocal(y))
        return Bound(call.shape(), np.trunc(low - 1e-9), np.trunc(high + 1e-9))
    low, high = products_of_ends(x, _reciprocal(y))
    result = Bound(call.shape(), low, high)
    if y.squares is not None and y.squares.form == "root" and y.lowest > 0:
        return of_length(call, result, "x", y.squares, 1 / y.lowest) or result
    return result


def _reciprocal(y: Bound) -> Bound:
    holds_zero = (y.low <= 0) & (y.high >= 0)
    with np.errstate(divide="ignore"):
        return Bound(y.shape, np.where(holds_zero, -np.inf, 1 / y.high), np.where(holds_zero, np.inf, 1 / y.low))


@transfer("maximum")
def maximum(call: Call) -> Bound:
    """The greater ends."""
    x, y = call["x"], call["y"]
    squares = next((one.squares for one in (x, y) if one.squares is not None and one.squares.form != "inverse"), None)
    return Bound(call.shape(), np.maximum(x.low, y.low), np.maximum(x.high, y.high), squares=squares)


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
