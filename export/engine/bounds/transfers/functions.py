"""Functions of one number: activations, roots, exponentials."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from coreflow.export.engine.bounds.bound import Ball, BallRule, Bound
from coreflow.export.engine.bounds.registry import Call, transfer
from coreflow.export.engine.bounds.transfers.elementwise import stored_down
from coreflow.models.arrays import Floats

Function = Callable[[Floats], Floats]

_erf: Function = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Floats) -> Floats:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def _softplus(x: Floats) -> Floats:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _times(x: Floats, factor: Floats) -> Floats:
    return np.where(factor == 0, 0.0, x * factor)  # of minus infinity the limit


_GELU = {
    "EXACT": lambda x: _times(x, (1 + _erf(x / math.sqrt(2))) / 2),
    "TANH_APPROXIMATION": lambda x: _times(x, (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2),
    "SIGMOID_APPROXIMATION": lambda x: _times(x, _sigmoid(1.702 * x)),
}


@dataclass(frozen=True, slots=True)
class Curve:
    """A function that falls up to ``turn`` and rises from there, or only rises; ``slope`` is its greatest, None where it has none.

    ``shrinks``: no result is larger than its argument, though the slope exceeds 1.

    >>> Curve(np.tanh, slope=1.0).limits(np.array([-1.0]), np.array([2.0]))
    """

    function: Function
    slope: float | None = None
    turn: float = -math.inf
    shrinks: bool = False

    def limits(self, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        """The least and the greatest value between two ends."""
        with np.errstate(all="ignore"):
            ends = self.function(low), self.function(high)
            least = np.minimum(*ends)
            if self.turn > -math.inf:
                least = np.where((low < self.turn) & (self.turn < high), _least_of(self), least)
        return least, np.maximum(*ends)

    def rule(self, x: Bound) -> BallRule | None:
        """Balls go through a function of bounded slope: its change is at most ``slope`` times that of x."""
        slope = self.slope
        if x.rule is None or slope is None:
            return None

        def rule(axis: int, blocks: int) -> Ball | None:
            ball = x.known_ball(axis, blocks)
            if ball is None:
                return None
            factor = 1.0 if self.shrinks and not ball.centre.any() else slope
            return replace(ball, centre=self.function(ball.centre), scale=factor * ball.scale, error=factor * ball.error)

        return rule

    def of(self, x: Bound) -> Bound:
        """The bound of the function of ``x``."""
        low, high = self.limits(x.low, x.high)
        return Bound(x.shape, low, high, rule=self.rule(x))


@cache
def _least_of(curve: Curve) -> Floats:
    """The value (1,) where a curve turns."""
    return curve.function(np.array([curve.turn]))


# Where gelu and silu turn, and their greatest slopes: zeros of their first and second derivatives, slopes rounded up.
_TURN = {"EXACT": -0.7517915249, "TANH_APPROXIMATION": -0.7524614225, "SIGMOID_APPROXIMATION": -1.2784645428 / 1.702}
_GELU_CURVES = {mode: Curve(function, 1.13, _TURN[mode], shrinks=True) for mode, function in _GELU.items()}
_CURVES: dict[str, Curve] = {
    "abs": Curve(np.abs, 1.0, 0.0),
    "asin": Curve(np.arcsin),
    "atan": Curve(np.arctan, 1.0),
    "atanh": Curve(np.arctanh),
    "ceil": Curve(np.ceil),
    "cosh": Curve(np.cosh, None, 0.0),
    "erf": Curve(_erf, 1.1284),
    "exp": Curve(np.exp),
    "exp2": Curve(np.exp2),
    "floor": Curve(np.floor),
    "relu": Curve(lambda x: np.maximum(x, 0), 1.0),
    "relu6": Curve(lambda x: np.clip(x, 0, 6), 1.0),
    "round": Curve(np.round),
    "sigmoid": Curve(_sigmoid, 0.25),
    "sign": Curve(np.sign),
    "silu": Curve(lambda x: _times(x, _sigmoid(x)), 1.1, -1.2784645428, shrinks=True),
    "sinh": Curve(np.sinh),
    "softplus": Curve(_softplus, 1.0),
    "softsign": Curve(lambda x: np.where(np.isinf(x), np.sign(x), x / (1 + np.abs(x))), 1.0),
    "tanh": Curve(np.tanh, 1.0),
}


@transfer(*_CURVES)
def curve(call: Call) -> Bound:
    """The function of the ends, and of the place where it turns."""
    x = call["x"]
    if call.op.type == "exp":
        call.note("exponent", x.highest)
    return _CURVES[call.op.type].of(x)


@transfer("gelu")
def gelu(call: Call) -> Bound:
    """Its three forms turn at places of their own."""
    return _GELU_CURVES[call.text("mode", "EXACT")].of(call["x"])


@transfer("sqrt")
def sqrt(call: Call) -> Bound:
    """Of what may be negative nothing is known below 0; of a sum of squares it is a length."""
    x = call["x"]
    squares = replace(x.squares, form="root") if x.squares is not None and x.squares.form == "sum" else None
    low, high = np.sqrt(np.maximum(x.low, 0)), np.sqrt(np.maximum(x.high, 0))
    return Bound(x.shape, low, high, squares=squares)


@transfer("rsqrt")
def rsqrt(call: Call) -> Bound:
    """1 / sqrt(x + epsilon), epsilon as fp16 stores it; without end where that may be 0. Of a sum of squares the inverse of a length."""
    x, epsilon = call["x"], stored_down(call, call.number("epsilon", 1e-12))
    squares = None
    if x.squares is not None and x.squares.form == "sum":
        squares = replace(x.squares, form="inverse", less=x.squares.less + x.squares.factor * epsilon)
    return Bound(x.shape, 1 / np.sqrt(np.maximum(x.high + epsilon, 0)), _inverse_end(x.low + epsilon, np.sqrt), squares=squares)


@transfer("inverse")
def inverse(call: Call) -> Bound:
    """1 / (x + epsilon)."""
    x, epsilon = call["x"], stored_down(call, call.number("epsilon", 1e-4))
    low, high = x.low + epsilon, x.high + epsilon
    holds_zero = (low <= 0) & (high >= 0)
    return Bound(x.shape, np.where(holds_zero, -np.inf, 1 / high), np.where(holds_zero, np.inf, 1 / low))


@transfer("log")
def log(call: Call) -> Bound:
    """log(x + epsilon); without end where that may be 0."""
    x, epsilon = call["x"], stored_down(call, call.number("epsilon", 1e-45))
    low, high = x.low + epsilon, x.high + epsilon
    return Bound(x.shape, np.where(low > 0, np.log(np.maximum(low, 1e-300)), -np.inf), np.log(np.maximum(high, 1e-300)))


def _inverse_end(low: Floats, root: Function) -> Floats:
    return np.where(low > 0, 1 / root(np.where(low > 0, low, 1.0)), np.inf)


@transfer("sin", "cos")
def wave(call: Call) -> Bound:
    """From -1 to 1, wherever the argument is."""
    x = call["x"]
    ones = np.ones((1,) * x.rank)
    return Bound(x.shape, -ones, ones)


@transfer("acos")
def acos(call: Call) -> Bound:
    """It falls."""
    x = call["x"]
    return Bound(x.shape, np.arccos(np.clip(x.high, -1, 1)), np.arccos(np.clip(x.low, -1, 1)))


@transfer("leaky_relu")
def leaky_relu(call: Call) -> Bound:
    """Two slopes; a negative one turns at 0."""
    alpha = call.number("alpha", 0.0)
    function: Function = lambda x: np.where(x >= 0, x, alpha * x)  # noqa: E731
    return Curve(function, max(1.0, abs(alpha)), 0.0 if alpha < 0 else -math.inf).of(call["x"])


@transfer("elu")
def elu(call: Call) -> Bound:
    """Of a negative alpha it turns at 0."""
    alpha = call.number("alpha", 1.0)
    function: Function = lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))  # noqa: E731
    return Curve(function, max(1.0, abs(alpha)), 0.0 if alpha < 0 else -math.inf).of(call["x"])


@transfer("thresholded_relu")
def thresholded_relu(call: Call) -> Bound:
    """x from alpha on, 0 below."""
    x, alpha = call["x"], call.number("alpha", 0.0)
    kept_low, kept_high = np.maximum(x.low, alpha), np.maximum(x.high, alpha)
    may_be_zero, may_be_kept = x.low < alpha, x.high >= alpha
    low = np.where(may_be_kept, np.where(may_be_zero, np.minimum(kept_low, 0), kept_low), 0.0)
    high = np.where(may_be_kept, np.where(may_be_zero, np.maximum(kept_high, 0), kept_high), 0.0)
    return Bound(x.shape, low, high)


@transfer("clamped_relu")
def clamped_relu(call: Call) -> Bound:
    """min(x, beta) from 0 on, min(alpha x, beta) below; of a negative alpha it turns at 0."""
    alpha, beta = call.number("alpha", 0.0), call.number("beta", np.inf)
    function: Function = lambda x: np.minimum(np.where(x >= 0, x, alpha * x), beta)  # noqa: E731
    return Curve(function, max(1.0, abs(alpha)), 0.0 if alpha < 0 else -math.inf).of(call["x"])


@transfer("prelu")
def prelu(call: Call) -> Bound:
    """A slope a channel below 0."""
    x, alpha = call["x"], call["alpha"]
    slope_low, slope_high = (end.reshape([-1 if axis == 1 else 1 for axis in range(x.rank)]) for end in (alpha.low, alpha.high))
    ends = [np.where(end > 0, end, end * slope) for end in (x.low, x.high) for slope in (slope_low, slope_high)]
    low, high = np.minimum.reduce(np.broadcast_arrays(*ends)), np.maximum.reduce(np.broadcast_arrays(*ends))
    holds_zero = (x.low < 0) & (x.high > 0)
    return Bound(x.shape, np.where(holds_zero, np.minimum(low, 0), low), np.where(holds_zero, np.maximum(high, 0), high))


@transfer("linear_activation", "sigmoid_hard", "scaled_tanh")
def scaled(call: Call) -> Bound:
    """alpha x + beta, the same from 0 to 1, and alpha tanh(beta x): each rises or falls."""
    x, alpha, beta = call["x"], call.number("alpha", 1.0), call.number("beta", 0.0)
    forms: dict[str, Function] = {
        "linear_activation": lambda x: alpha * x + beta,
        "sigmoid_hard": lambda x: np.clip(alpha * x + beta, 0, 1),
        "scaled_tanh": lambda x: alpha * np.tanh(beta * x),
    }
    one, other = (forms[call.op.type](end) for end in (x.low, x.high))
    spare = call.slack.relative * np.maximum(np.abs(one), np.abs(other)) + call.slack.relative * abs(beta)
    return Bound(x.shape, np.minimum(one, other) - spare, np.maximum(one, other) + spare)


@transfer("clip", "threshold")
def clip(call: Call) -> Bound:
    """Within two numbers, or not below one; a length that is not cut from above is one still."""
    x, low, high = call["x"], call.number("alpha", -np.inf), call.number("beta", np.inf)
    result = Curve(lambda x: np.clip(x, low, high), 1.0).of(x)
    if x.squares is not None and x.squares.form != "inverse" and x.highest <= high:
        result.squares = x.squares
    return result
