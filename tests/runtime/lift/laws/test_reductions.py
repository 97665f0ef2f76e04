"""Laws of reductions, normalisations and orderings: any axes, counted from either end."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch.nn.functional as F
from scipy import special
from torch import from_numpy

if TYPE_CHECKING:
    from tests.runtime.lift.laws.conftest import Draw, Law

Arguments = dict[str, Any]


def reduction(draw: "Draw") -> Arguments:
    shape = draw.shape(1, 5)
    x = draw.floats(*shape) if draw.flag() else draw.ints(*shape)
    return {"x": x, "axes": draw.one([None, draw.axes(len(shape))]), "keep_dims": draw.one([None, False, True])}


def positive(draw: "Draw") -> Arguments:
    arguments = reduction(draw)
    return {**arguments, "x": np.abs(arguments["x"]) + np.ones((), arguments["x"].dtype)}


def argument(draw: "Draw") -> Arguments:
    shape = draw.shape(1, 5)
    return {"x": draw.numbers(*shape), "axis": draw.one([None, draw.axis(len(shape))]), "keep_dims": draw.one([None, False, True])}


def along(draw: "Draw") -> Arguments:
    shape = draw.shape(1, 5)
    return {"x": draw.floats(*shape), "axis": draw.one([None, draw.axis(len(shape))])}


def cumsum(draw: "Draw") -> Arguments:
    shape = draw.shape(1, 5)
    # MIL's own value of an exclusive sum ends in a TypeError: for those there is numpy.
    return {"x": draw.numbers(*shape), "axis": draw.one([None, draw.whole(-1, len(shape) - 1)]), "reverse": draw.one([None, False, True])}


def argsort(draw: "Draw") -> Arguments:
    shape = draw.shape(1, 5)
    return {"x": draw.distinct(*shape), "axis": draw.one([None, draw.axis(len(shape))]), "ascending": draw.one([None, False, True])}


def topk(draw: "Draw") -> Arguments:
    opset = draw.since("CoreML5")
    shape = draw.shape(1, 4, most=6)
    axis = draw.axis(len(shape))
    options: Arguments = {"ascending": draw.one([None, False, True])}
    if opset >= "CoreML6":
        options |= {"sort": draw.one([None, True]), "return_indices": draw.one([None, False, True])}
    if opset >= "CoreML7" and options["return_indices"] is not False:
        options |= {"output_indices_dtype": draw.one([None, "int32", "uint16"])}
    k = draw.one([None, draw.whole(1, shape[axis])])
    return {"x": draw.distinct(*shape), "k": k, "axis": axis, **options, "opset": opset}


def layer_norm(draw: "Draw") -> Arguments:
    shape = draw.shape(1, 5, least=2)
    axes = draw.axes(len(shape))
    own = [shape[axis] for axis in sorted(axis % len(shape) for axis in axes)]
    parameters = {name: draw.floats(*own) for name in draw.one([(), ("gamma",), ("gamma", "beta")])}
    return {"x": draw.floats(*shape), "axes": axes, **parameters, "epsilon": draw.one([None, 1e-2])}


def batch_norm(draw: "Draw") -> Arguments:
    shape = draw.shape(3, 5)
    C = shape[1]
    scale = {"gamma": draw.floats(C), "beta": draw.floats(C)} if draw.flag() else {}
    statistics = {"mean": draw.floats(C), "variance": draw.floats(C, low=0.1, high=3)}
    return {"x": draw.floats(*shape), **statistics, **scale, "epsilon": draw.one([None, 1e-2])}


def instance_norm(draw: "Draw") -> Arguments:
    shape = draw.shape(3, 4, least=2)
    scale = {"gamma": draw.floats(shape[1]), "beta": draw.floats(shape[1])} if draw.flag() else {}
    return {"x": draw.floats(*shape), **scale, "epsilon": draw.one([None, 1e-2])}


def local_response_norm(draw: "Draw") -> Arguments:
    x = draw.floats(*draw.shape(4, 5), low=-2, high=2)
    return {"x": x, "size": draw.whole(1, 4), **draw.one([{}, {"alpha": 0.5, "beta": 0.5, "k": 2.0}])}


def per_channel(x: Any, *parameters: Any) -> list[Any]:
    return [p.reshape(-1, *(1,) * (x.ndim - 2)) for p in parameters]


def batch_norm_by_formula(x: Any, mean: Any, variance: Any, gamma: Any = None, beta: Any = None, epsilon: float = 1e-5) -> Any:
    ones = np.ones_like(mean)
    m, v, g, b = per_channel(x, mean, variance, ones if gamma is None else gamma, 0 * ones if beta is None else beta)
    return (x.astype(np.float64) - m) / np.sqrt(v + epsilon) * g + b


def instance_norm_by_torch(x: Any, gamma: Any = None, beta: Any = None, epsilon: float = 1e-5) -> Any:
    flat = from_numpy(x.reshape(*x.shape[:2], -1)).double()
    scale = [None if p is None else from_numpy(p).double() for p in (gamma, beta)]
    return F.instance_norm(flat, weight=scale[0], bias=scale[1], eps=epsilon).numpy().reshape(x.shape)


def local_response_norm_by_loop(x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Any:
    """torch's window, which an even size shifts towards the channels before."""
    result = np.empty(x.shape)
    for c in range(x.shape[1]):
        window = x[:, max(0, c - size // 2) : c + (size - 1) // 2 + 1].astype(np.float64)
        result[:, c] = x[:, c] / (k + alpha / size * np.square(window).sum(1)) ** beta
    return result


REDUCTIONS = ("sum", "mean", "max", "min", "prod", "l1_norm", "l2_norm", "sum_square", "log_sum_exp")
LAWS: dict[str, Callable[["Draw"], Arguments]] = {
    **dict.fromkeys((f"reduce_{name}" for name in REDUCTIONS), reduction),
    "reduce_log_sum": positive,
    **dict.fromkeys(("reduce_argmax", "reduce_argmin"), argument),
    "softmax": along,
    "cumsum": cumsum,
    "argsort": argsort,
    "topk": topk,
    "layer_norm": layer_norm,
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "l2_norm": lambda draw: {"x": draw.floats(*draw.shape(4, 5)), "epsilon": draw.one([None, 1e-2])},
    "local_response_norm": local_response_norm,
}
ORACLES: dict[str, Callable[..., Any]] = {
    "batch_norm": batch_norm_by_formula,
    "instance_norm": instance_norm_by_torch,
    "local_response_norm": local_response_norm_by_loop,
    "softmax": lambda x, axis=-1: special.softmax(x.astype(np.float64), axis),
}


@pytest.mark.parametrize("op", LAWS)
def test_results_are_those_that_mil_infers(law: "Law", op: str) -> None:
    law.agrees_with_mil(op, LAWS[op], ORACLES.get(op))


@pytest.mark.parametrize("op", LAWS)
def test_fp16_is_rounded_once(law: "Law", op: str) -> None:
    law.rounds_to_fp16(op, LAWS[op])


def exclusive_sum(x: Any, axis: int, reverse: bool) -> Any:
    """Every element's sum of those before it, or after it."""
    along = np.moveaxis(x.astype(np.float64), axis, 0)
    sums = [along[i + 1 :].sum(0) if reverse else along[:i].sum(0) for i in range(len(along))]
    return np.moveaxis(np.stack(sums), 0, axis)


def test_exclusive_sums_leave_the_element_out(law: "Law") -> None:
    def arguments(draw: "Draw") -> Arguments:
        shape = draw.shape(1, 4)
        return {"x": draw.numbers(*shape), "axis": draw.axis(len(shape)), "reverse": draw.flag(), "exclusive": True}

    law.agrees_with(lambda exclusive, **others: exclusive_sum(**others), "cumsum", arguments)
