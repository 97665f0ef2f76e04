"""Laws of arithmetic, comparison, logic, casts and activations: every broadcast of every rank, and numbers of every size."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import special

if TYPE_CHECKING:
    from tests.runtime.lift.laws.conftest import Draw, InferOp, Law, RunOp

Arguments = dict[str, Any]


def one(low: float | None = None, high: float | None = None, *, whole: bool = False) -> Callable[["Draw"], Arguments]:
    """x of any shape, within limits if there are any; ``whole``: integers too."""

    def arguments(draw: "Draw") -> Arguments:
        shape = draw.shape(0, 5)
        if whole and draw.flag():
            return {"x": draw.ints(*shape)}
        return {"x": draw.floats(*shape, low=low, high=high)}

    return arguments


def two(draw: "Draw") -> Arguments:
    a, b = draw.broadcastable(2)
    make = draw.one((draw.floats, draw.ints))
    return {"x": make(*a), "y": make(*b)}


def division(draw: "Draw") -> Arguments:
    a, b = draw.broadcastable(2)
    if draw.flag():
        y = draw.ints(*b)
        return {"x": draw.ints(*a, low=-20, high=20), "y": np.where(y == 0, 7, y).astype(np.int32)}
    y = draw.floats(*b)
    return {"x": draw.floats(*a), "y": np.where(np.abs(y) < 0.1, np.float32(0.7), y)}


def power(draw: "Draw") -> Arguments:
    a, b = draw.broadcastable(2)
    if draw.flag():
        return {"x": draw.ints(*a), "y": draw.ints(*b, low=0, high=3)}
    return {"x": draw.floats(*a, low=0.1, high=4), "y": draw.floats(*b)}


def truths(draw: "Draw") -> Arguments:
    a, b = draw.broadcastable(2)
    return {"x": draw.bools(*a), "y": draw.bools(*b)}


def choice(draw: "Draw") -> Arguments:
    """MIL leaves ``cond`` out when it infers the shape, against its own documentation: here ``cond`` adds nothing to it."""
    condition, a = draw.broadcastable(2)
    make = draw.one((draw.floats, draw.ints, draw.bools))
    values = [make(*a), make(*np.broadcast_shapes(condition, a))]
    first = draw.whole(0, 1)
    return {"cond": draw.bools(*condition), "a": values[first], "b": values[1 - first]}


def cast(draw: "Draw") -> Arguments:
    opset = draw.since("CoreML5")
    names = ["fp16", "fp32", "int32", "bool"] + (["int8", "uint8", "int16", "uint16"] if opset >= "CoreML7" else [])
    shape = draw.shape(0, 5)
    numbers = draw.ints(*shape, low=0, high=100)
    return {"x": draw.one((numbers, numbers + np.float32(0.25), draw.bools(*shape))), "dtype": draw.one(names), "opset": opset}


def clip(draw: "Draw") -> Arguments:
    low = float(draw.floats(1)[0])
    return {"x": draw.floats(*draw.shape(0, 5)), "alpha": low, "beta": low + draw.one([0.25, 3.0])}


def threshold(draw: "Draw") -> Arguments:
    if draw.flag():
        return {"x": draw.ints(*draw.shape(0, 5)), "alpha": np.int32(draw.whole(-3, 3))}
    return {"x": draw.floats(*draw.shape(0, 5)), "alpha": float(draw.floats(1)[0])}


def offset(draw: "Draw") -> Arguments:
    """Positive x, with and without an epsilon."""
    return {"x": draw.floats(*draw.shape(0, 5), low=0.1, high=9), "epsilon": draw.one([None, 0.5, 1e-3])}


def parameters(*names: str) -> Callable[["Draw"], Arguments]:
    return lambda draw: {"x": draw.floats(*draw.shape(1, 5)), **{name: float(draw.floats(1)[0]) for name in names}}


def clamped(draw: "Draw") -> Arguments:
    return {"x": draw.floats(*draw.shape(1, 5)), "alpha": float(draw.floats(1)[0]), "beta": draw.one([0.5, 2.0])}


def per_channel(*names: str) -> Callable[["Draw"], Arguments]:
    def arguments(draw: "Draw") -> Arguments:
        shape = draw.shape(3, 5)
        make = draw.floats if len(shape) == 4 else lambda extent: np.full(extent, draw.floats(1)[0])  # MIL's own rule for prelu
        return {"x": draw.floats(*shape), **{name: make(shape[1]) for name in names}}

    return arguments


def gelu(draw: "Draw") -> Arguments:
    return {"x": draw.floats(*draw.shape(0, 5)), "mode": draw.one([None, "EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"])}


LAWS: dict[str, Callable[["Draw"], Arguments]] = {
    **dict.fromkeys(("acos", "asin", "atanh"), one(-0.99, 0.99)),
    **dict.fromkeys(("atan", "ceil", "cos", "cosh", "erf", "exp", "floor", "sin", "sinh", "tanh"), one()),
    **dict.fromkeys(("relu", "relu6", "round", "sigmoid", "softplus", "softsign", "silu"), one(-8, 8)),
    **dict.fromkeys(("abs", "sign", "square", "exp2"), one(whole=True)),
    "tan": one(-1.5, 1.5),
    "sqrt": one(0, 9),
    **dict.fromkeys(("add", "sub", "mul", "maximum", "minimum", "equal", "not_equal"), two),
    **dict.fromkeys(("greater", "greater_equal", "less", "less_equal"), two),
    **dict.fromkeys(("real_div", "floor_div", "mod"), division),
    "pow": power,
    **dict.fromkeys(("logical_and", "logical_or", "logical_xor"), truths),
    "logical_not": lambda draw: {"x": draw.bools(*draw.shape(0, 5))},
    "select": choice,
    "cast": cast,
    "clip": clip,
    "threshold": threshold,
    **dict.fromkeys(("inverse", "log", "rsqrt"), offset),
    **dict.fromkeys(("elu", "leaky_relu", "thresholded_relu"), parameters("alpha")),
    **dict.fromkeys(("linear_activation", "scaled_tanh", "sigmoid_hard"), parameters("alpha", "beta")),
    "clamped_relu": clamped,
    "prelu": per_channel("alpha"),
    "softplus_parametric": per_channel("alpha", "beta"),
    "gelu": gelu,
}
ORACLES: dict[str, Callable[..., Any]] = {"silu": lambda x: x * special.expit(x)}


@pytest.mark.parametrize("op", LAWS)
def test_results_are_those_that_mil_infers(law: "Law", op: str) -> None:
    law.agrees_with_mil(op, LAWS[op], ORACLES.get(op))


# Not where a quotient is cut to a whole number: there its last digit decides.
@pytest.mark.parametrize("op", [op for op in LAWS if op not in ("floor_div", "mod")])
def test_fp16_is_rounded_once(law: "Law", op: str) -> None:
    law.rounds_to_fp16(op, LAWS[op])


SPECIAL = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1, -1, 65504, -65504, 6e-8, -6e-8, 0.5, 2.5, -2.5], np.float32)
OPTIONS: tuple[tuple[str, Arguments], ...] = (
    ("abs acos asin atan atanh ceil cos cosh erf exp exp2 floor round sign sin sinh sqrt square tan tanh relu relu6 sigmoid softplus", {}),
    ("softsign inverse log rsqrt softmax gelu cumsum reduce_argmax reduce_argmin non_zero", {}),
    ("elu leaky_relu thresholded_relu threshold", {"alpha": 0.5}),
    ("linear_activation scaled_tanh sigmoid_hard", {"alpha": 2.0, "beta": 1.0}),
    ("clamped_relu clip", {"alpha": -0.5, "beta": 1.0}),
    ("reduce_sum reduce_mean reduce_max reduce_min reduce_prod reduce_l1_norm reduce_l2_norm reduce_sum_square", {"axes": [-1]}),
    ("cast", {"dtype": "bool"}),
)
GO_THROUGH = {op: options for ops, options in OPTIONS for op in ops.split()}


@pytest.mark.parametrize("op", GO_THROUGH)
def test_nan_infinities_and_zeros_go_through_one_op_as_in_mil(run_op: "RunOp", infer_op: "InferOp", op: str) -> None:
    """A NaN that an op swallowed would be missed when outputs are searched for it."""
    for x in (SPECIAL, SPECIAL[1:], SPECIAL[3:]):
        (reference,) = infer_op(op, {"x": x, **GO_THROUGH[op]}, "CoreML6")
        (actual,) = run_op(op, {"x": x, **GO_THROUGH[op]}, opset="CoreML6", numerics="fp32")
        np.testing.assert_allclose(actual, reference.value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", [op for op, arguments in LAWS.items() if arguments in (two, division, power)])
def test_nan_infinities_and_zeros_go_through_two_operands_as_in_mil(run_op: "RunOp", infer_op: "InferOp", op: str) -> None:
    arguments = {"x": SPECIAL[:, None], "y": SPECIAL}
    (reference,) = infer_op(op, arguments, "CoreML6")
    (actual,) = run_op(op, arguments, opset="CoreML6", numerics="fp32")
    np.testing.assert_allclose(actual, reference.value, rtol=1e-5, atol=1e-6)


# Formulas that neither overflow nor lose their small results, in float64.
STABLE: dict[str, tuple[Callable[..., Any], Arguments]] = {
    "sigmoid": (special.expit, {}),
    "tanh": (np.tanh, {}),
    "softplus": (lambda x: np.logaddexp(0, x), {}),
    "softplus_parametric": (lambda x: np.logaddexp(0, 2 * x), {"alpha": np.ones(1, np.float32), "beta": np.full(1, 2, np.float32)}),
    "softsign": (lambda x: x / (1 + np.abs(x)), {}),
    "silu": (lambda x: x * special.expit(x), {}),
    "gelu": (lambda x: x * special.ndtr(x), {}),
    "elu": (lambda x: np.where(x > 0, x, 0.5 * np.expm1(np.minimum(x, 0))), {"alpha": np.float32(0.5)}),
    "erf": (special.erf, {}),
    "softmax": (lambda x: special.softmax(x, axis=-1), {}),
    "reduce_log_sum_exp": (lambda x: special.logsumexp(x, axis=-1), {"axes": [-1]}),
}


@pytest.mark.parametrize("op", STABLE)
def test_no_fp16_input_is_too_large_or_too_small(law: "Law", run_op: "RunOp", op: str) -> None:
    """Over the whole range of fp16, computed in fp32: finite, and right to a fifth of what fp16 rounds away.

    But where x times a share of 1 is next to nothing: there fp32 keeps what 1 leaves over, 6e-8 of x.
    """
    function, options = STABLE[op]

    def rule(draw: "Draw") -> None:
        exponents = draw.floats(2, 1, 7, low=-24, high=15.9)
        x = (np.sign(draw.floats(2, 1, 7, low=-1, high=1)) * 2**exponents).astype(np.float16)
        (actual,) = run_op(op, {"x": x, **options}, opset="CoreML8", numerics="fp32")
        assert np.isfinite(actual).all()
        np.testing.assert_allclose(actual, function(x.astype(np.float64)), rtol=1e-4, atol=4e-7)

    law(rule)
