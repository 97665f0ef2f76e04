"""Functions of one number: activations, roots, exponentials."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from coreflow.export.engine.bounds.bound import Ball, BallRule, Bound
from coreflow.export.engine.bounds.registry import Call, transfer
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

    >>> Curve(np.tanh, slope=1.0).limits(np.array([-1.0]), np.array([2.0]))
    """

    function: Function
    slope: float | None = None
    turn: float = -math.inf

    def limits(self, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        """The least and the greatest value between two ends."""
        with np.errstate(all="ignore"):
            ends = self.function(low), self.function(high)
            least = self.function(np.clip(self.turn, low, high)) if self.turn > -math.inf else ends[0]
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
            factor = min(slope, 1.0) if not ball.centre.any() and self._is_below_identity() else slope
            return replace(ball, centre=self.function(ball.centre), scale=factor * ball.scale, error=factor * ball.error)

        return rule

    def _is_below_identity(self) -> bool:
        """Whether |f(x)| <= |x|, as of every activation here that is 0 at 0 and has a slope of at most 1.13."""
        return self.slope is not None and self.slope < 1.2 and float(self.function(np.zeros(1))[0]) == 0.0

    def of(self, x: Bound) -> Bound:
        """The bound of the function of ``x``."""
        low, high = self.limits(x.low, x.high)
        return Bound(x.shape, low, high, rule=self.rule(x))


# Where gelu and silu turn, and their greatest slopes: zeros of their first and second derivatives, slopes rounded up.
_TURN = {"EXACT": -0.7517915249, "TANH_APPROXIMATION": -0.7524614225, "SIGMOID_APPROXIMATION": -1.2784645428 / 1.702}
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
    "silu": Curve(lambda x: _times(x, _sigmoid(x)), 1.1, -1.2784645428),
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
    mode = call.text("mode", "EXACT")
    return Curve(_GELU[mode], 1.13, _TURN[mode]).of(call["x"])


@transfer("sqrt")
def sqrt(call: Call) -> Bound:
    """Of what may be negative nothing is known below 0."""
    x = call["x"]
    return Bound(x.shape, np.sqrt(np.maximum(x.low, 0)), np.where(x.low < 0, np.inf, np.sqrt(np.maximum(x.high, 0))))


@transfer("rsqrt")
def rsqrt(call: Call) -> Bound:
    """1 / sqrt(x + epsilon), epsilon as fp16 stores it; without end where that may be 0."""
    x, epsilon = call["x"], stored_epsilon(call, 1e-12)
    return Bound(x.shape, 1 / np.sqrt(np.maximum(x.high + epsilon, 0)), _inverse_end(x.low + epsilon, np.sqrt))


@transfer("inverse")
def inverse(call: Call) -> Bound:
    """1 / (x + epsilon)."""
    x, epsilon = call["x"], stored_epsilon(call, 1e-4)
    low, high = x.low + epsilon, x.high + epsilon
    holds_zero = (low <= 0) & (high >= 0)
    return Bound(x.shape, np.where(holds_zero, -np.inf, 1 / high), np.where(holds_zero, np.inf, 1 / low))


@transfer("log")
def log(call: Call) -> Bound:
    """log(x + epsilon); without end where that may be 0."""
    x, epsilon = call["x"], stored_epsilon(call, 1e-45)
    low, high = x.low + epsilon, x.high + epsilon
    return Bound(x.shape, np.where(low > 0, np.log(np.maximum(low, 1e-300)), -np.inf), np.log(np.maximum(high, 1e-300)))


def stored_epsilon(call: Call, default: float) -> float:
    """The epsilon of an op, rounded down to fp16 where results are stored so: one below 2^-24 is 0."""
    epsilon = call.number("epsilon", default)
    if not call.slack.product or call.op.outputs[0].dtype != "float16":
        return epsilon
    return epsilon * (1 - call.slack.relative) if epsilon >= 2.0**-24 else 0.0


def _inverse_end(low: Floats, root: Function) -> Floats:
    return np.where(low > 0, 1 / root(np.where(low > 0, low, 1.0)), np.inf)


@transfer("sin", "cos")
def wave(call: Call) -> Bound:
    """From -1 to 1, wherever the argument is."""
    x = call["x"]
    ones = np.ones((1,) * x.rank)
    return Bound(x.shape, -ones, ones)


@transfer("clip")
def clip(call: Call) -> Bound:
    """Within two numbers."""
    low, high = call.number("alpha", -np.inf), call.number("beta", np.inf)
    return Curve(lambda x: np.clip(x, low, high), 1.0).of(call["x"])


@transfer("threshold")
def threshold(call: Call) -> Bound:
    """Not below a number."""
    low = call.number("alpha", -np.inf)
    return Curve(lambda x: np.maximum(x, low), 1.0).of(call["x"])
