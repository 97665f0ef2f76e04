"""Every lowering that MIL can evaluate itself gives what MIL gives: ``mb.<op>(...).val``, numpy written by the format's authors.

Each case is evaluated in every opset that takes it. The tables avoid what MIL leaves open or its numpy gets wrong: the order of equals in
argsort and topk, NaN in sign and thresholded_relu, a negative beta in clamped_relu, interleaved values in concat, exclusive sums, a
negative axis behind batch axes in gather.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.graph import Graph, Op, Value
from coreflow.models.arrays import Array
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.lift.engines.interpreter import Interpreter
from coreflow.runtime.lift.numerics.named import numerics_named
from coreflow.runtime.lift.registry import OPSETS, find, load_lowerings, supported_ops

RNG = np.random.default_rng(7)
X = RNG.normal(size=(2, 3, 4)).astype(np.float32)
POSITIVE = np.abs(X) + 0.1
WHOLE = RNG.integers(-5, 6, (2, 3, 4)).astype(np.int32)
IMAGE = RNG.normal(size=(2, 4, 6, 5)).astype(np.float32)
TIES = np.array([[3, 1, 3, 2], [0, 0, 5, 5]], np.float32)
MATRIX = RNG.normal(size=(5, 4)).astype(np.float32)
BOOL = X > 0

VECTOR = RNG.normal(size=5).astype(np.float32)
DEEP = RNG.normal(size=(2, 1, 3, 2, 2)).astype(np.float32)  # the highest rank that MIL has
SCALAR = np.float32(1.3)
INF = np.float32(np.inf)
# Every kind of number: none of them traps a formula that is written for the usual ones.
EXTREMES = np.array(
    [-INF, -1e30, -100, -2.5, -1.5, -1, -1e-30, -0.0, 0.0, 1e-30, 0.5, 1, 1.5, 2.5, 3.5, 100, 1e30, INF, np.nan], np.float32
)
NUMBERS = EXTREMES[:-1]
SIGNS = np.array([-INF, -2.5, -1, -0.0, 0.0, 1, 2.5, INF, np.nan], np.float32)
INTS = np.array([-7, -6, -1, 1, 6, 7], np.int32)
DISTINCT = RNG.permutation(24).reshape(4, 6).astype(np.int32)
MASK = RNG.normal(size=(4, 6)) > -0.5
QUERY, KEY, VALUE = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 5)))


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def whole(low: int, high: int, *shape: int) -> Array:
    return RNG.integers(low, high, shape).astype(np.int32)


def ints(*values: Any) -> Array:
    return np.array(values, np.int32)


Case = tuple[str, dict[str, Any]]

# Where each function of one number is defined.
ANY = "abs atan ceil floor round erf exp exp2 sinh cosh tanh square relu relu6 sigmoid softplus softsign identity"
UNARY = {
    **dict.fromkeys(ANY.split(), EXTREMES),
    "sign": NUMBERS,
    **dict.fromkeys(("cos", "sin", "tan"), np.linspace(-10, 10, 23, dtype=np.float32)),
    **dict.fromkeys(("acos", "asin", "atanh"), np.array([-2, -1, -0.5, -0.0, 0, 0.5, 1, 2], np.float32)),
    **dict.fromkeys(("sqrt", "log", "rsqrt", "inverse"), np.array([-2, 1e-30, 0.5, 1, 2, 1e30, INF], np.float32)),
}
ACTIVATIONS: dict[str, dict[str, float]] = {
    "clip": {"alpha": -0.5, "beta": 0.25},
    "threshold": {"alpha": 0.25},
    "clamped_relu": {"alpha": 0.3, "beta": 0.5},
    "elu": {"alpha": 0.7},
    "leaky_relu": {"alpha": 0.2},
    "linear_activation": {"alpha": 0.2, "beta": 3.0},
    "scaled_tanh": {"alpha": 1.5, "beta": 0.5},
    "sigmoid_hard": {"alpha": 0.4, "beta": 0.3},
    "thresholded_relu": {"alpha": 0.4},
}
ARITHMETIC = ["add", "sub", "mul", "real_div", "maximum", "minimum", "mod", "floor_div"]
BINARY = [*ARITHMETIC, "equal", "not_equal", "greater", "greater_equal", "less", "less_equal"]
LOGICAL = ["logical_and", "logical_or", "logical_xor"]
REDUCTIONS = [
    "reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "reduce_l1_norm", "reduce_l2_norm", "reduce_sum_square",
    "reduce_log_sum_exp", "reduce_log_sum",
]  # fmt: skip
OVER: list[tuple[Array, dict[str, Any]]] = [
    (X, {}), (X, {"axes": [1]}), (X, {"axes": [-1, 0], "keep_dims": True}), (VECTOR, {"axes": [0], "keep_dims": True}),
    (IMAGE, {"axes": [2, 3], "keep_dims": True}), (IMAGE, {"axes": [-2, 1]}), (DEEP, {"axes": [4, 0, 2]}), (MATRIX, {"axes": [0, 1]}),
    (MATRIX, {"axes": np.array([], np.int32)}), (MATRIX[:, :1], {"axes": [1]}),
]  # fmt: skip

ELEMENTWISE: list[Case] = [
    *((op, {"x": x}) for op, edges in UNARY.items() for x in (edges, np.clip(DEEP / 4, 0.1, 0.99), np.float32(0.3))),
    *((op, {"x": INTS}) for op in ("abs", "sign", "square", "exp2", "identity")),
    *((op, {"x": x, **limits}) for op, limits in ACTIVATIONS.items() for x in (NUMBERS, X, DEEP)),
    *(("gelu", {"x": x, "mode": mode}) for x in (EXTREMES, X, SCALAR) for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")),
    *((op, {"x": np.array([0, 1, 4], np.float32), "epsilon": eps}) for op in ("inverse", "log", "rsqrt") for eps in (0.5, 0.0, 1e-3)),
    ("elu", {"x": X, "alpha": -0.7}),
    ("linear_activation", {"x": X, "alpha": -0.2, "beta": -3.0}),
    ("prelu", {"x": IMAGE, "alpha": np.array([0.1, 0.2, -0.3, 2], np.float32)}),
    ("prelu", {"x": X, "alpha": np.full(3, -0.5, np.float32)}),
    ("prelu", {"x": DEEP, "alpha": np.array([0.5], np.float32)}),
    *(("softplus_parametric", {"x": x, "alpha": np.array([1, 2, 3], np.float32), "beta": np.array([1, -1, 0.5], np.float32)})
      for x in (X, normal(2, 3, 1, 4), normal(1, 3, 2, 1, 2))),
    *(("softmax", {"x": DEEP, "axis": axis}) for axis in (0, 2, -1, -3)),
    ("softmax", {"x": np.array([[-INF, 0, 1], [100, 1000, -1000], [1e30, 1e30, 0]], np.float32), "axis": -1}),
    *((op, {"x": x, "y": y}) for op in BINARY for x, y in (
        (X, X[:1, :, ::-1].copy()), (X, SCALAR), (SCALAR, X), (normal(4), X), (DEEP, normal(3, 1, 2)), (SCALAR, np.float32(-0.5)),
        (SIGNS[:, None], SIGNS[None, :]), (INTS[:, None], INTS[None, :]), (INTS, np.int32(-4)), (np.int32(7), INTS),
    )),
    *((op, {"x": ints(2**31 - 1, -(2**31)), "y": ints(2, 3)}) for op in ("add", "sub", "mul")),  # they wrap around
    *((op, {"x": X.astype(np.float16), "y": np.float16(1.7)}) for op in ("add", "mul", "real_div", "maximum", "less")),
    ("pow", {"x": POSITIVE, "y": X}),
    ("pow", {"x": WHOLE, "y": np.int32(3)}),
    ("pow", {"x": np.int32(-3), "y": ints(0, 1, 2, 3)}),
    ("pow", {"x": SIGNS[1:, None], "y": np.array([-2, -1, -0.5, 0, 0.5, 1, 2, 3], np.float32)}),
    *((op, {"x": x, "y": y}) for op in LOGICAL for x, y in ((BOOL, ~BOOL[:1]), (BOOL, np.bool_(True)), (BOOL[:1], BOOL[:, :1]))),
    *(("logical_not", {"x": x}) for x in (BOOL, DEEP > 0, np.bool_(True))),
    *(("cast", {"x": x, "dtype": dtype}) for dtype in ("int32", "int8", "int16", "uint8", "uint16", "fp32", "fp16", "bool")
      for x in (10 * X, 100 * WHOLE, BOOL, np.array([-2.5, -0.5, -0.0, 0.5, 1e-30, 100], np.float32), np.float32(3.7), np.int32(-3))),
    ("select", {"cond": BOOL, "a": X, "b": -X}),
    ("select", {"cond": BOOL, "a": np.float32(1), "b": X}),
    ("select", {"cond": BOOL[0], "a": WHOLE, "b": whole(-5, 6, 4)}),
    ("select", {"cond": np.bool_(False), "a": X, "b": -X}),
    ("select", {"cond": np.array([True, False]), "a": np.array([np.nan, 1], np.float32), "b": np.array([0, INF], np.float32)}),
]  # fmt: skip

SUMS: list[Case] = [
    *((op, {"x": np.abs(x) + 0.1 if op == "reduce_log_sum" else x, **over}) for op in REDUCTIONS for x, over in OVER),
    *((op, {"x": x, "axes": [1]}) for op in REDUCTIONS for x in (WHOLE + 6, np.int32(3) * WHOLE[0] ** 2 + 1)),
    *((op, {"x": -np.abs(WHOLE) - 1, "axes": [0]}) for op in REDUCTIONS[:-1]),
    *((op, {"x": np.array([[-INF, 1, 2], [1000, 999, -1000]], np.float32), "axes": [1]}) for op in REDUCTIONS[:-1]),
    *((op, {"x": x, "axis": axis, "keep_dims": keep}) for op in ("reduce_argmax", "reduce_argmin") for x, axis, keep in (
        (TIES, 1, False), (TIES, -1, True), (X, 0, False), (X, -2, True), (VECTOR, 0, True), (WHOLE, 1, False), (DEEP, -3, False),
        (np.array([[-INF, INF, 0], [0, np.nan, 1]], np.float32), 1, False),
    )),
    *((op, {"x": VECTOR}) for op in ("reduce_argmax", "reduce_argmin")),
    ("linear", {"x": X, "weight": MATRIX, "bias": VECTOR}),
    ("linear", {"x": X[0, 0], "weight": MATRIX}),
    ("linear", {"x": X[0], "weight": MATRIX[:1], "bias": VECTOR[:1]}),
    ("linear", {"x": WHOLE, "weight": whole(-5, 6, 5, 4), "bias": ints(1, 2, 3, 4, 5)}),
    ("linear", {"x": X, "weight": whole(-5, 6, 5, 4), "bias": ints(1, 2, 3, 4, 5)}),  # since iOS17
    *(("linear", {"x": WHOLE, "weight": MATRIX.astype(half), "bias": VECTOR.astype(half)}) for half in (np.float32, np.float16)),
    *(("matmul", {"x": x, "y": y, **swaps}) for x, y, swaps in (
        (X, MATRIX, {"transpose_y": True}), (X, X, {"transpose_x": True}), (WHOLE, WHOLE, {"transpose_y": True}),
        (VECTOR, MATRIX, {}), (VECTOR[:4], normal(2, 4, 5), {}), (normal(2, 1, 3, 4), normal(5, 4, 2), {}),
        (normal(2, 1, 4, 3), normal(5, 2, 4), {"transpose_x": True, "transpose_y": True}), (MATRIX[:1, :1], MATRIX[1:2, 1:2], {}),
    )),
    *(("einsum", {"values": [normal(*x), normal(*y)], "equation": equation}) for x, y, equation in (
        ((2, 4, 6, 5), (2, 5, 6, 3), "bchw,bwhu->bchu"), ((2, 3, 4), (4, 3, 5), "vnm,mno->vno"), ((3, 1, 4), (4, 2, 5), "chw,whu->chu"),
        ((1, 3, 2, 4), (5, 4, 1, 6), "bchw,bwhu->bchu"),
    )),
    ("einsum", {"values": [whole(-5, 6, 3, 2, 4), whole(-5, 6, 4, 2, 5)], "equation": "abc,cbd->abd"}),
    *(("layer_norm", {"x": x, "axes": axes, "gamma": normal(*shape), "beta": normal(*shape), "epsilon": 1e-2}) for x, axes, shape in (
        (X, [2], (4,)), (X, [1], (3,)), (VECTOR, [0], (5,)), (IMAGE, [1, 3], (4, 5)), (IMAGE, [-1, -2], (6, 5)), (DEEP, [-1, 2], (3, 2)),
        (X, [0, 1, 2], (2, 3, 4)),
    )),
    *(("layer_norm", {"x": X, "axes": axes}) for axes in ([0, 2], [-1, -2], [1])),
    ("layer_norm", {"x": X, "axes": [1], "gamma": normal(3)}),
    *(("l2_norm", {"x": x, "epsilon": epsilon}) for x in (X, IMAGE, DEEP) for epsilon in (1e-6, 1.0)),
    ("l2_norm", {"x": 0 * X}),
    *(("scaled_dot_product_attention", {"query": QUERY, "key": KEY, "value": VALUE, "attn_mask": mask}) for mask in (
        MASK, normal(4, 6), normal(2, 1, 4, 6), np.where(MASK, 0, -INF).astype(np.float32),
    )),
    ("scaled_dot_product_attention", {"query": QUERY, "key": KEY, "value": VALUE}),
    ("scaled_dot_product_attention", {"query": X, "key": X[:, ::-1].copy(), "value": X + 1}),
]  # fmt: skip

SHAPES: list[Case] = [
    *(("reshape", {"x": X, "shape": shape}) for shape in (
        [24], [-1], [2, -1], [4, 3, 2], [6, -1], [1, 2, 3, 4], [0, -1], [0, 0, 4], [0, 0, -1], [1, 0, 0, 0],
    )),
    ("reshape", {"x": BOOL, "shape": [4, 6]}),
    ("reshape", {"x": SCALAR, "shape": [1, 1]}),
    *(("transpose", {"x": X, "perm": perm}) for perm in ([2, 0, 1], [0, 1, 2], [-1, 0, 1], [1, -1, -3])),
    ("transpose", {"x": VECTOR, "perm": [0]}),
    ("transpose", {"x": DEEP > 0, "perm": [4, 2, 0, 1, 3]}),
    *(("expand_dims", {"x": X, "axes": axes}) for axes in ([0], [-1], [0, -1], [-1, -2], [3, 0], [-5, 2])),
    ("expand_dims", {"x": SCALAR, "axes": [0]}),
    ("squeeze", {"x": X[:1, :, :1]}),
    *(("squeeze", {"x": X[:1, :, :1], "axes": axes}) for axes in ([0], [-1], [0, -1], [-3])),
    ("squeeze", {"x": WHOLE[:, :, :1], "axes": [2]}),
    ("squeeze", {"x": X}),
    *(("concat", {"values": values, "axis": axis}) for values, axis in (
        ([X, X[:1]], 0), ([X, X[:, :1]], 1), ([X, X[..., :2], -X], -1), ([VECTOR, VECTOR[:2]], 0), ([X], 2), ([WHOLE, -WHOLE], -2),
        ([BOOL, ~BOOL], 1), ([DEEP, DEEP], 3),
    )),
    *(("stack", {"values": values, "axis": axis}) for values, axis in (
        ([X, -X], 1), ([X, -X, X], -1), ([X, -X], 3), ([VECTOR, VECTOR], -2), ([WHOLE, -WHOLE], 0), ([BOOL, ~BOOL], -4),
        ([np.array(1, np.float32), np.array(2, np.float32)], 0),
    )),
    *(("flatten2d", {"x": x, "axis": axis}) for x, axis in ((X, 1), (X, 2), (X, -1), (IMAGE, -2), (DEEP, 3), (WHOLE, 1))),
    ("flatten2d", {"x": IMAGE}),
    *(("tile", {"x": x, "reps": reps}) for x, reps in (
        (X, [2, 1, 3]), (X, [1, 1, 1]), (VECTOR, [4]), (WHOLE, [1, 3, 1]), (DEEP, [2, 1, 1, 3, 1]),
    )),
    *(("fill", {"shape": shape, "value": value}) for shape, value in (
        ([2, 3], 1.5), ([4], np.int32(-3)), ([1, 2, 1], np.bool_(True)), ([3], -INF), ([2, 0], 1.5), ([2, 1, 2, 1, 2], 0.5),
    )),
    ("fill", {"shape": [2]}),
    *(("fill_like", {"ref_tensor": like, "value": value}) for like, value in (
        (X, 1.5), (WHOLE, 2.5), (X, np.int32(7)), (DEEP, np.bool_(True)),
    )),
    ("fill_like", {"ref_tensor": VECTOR}),
    *(("reverse", {"x": x, "axes": axes}) for x, axes in (
        (X, [0, 2]), (X, [-1]), (X, [-2, 0]), (VECTOR, [0]), (WHOLE, [1]), (DEEP, [2, -1]), (BOOL, [0, 1, 2]),
    )),
    ("reverse", {"x": X}),
    *((op, {"x": x}) for op in ("shape", "identity") for x in (X, VECTOR, WHOLE, DEEP, BOOL, SCALAR)),
    *(("non_zero", {"x": x}) for x in (WHOLE, X, VECTOR, BOOL, 0 * X, np.ones_like(DEEP), SIGNS)),
    *(("slice_by_index", {"x": X, **places}) for places in (
        {"begin": [0, 1, 3], "end": [2, 3, 0], "stride": [1, 1, -1]},
        {"begin": [0] * 3, "end": [0] * 3, "begin_mask": [True] * 3, "end_mask": [True] * 3, "stride": [1, 2, -2]},
        {"begin": [-1, 0, -3], "end": [9, 3, -1], "squeeze_mask": [True, False, False]},
        {"begin": [1, 2, 3], "end": [0, 0, 0], "end_mask": [True] * 3, "squeeze_mask": [True, False, True]},
        {"begin": [1, 1, 1], "end": [2, 2, 2], "squeeze_mask": [True] * 3},
        {"begin": [1, 1, 1], "end": [0] * 3, "begin_mask": [True] * 3, "end_mask": [True] * 3, "squeeze_mask": [True, False, False]},
        {"begin": [0, 2, 3], "end": [2, 0, 1], "stride": [1, -1, -2]},
        {"begin": [0, 9, 0], "end": [9, -9, 9], "stride": [1, -1, 1]},  # beyond both ends
    )),
    ("slice_by_index", {"x": VECTOR, "begin": [-2], "end": [-1], "squeeze_mask": [True]}),
    ("slice_by_index", {"x": VECTOR, "begin": [4], "end": [0], "stride": [-1], "end_mask": [True]}),
    ("slice_by_index", {"x": DISTINCT, "begin": [3, 3], "end": [0, -9], "stride": [-1, -1]}),
    ("slice_by_index", {"x": DEEP, "begin": [0, 0, 1, 0, -1], "end": [1, 1, 3, 2, 2]}),
    *(("slice_by_size", {"x": X, "begin": begin, "size": size}) for begin, size in (
        ([1, 0, 2], [1, -1, 2]), ([0, 0, 0], [2, 3, 4]), ([-1, -2, -3], [1, 2, -1]), ([1, 2, 3], [1, 1, 1]),
    )),
    ("slice_by_size", {"x": WHOLE, "begin": [0, -2, 1], "size": [-1, 1, 2]}),
    *(("slice_update", {"x": X, "update": normal(*shape), **places}) for shape, places in (
        ((2, 2, 2), {"begin": [0, 1, 0], "end": [2, 3, 4], "stride": [1, 1, 2]}),
        ((2, 2, 4), {"begin": [0, -1, 0], "end": [2, -3, 4], "stride": [1, -1, 1]}),
        ((3, 2), {"begin": [1, 0, 0], "end": [2, 3, 2], "squeeze_mask": [True, False, False]}),
        ((2, 3, 4), {"begin": [0] * 3, "end": [0] * 3, "begin_mask": [True] * 3, "end_mask": [True] * 3, "stride": [-1, -1, -1]}),
        ((4,), {"begin": [1, 1, 0], "end": [2, 2, 4], "squeeze_mask": [True, True, False]}),
    )),
    ("slice_update", {"x": DISTINCT, "update": whole(-5, 6, 2, 6), "begin": [1, 0], "end": [3, 6]}),
    *(("pad", {"x": x, "pad": pad, "mode": mode}) for mode in ("constant", "reflect", "replicate") for x, pad in (
        (X, [1, 0, 2, 1]), (X, [1, 2]), (VECTOR, [2, 3]), (IMAGE, [0, 0, 1, 1, 2, 1]), (MATRIX[:2, :2], [3, 4]), (X, [0] * 6),
    )),
    ("pad", {"x": IMAGE, "pad": [1, 0, 0, 2, 0, 0, 3, 1], "constant_val": 2.5}),
    ("pad", {"x": X, "pad": [1, 1], "constant_val": -INF}),
]  # fmt: skip

PLACES: list[Case] = [
    *(("gather", {"x": x, "indices": indices, "axis": axis}) for x, indices, axis in (
        (X, ints([0, 2], [1, 1]), 1), (X, ints(-1, 0), -1), (X, np.int32(1), 0), (X, np.int32(-2), -1), (VECTOR, ints(-1, -5, 4), 0),
        (VECTOR, np.int32(2), 0), (IMAGE, ints([[0], [1]], [[2], [3]]), 2), (WHOLE, ints(1, 1), 0), (DEEP, ints(1, 0), 3),
    )),
    *(("gather", {"x": IMAGE, "indices": indices, "axis": axis, "batch_dims": dims}) for indices, axis, dims in (
        (ints([0, 2, 1], [1, 1, 3]), 1, 1), (ints([0, 2, 1], [1, 1, 3]), 3, 1), (ints([0], [-1]), 2, 1), (whole(-6, 6, 2, 4, 3), 2, 2),
    )),
    ("gather", {"x": X, "indices": np.array([1, 1], np.uint16), "axis": 1}),
    *(("gather_along_axis", {"x": x, "indices": indices, "axis": axis}) for x, indices, axis in (
        (X, ints([[0, 1, 2, 0]], [[2, 2, -1, 0]]), 1), (VECTOR, ints(4, 0, -1), 0), (X, whole(-2, 2, 5, 3, 4), 0),
        (X, whole(-4, 4, 2, 3, 1), -1), (WHOLE, whole(0, 3, 2, 6, 4), -2), (DEEP, whole(0, 3, 2, 1, 2, 2, 2), 2),
    )),
    # MIL evaluates every mode as an update.
    *(("scatter_along_axis", {"data": data, "indices": indices, "updates": normal(*indices.shape), "axis": axis, "mode": "update"})
      for data, indices, axis in (
        (VECTOR, ints(4, 0, -2), 0), (X, np.argsort(normal(2, 3, 4), 1).astype(np.int32)[:, :2], 1),
        (X, np.argsort(normal(2, 3, 4), -1).astype(np.int32)[..., :2] - 4, -1), (MATRIX, np.argsort(normal(5, 4), 0).astype(np.int32), -2),
    )),
    *(("cumsum", {"x": x, "axis": axis, "reverse": reverse}) for x, axis in ((X, 0), (X, 1), (X, -1), (VECTOR, 0), (WHOLE, 2), (DEEP, 4))
      for reverse in (False, True)),
    *(("range_1d", dict(zip(("start", "end", "step"), map(np.int32, numbers), strict=True))) for numbers in (
        (2, 11, 3), (5, 0, -2), (0, 0, 1), (3, 1, 1), (-4, 4, 3),
    )),
    *(("range_1d", dict(zip(("start", "end", "step"), map(np.float32, numbers), strict=True))) for numbers in (
        (0.5, 3.1, 0.5), (1, -1, -0.5), (0, 1, 0.3), (2, 2.5, 5),
    )),
    *(("band_part", {"x": x, "lower": lower, "upper": upper}) for x, lower, upper in (
        (X, 1, 0), (X, -1, 1), (X, 0, -1), (X, 5, 5), (MATRIX, 2, 0), (WHOLE, 0, 0), (DEEP, 0, 1), (MATRIX[:1], 0, 2), (X, -1, -1),
    )),
    *(("argsort", {"x": x, "axis": axis, "ascending": up}) for x in (X, VECTOR, DISTINCT, DEEP) for axis in (0, -1)
      for up in (False, True)),
    *(("topk", {"x": x, "k": 2, "axis": axis, "ascending": up}) for x in (X, VECTOR, DISTINCT, SIGNS[:4]) for axis in (0, -1)
      for up in (False, True)),
    ("topk", {"x": X}),
    ("topk", {"x": X, "k": 3, "axis": -2, "sort": True, "return_indices": False}),
    *(("split", {"x": x, **parts}) for x, parts in (
        (X, {"num_splits": 2, "axis": 2}), (X, {"split_sizes": [1, 2, 1], "axis": -1}), (VECTOR, {"num_splits": 5, "axis": 0}),
        (X, {"split_sizes": [0, 3], "axis": 1}), (WHOLE, {"num_splits": 3, "axis": -2}), (BOOL, {"num_splits": 1, "axis": 1}),
        (DEEP, {"num_splits": 3, "axis": 2}), (X, {"num_splits": 2, "split_sizes": [2, 2], "axis": 2}),
    )),
    *(("quantize", {"input": x, "output_dtype": dtype, **grid}) for dtype in ("int8", "uint8") for x, grid in (
        (9 * X, {"scale": 0.1, "zero_point": np.dtype(dtype).type(3)}), (300 * VECTOR, {"scale": 1.0}),
        (X, {"scale": POSITIVE[0, :, 0], "zero_point": np.arange(3, dtype=dtype), "axis": 1}), (X, {"scale": POSITIVE[0, 0], "axis": -1}),
        (np.array([-0.75, -0.25, 0.25, 0.75, 1.25], np.float32), {"scale": 0.5}), (DEEP, {"scale": POSITIVE[:, 0, 0], "axis": 0}),
    )),
]  # fmt: skip

CASES = [*ELEMENTWISE, *SUMS, *SHAPES, *PLACES]

# Ops that define a value inference and need no case in the tables.
NO_CASE = {
    "const": "no op here: a package's constants are values",
    "_const_symbolic": "no op of a package",
    "reverse_sequence": "its value inference is a NotImplementedError; a loop is its oracle in test_against_loops.py",
    "cond": "takes blocks: TestWithBlocksAndLists",
    "list_length": "takes a list: TestWithBlocksAndLists",
}


def case_id(case: Case) -> str:
    return f"{case[0]}-" + ",".join(f"{k}={v}" for k, v in case[1].items() if not isinstance(v, np.ndarray) and "values" not in k)[:60]


def mil(op: str, arguments: Mapping[str, Any], opset: str = "CoreML8") -> Any:
    """MIL's own value of the op for constant inputs."""
    with function(opset) as builder:
        result = getattr(builder, op)(**copy.deepcopy(arguments))  # thresholded_relu writes into its input
    return tuple(part.val for part in result) if isinstance(result, tuple | list) else result.val


@contextmanager
def function(opset: str) -> Iterator[Any]:
    """An empty function of that opset around MIL's builder."""
    quiet_coremltools()
    from coremltools.converters.mil.mil import Builder, Function

    with Function({}, opset_version=target_of(opset)):
        yield Builder


def target_of(opset: str) -> Any:
    return getattr(quiet_coremltools().target, {"CoreML5": "iOS15", "CoreML6": "iOS16", "CoreML7": "iOS17", "CoreML8": "iOS18"}[opset])


@cache
def mil_values(case: int) -> dict[str, tuple[Array, ...]]:
    """MIL's values for that row of ``CASES``, by opset; one that refuses the op or the arguments is left out."""
    values = {}
    for opset in OPSETS[:4]:
        try:
            actual = mil(*CASES[case], opset)
        except (AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ValueError):
            continue
        assert actual is not None
        values[opset] = tuple(map(np.asarray, actual if isinstance(actual, tuple) else (actual,)))
    return values


@pytest.fixture(scope="module", autouse=True)
def _no_overflow_warnings() -> Any:
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: case_id(CASES[case]))
def test_a_lowering_gives_mils_own_value_in_every_opset(evaluate: Callable[..., Any], case: int) -> None:
    op, arguments = CASES[case]
    assert mil_values(case)
    for opset, references in mil_values(case).items():
        # MIL's value inference counts them from the end all the same; its documents say that the op does not.
        if opset >= "CoreML7" and has_negative_indices(op, arguments):
            with pytest.raises(UnsupportedError, match="none counts from the end"):
                evaluate(op, opset=opset, **arguments)
            continue
        is_fp16 = references[0].dtype == np.float16
        for numerics in ("fp16",) if is_fp16 else ("fp64", "fp32"):
            actual = evaluate(op, results=len(references), opset=opset, numerics=numerics, declared=references[0].dtype.name, **arguments)
            for got, reference in zip(actual if len(references) > 1 else (actual,), references, strict=True):
                assert got.shape == reference.shape
                assert kind(got) == kind(reference)
                # MIL computes in fp32, and fp64 holds numbers that are infinite there.
                comparable = np.isfinite(reference) if numerics == "fp64" else np.full(reference.shape, True)
                np.testing.assert_allclose(got[comparable], reference[comparable], rtol=0 if is_fp16 else 2e-5, atol=0 if is_fp16 else 2e-6)


def has_negative_indices(op: str, arguments: Mapping[str, Any]) -> bool:
    return op.startswith(("gather", "scatter")) and bool((np.asarray(arguments["indices"]).astype(np.int64) < 0).any())


def kind(array: Array) -> str:
    """Signed and unsigned integers are one: the lifted backend carries them all as int32."""
    return array.dtype.kind.replace("u", "i")


@pytest.mark.parametrize("opset", OPSETS[:4])
def test_every_op_that_mil_can_evaluate_has_cases(opset: str) -> None:
    quiet_coremltools()
    from coremltools.converters.mil.mil import Operation
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    evaluable = set()
    for op, versions in SSAOpRegistry.core_ops.items():
        known = [version for version in versions if version <= target_of(opset)]
        if known and versions[max(known)].value_inference is not Operation.value_inference:
            evaluable.add(op)
    counts = Counter(op for case, (op, _) in enumerate(CASES) if opset in mil_values(case))
    assert evaluable - {op for op, count in counts.items() if count >= 3} == NO_CASE.keys()


class TestWithBlocksAndLists:
    """Ops that a graph of one op cannot hold."""

    @pytest.mark.parametrize("pred", [True, False])
    def test_cond_gives_mils_value_of_the_block_that_runs(self, pred: bool) -> None:
        def block(op: str) -> Graph:
            result = Value("z", "float32", X.shape)
            inputs = {"x": Value("x", "float32", X.shape, data=X), "y": Value("y", "float32", (), data=np.asarray(SCALAR))}
            return Graph("block", "CoreML8", (), (result,), (Op(op, op, inputs, (result,)),), ())

        with function("CoreML8") as builder:
            reference = builder.cond(
                pred=pred, _true_fn=lambda: builder.add(x=X, y=SCALAR), _false_fn=lambda: builder.mul(x=X, y=SCALAR)
            ).val
        result = Value("y", "float32", X.shape)
        cond = Op("cond", "cond", {"pred": Value("p", "bool", (), data=np.asarray(pred))}, (result,), blocks=(block("add"), block("mul")))
        np.testing.assert_allclose(self.run((cond,), result), reference, rtol=1e-6)

    @pytest.mark.parametrize("length", [0, 1, 7])
    def test_a_list_of_fixed_length_is_as_long_as_mil_says(self, length: int) -> None:
        with function("CoreML8") as builder:
            made = builder.make_list(init_length=length, dynamic_length=False, elem_shape=(2, 3), dtype="fp32")
            reference = builder.list_length(ls=made).val
        given: dict[str, Any] = {
            "init_length": np.int32(length),
            "dynamic_length": np.bool_(False),
            "elem_shape": np.array([2, 3], np.int32),
        }
        inputs = {name: Value(name, np.asarray(data).dtype.name, np.shape(data), data=np.asarray(data)) for name, data in given.items()}
        made, result = Value("ls", "float32", None, kind="list"), Value("y", "int32", ())
        ops = (Op("make_list", "make", inputs, (made,)), Op("list_length", "length", {"ls": made}, (result,)))
        assert self.run(ops, result) == reference

    def run(self, ops: tuple[Op, ...], result: Value) -> Any:
        graph = Graph("main", "CoreML8", (), (result,), ops, ())
        return np.asarray(Interpreter(graph, numerics_named("fp64")).run({})[result.name])


def test_a_negative_axis_of_a_batched_gather_counts_from_the_end(evaluate: Callable[..., Any]) -> None:
    arguments = {"x": IMAGE, "indices": ints([0, 2, 1], [1, 1, 3]), "batch_dims": 1}
    np.testing.assert_array_equal(evaluate("gather", axis=-1, **arguments), evaluate("gather", axis=3, **arguments))


@pytest.mark.parametrize("x, y, swaps", [(normal(4), MATRIX, {"transpose_x": True}), (X, normal(4), {"transpose_y": True})], ids=["x", "y"])
def test_matmul_does_not_transpose_a_vector(evaluate: Callable[..., Any], x: Any, y: Any, swaps: dict[str, bool]) -> None:
    y = y.T.copy() if y.ndim == 2 else y
    np.testing.assert_allclose(evaluate("matmul", x=x, y=y, **swaps), np.matmul(x, y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_product_of_integers_and_a_constant_of_fractions_loses_its_fraction(evaluate: Callable[..., Any], swapped: bool) -> None:
    """MIL iOS17: the result has the type of the operand that is no constant, as ``linear`` has that of x."""
    x, y = (MATRIX, WHOLE[0].T.copy()) if swapped else (WHOLE[0], MATRIX.T.copy())
    actual = evaluate("matmul", x=x, y=y, opset="CoreML7", declared="int32")
    assert actual.dtype == np.int32
    np.testing.assert_array_equal(actual, np.trunc(np.matmul(x.astype(np.float64), y.astype(np.float64))))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_slicing_follows_mil_for_every_begin_end_and_stride(evaluate: Callable[..., Any], data: Any) -> None:
    x = np.arange(7 * 5, dtype=np.float32).reshape(7, 5)
    begin = [data.draw(st.integers(-extent, extent - 1)) for extent in x.shape]
    end = [data.draw(st.integers(-extent, extent)) for extent in x.shape]
    stride = [data.draw(st.sampled_from([-3, -1, 1, 2])) for _ in x.shape]
    masks = {name: [data.draw(st.booleans()) for _ in x.shape] for name in ("begin_mask", "end_mask")}
    arguments = {"x": x, "begin": begin, "end": end, "stride": stride, **masks}
    expected = x[
        tuple(slice(None if masks["begin_mask"][i] else begin[i], None if masks["end_mask"][i] else end[i], stride[i]) for i in range(2))
    ]
    actual = evaluate("slice_by_index", **arguments)
    np.testing.assert_array_equal(actual, expected)
    if expected.size:
        np.testing.assert_array_equal(actual, mil("slice_by_index", arguments))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pooling_gives_the_shape_that_mil_infers(evaluate: Callable[..., Any], data: Any) -> None:
    quiet_coremltools()
    from coremltools.converters.mil.mil import Builder, Function

    kernel, stride = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    side = data.draw(st.integers(0, kernel - 1))
    arguments = {
        "x": np.zeros((1, 1, data.draw(st.integers(3, 9))), np.float32),
        "kernel_sizes": [kernel],
        "strides": [stride],
        "pad_type": "custom",
        "pad": [side, side],
        "ceil_mode": data.draw(st.booleans()),
    }
    with Function({}):
        reference = Builder.max_pool(**arguments).shape
    assert evaluate("max_pool", **arguments).shape == reference


class TestSignatures:
    """A lowering's parameters are MIL's: checked against the registry that the converter itself uses."""

    @pytest.mark.parametrize("opset", OPSETS[:4])
    def test_every_op_of_an_opset_has_a_lowering_with_mils_parameters(self, opset: str) -> None:
        target = target_of(opset)
        from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

        load_lowerings()
        # Constants are no ops here; conv_quantized never reaches an ML program: it belongs to neural networks.
        left_out = {"const", "_const_symbolic", "conv_quantized"}
        problems = []
        for op, versions in SSAOpRegistry.core_ops.items():
            known = [version for version in versions if version <= target]
            if op in left_out or not known:
                continue
            spec = versions[max(known)].input_spec.input_types
            lowering = find(op, opset)
            arguments = {name for name in spec if not name.startswith("_")}
            if lowering is None or not arguments <= lowering.forms.keys():
                problems.append(f"{op}: {'no lowering' if lowering is None else arguments - lowering.forms.keys()}")
            elif lowering.required > {name for name in arguments if not spec[name].optional}:
                problems.append(f"{op}: requires {lowering.required}")
        assert problems == []

    def test_no_lowering_stands_for_an_op_that_does_not_exist(self) -> None:
        quiet_coremltools()
        from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

        load_lowerings()
        assert set(supported_ops()) - set(SSAOpRegistry.core_ops) == {"coreml_update_state", "write_state"}
