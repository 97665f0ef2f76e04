"""Every lowering that MIL can evaluate itself gives what MIL gives: ``mb.<op>(...).val``, numpy written by the format's authors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreflow.export.coremltools_quiet import quiet_coremltools
from coreflow.runtime.lift.interpreter import load_lowerings
from coreflow.runtime.lift.registry import OPSETS, find, supported_ops

RNG = np.random.default_rng(7)
X = RNG.normal(size=(2, 3, 4)).astype(np.float32)
POSITIVE = np.abs(X) + 0.1
UNIT = np.clip(X / 4, -0.99, 0.99)
HALVES = np.array([[-2.5, -1.5, -0.5, 0.0], [0.5, 1.5, 2.5, 3.49]], np.float32)
WHOLE = RNG.integers(-5, 6, (2, 3, 4)).astype(np.int32)
IMAGE = RNG.normal(size=(2, 4, 6, 5)).astype(np.float32)
TIES = np.array([[3, 1, 3, 2], [0, 0, 5, 5]], np.float32)
MATRIX = RNG.normal(size=(5, 4)).astype(np.float32)
BOOL = X > 0

UNARY = {
    "abs": X, "acos": UNIT, "asin": UNIT, "atan": X, "atanh": UNIT, "ceil": X, "cos": X, "cosh": X, "erf": X, "exp": X, "exp2": X,
    "floor": X, "round": HALVES, "sign": X, "sin": X, "sinh": X, "sqrt": POSITIVE, "square": X, "tan": UNIT, "tanh": X, "relu": X,
    "relu6": 4 * X, "sigmoid": X, "softplus": X, "softsign": X, "inverse": POSITIVE, "log": POSITIVE, "rsqrt": POSITIVE,
    "identity": X, "shape": X, "non_zero": WHOLE,
}  # fmt: skip
BINARY = ["add", "sub", "mul", "real_div", "maximum", "minimum", "equal", "not_equal", "greater", "greater_equal", "less", "less_equal"]
REDUCTIONS = [
    "reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "reduce_l1_norm", "reduce_l2_norm", "reduce_sum_square",
    "reduce_log_sum_exp",
]  # fmt: skip

CASES: list[tuple[str, dict[str, Any]]] = [
    *((op, {"x": x}) for op, x in UNARY.items()),
    *((op, {"x": X, "y": X[:1, :, ::-1].copy()}) for op in BINARY),
    *((op, {"x": WHOLE, "y": np.int32(2)}) for op in ("add", "sub", "mul", "mod", "floor_div", "maximum", "equal", "less")),
    ("mod", {"x": X, "y": np.float32(-0.7)}),
    ("floor_div", {"x": X, "y": np.float32(-0.7)}),
    ("pow", {"x": POSITIVE, "y": X}),
    ("pow", {"x": WHOLE, "y": np.int32(3)}),
    *((op, {"x": BOOL, "y": ~BOOL[:1]}) for op in ("logical_and", "logical_or", "logical_xor")),
    ("logical_not", {"x": BOOL}),
    *((op, {"x": X, "axes": axes, "keep_dims": keep}) for op in REDUCTIONS for axes, keep in (([1], False), ([-1, 0], True))),
    *((op, {"x": X}) for op in REDUCTIONS),
    ("reduce_sum", {"x": WHOLE, "axes": [0]}),
    ("reduce_mean", {"x": WHOLE, "axes": [0]}),
    ("reduce_log_sum", {"x": POSITIVE, "axes": [2]}),
    *((op, {"x": TIES, "axis": 1, "keep_dims": keep}) for op in ("reduce_argmax", "reduce_argmin") for keep in (False, True)),
    ("clip", {"x": X, "alpha": -0.5, "beta": 0.25}),
    ("threshold", {"x": X, "alpha": 0.25}),
    ("clamped_relu", {"x": X, "alpha": 0.3, "beta": 0.5}),
    ("elu", {"x": X, "alpha": 0.7}),
    *(("gelu", {"x": X, "mode": mode}) for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")),
    ("leaky_relu", {"x": X, "alpha": 0.2}),
    ("linear_activation", {"x": X, "alpha": 0.2, "beta": 3.0}),
    ("prelu", {"x": IMAGE, "alpha": np.array([0.1, 0.2, -0.3, 2], np.float32)}),
    ("scaled_tanh", {"x": X, "alpha": 1.5, "beta": 0.5}),
    ("sigmoid_hard", {"x": X, "alpha": 0.4, "beta": 0.3}),
    ("softplus_parametric", {"x": IMAGE, "alpha": np.array([1, 2, 3, 4], np.float32), "beta": np.array([1, -1, 2, 0.5], np.float32)}),
    ("thresholded_relu", {"x": X, "alpha": 0.4}),
    ("softmax", {"x": X, "axis": 1}),
    ("inverse", {"x": POSITIVE, "epsilon": 0.5}),
    ("log", {"x": POSITIVE, "epsilon": 0.5}),
    ("rsqrt", {"x": POSITIVE, "epsilon": 0.5}),
    *(("cast", {"x": 10 * X, "dtype": dtype}) for dtype in ("int32", "int8", "int16", "fp32", "bool")),
    *(("cast", {"x": 100 * WHOLE, "dtype": dtype}) for dtype in ("uint8", "int8", "uint16", "fp32", "bool")),
    ("select", {"cond": BOOL, "a": X, "b": -X}),
    ("linear", {"x": X, "weight": MATRIX, "bias": np.arange(5, dtype=np.float32)}),
    ("matmul", {"x": X, "y": MATRIX, "transpose_y": True}),
    ("matmul", {"x": X, "y": X, "transpose_x": True}),
    ("matmul", {"x": WHOLE, "y": WHOLE, "transpose_y": True}),
    ("einsum", {"values": [IMAGE, RNG.normal(size=(2, 5, 6, 3)).astype(np.float32)], "equation": "bchw,bwhu->bchu"}),
    ("einsum", {"values": [X, RNG.normal(size=(4, 3, 5)).astype(np.float32)], "equation": "vnm,mno->vno"}),
    ("layer_norm", {"x": X, "axes": [2], "gamma": np.arange(4, dtype=np.float32), "beta": np.ones(4, np.float32), "epsilon": 1e-2}),
    ("layer_norm", {"x": X, "axes": [1], "gamma": np.arange(3, dtype=np.float32), "beta": np.ones(3, np.float32)}),
    ("layer_norm", {"x": X, "axes": [0, 2]}),
    ("layer_norm", {"x": X, "axes": [-1, -2]}),
    ("l2_norm", {"x": IMAGE, "epsilon": 1e-2}),
    ("scaled_dot_product_attention", {"query": X, "key": X[:, ::-1].copy(), "value": X + 1}),
    ("scaled_dot_product_attention", {"query": X, "key": X, "value": X, "attn_mask": np.tril(np.ones((3, 3), bool))}),
    ("scaled_dot_product_attention", {"query": X, "key": X, "value": X, "attn_mask": X[0, :, :3].copy()}),
    ("reshape", {"x": X, "shape": [4, -1]}),
    ("reshape", {"x": X, "shape": [0, -1]}),
    ("reshape", {"x": X, "shape": [1, 0, 0, 0]}),
    ("transpose", {"x": X, "perm": [2, 0, 1]}),
    ("expand_dims", {"x": X, "axes": [0, -1]}),
    ("squeeze", {"x": X[:1, :, :1], "axes": [0, -1]}),
    ("squeeze", {"x": X[:1, :, :1]}),
    ("concat", {"values": [X, X[:1]], "axis": 0}),
    ("stack", {"values": [X, -X], "axis": 1}),
    ("flatten2d", {"x": X, "axis": 2}),
    ("tile", {"x": X, "reps": [2, 1, 3]}),
    ("fill", {"shape": [2, 3], "value": 1.5}),
    ("fill", {"shape": [2, 3], "value": np.int32(4)}),
    ("fill_like", {"ref_tensor": X, "value": 1.5}),
    ("reverse", {"x": X, "axes": [0, 2]}),
    ("reverse", {"x": X}),
    ("gather", {"x": X, "indices": np.array([[0, 2], [1, 1]], np.int32), "axis": 1}),
    ("gather", {"x": X, "indices": np.array([-1, 0], np.int32), "axis": -1}),
    ("gather", {"x": X, "indices": np.int32(1), "axis": 0}),
    ("gather", {"x": IMAGE, "indices": np.array([[0, 2, 1], [1, 1, 3]], np.int32), "axis": 1, "batch_dims": 1}),
    ("gather", {"x": IMAGE, "indices": np.array([[0, 2, 1], [1, 1, 3]], np.int32), "axis": 3, "batch_dims": 1}),
    ("gather_along_axis", {"x": X, "indices": np.array([[[0, 1, 2, 0]], [[2, 2, -1, 0]]], np.int32), "axis": 1}),
    ("slice_by_index", {"x": X, "begin": [0, 1, 3], "end": [2, 3, 0], "stride": [1, 1, -1]}),
    ("slice_by_index", {"x": X, "begin": [0] * 3, "end": [0] * 3, "begin_mask": [True] * 3, "end_mask": [True] * 3, "stride": [1, 2, -2]}),
    ("slice_by_index", {"x": X, "begin": [-1, 0, -3], "end": [9, 3, -1], "squeeze_mask": [True, False, False]}),
    ("slice_by_size", {"x": X, "begin": [1, 0, 2], "size": [1, -1, 2]}),
    ("slice_update", {"x": X, "update": np.ones((2, 2, 2), np.float32), "begin": [0, 1, 0], "end": [2, 3, 4], "stride": [1, 1, 2]}),
    *(("pad", {"x": X, "pad": [1, 0, 2, 1], "mode": mode}) for mode in ("constant", "reflect", "replicate")),
    ("pad", {"x": IMAGE, "pad": [1, 0, 0, 2, 0, 0, 3, 1], "constant_val": 2.5}),
    ("cumsum", {"x": X, "axis": 1}),
    ("cumsum", {"x": X, "axis": -1, "reverse": True}),
    ("range_1d", {"start": np.int32(2), "end": np.int32(11), "step": np.int32(3)}),
    ("range_1d", {"start": np.float32(0.5), "end": np.float32(3.1), "step": np.float32(0.5)}),
    ("band_part", {"x": X, "lower": 1, "upper": 0}),
    ("band_part", {"x": X, "lower": -1, "upper": 1}),
    *(("argsort", {"x": X, "axis": axis, "ascending": up}) for axis in (1, -1) for up in (False, True)),
    ("quantize", {"input": 9 * X, "zero_point": np.int8(3), "scale": 0.1, "output_dtype": "int8"}),
    ("quantize", {"input": X, "zero_point": np.arange(3, dtype=np.uint8), "scale": POSITIVE[0, :, 0], "axis": 1, "output_dtype": "uint8"}),
]  # fmt: skip


def case_id(case: tuple[str, dict[str, Any]]) -> str:
    return f"{case[0]}-" + ",".join(f"{k}={v}" for k, v in case[1].items() if not isinstance(v, np.ndarray) and "values" not in k)[:60]


def mil(op: str, arguments: dict[str, Any], opset: str = "CoreML8") -> Any:
    """MIL's own value of the op for constant inputs."""
    ct = quiet_coremltools()
    from coremltools.converters.mil.mil import Builder, Function

    target = {"CoreML5": ct.target.iOS15, "CoreML6": ct.target.iOS16, "CoreML7": ct.target.iOS17, "CoreML8": ct.target.iOS18}[opset]
    with Function({}, opset_version=target):
        result = getattr(Builder, op)(**arguments)
    return tuple(part.val for part in result) if isinstance(result, tuple | list) else result.val


@pytest.fixture(scope="module", autouse=True)
def _no_overflow_warnings() -> Any:
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_a_lowering_gives_mils_own_value(evaluate: Callable[..., Any], case: tuple[str, dict[str, Any]]) -> None:
    op, arguments = case
    want = mil(op, dict(arguments))
    assert want is not None
    found = evaluate(op, **arguments)
    assert found.shape == np.shape(want)
    np.testing.assert_allclose(found, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("axis", [1, -1])
def test_topk_gives_mils_values_and_indices(evaluate: Callable[..., Any], axis: int, ascending: bool) -> None:
    arguments = {"x": X, "k": 2, "axis": axis, "ascending": ascending}
    for found, want in zip(evaluate("topk", results=2, **arguments), mil("topk", arguments), strict=True):
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("arguments", [{"num_splits": 2, "axis": 2}, {"split_sizes": [1, 2, 1], "axis": -1}], ids=["equal", "sizes"])
def test_split_gives_mils_parts(evaluate: Callable[..., Any], arguments: dict[str, Any]) -> None:
    want = mil("split", {"x": X, **arguments})
    for found, part in zip(evaluate("split", results=len(want), x=X, **arguments), want, strict=True):
        np.testing.assert_array_equal(found, part)


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
    found = evaluate("slice_by_index", **arguments)
    np.testing.assert_array_equal(found, expected)
    if expected.size:
        np.testing.assert_array_equal(found, mil("slice_by_index", arguments))


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
        want = Builder.max_pool(**arguments).shape
    assert evaluate("max_pool", **arguments).shape == want


class TestSignatures:
    """A lowering's parameters are MIL's: checked against the registry that the converter itself uses."""

    @pytest.mark.parametrize("opset", OPSETS[:4])
    def test_every_op_of_an_opset_has_a_lowering_with_mils_parameters(self, opset: str) -> None:
        ct = quiet_coremltools()
        from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

        load_lowerings()
        target = {"CoreML5": ct.target.iOS15, "CoreML6": ct.target.iOS16, "CoreML7": ct.target.iOS17, "CoreML8": ct.target.iOS18}[opset]
        # Constants are no ops here; conv_quantized never reaches an ML program: it belongs to neural networks.
        left_out = {"const", "_const_symbolic", "conv_quantized"}
        problems = []
        for op, versions in SSAOpRegistry.core_ops.items():
            known = [version for version in versions if version <= target]
            if op in left_out or not known:
                continue
            spec = versions[max(known)].input_spec.input_types
            lowering = find(op, opset)
            wanted = {name for name in spec if not name.startswith("_")}
            if lowering is None or not wanted <= lowering.forms.keys():
                problems.append(f"{op}: {'no lowering' if lowering is None else wanted - lowering.forms.keys()}")
            elif lowering.required > {name for name in wanted if not spec[name].optional}:
                problems.append(f"{op}: requires {lowering.required}")
        assert problems == []

    def test_no_lowering_stands_for_an_op_that_does_not_exist(self) -> None:
        quiet_coremltools()
        from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

        load_lowerings()
        assert set(supported_ops()) - set(SSAOpRegistry.core_ops) == {"coreml_update_state", "write_state"}
