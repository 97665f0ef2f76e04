"""Numerics of the Neural Engine: published probes of elementwise ops, tables and reductions, and ops against torch within their error."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from coreflow.models.arrays import Array
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.lift.numerics import engine_tables as tables
from coreflow.runtime.lift.numerics.engine_fp16 import round_to_fp16
from coreflow.runtime.lift.numerics.engine_sums import reduce_sum
from coreflow.runtime.lift.numerics.named import NUMERICS, numerics_named
from coreflow.validate.probe import check

PROBES_FILE = Path(check.__file__).parent / "engine-probes.json"
PROBES = json.loads(PROBES_FILE.read_text())
Evaluate = Callable[..., Any]


@pytest.fixture
def on_engine(evaluate: Evaluate) -> Evaluate:
    """``on_engine(op, chip="m4", x=...)``: the result of an op of fp16 numbers as float64."""

    def run(op: str, chip: str = "m4", declared: str = "float16", **arguments: Any) -> Array:
        plain = {name: half(value) if isinstance(value, np.ndarray) else value for name, value in arguments.items()}
        return np.asarray(evaluate(op, numerics=f"engine-{chip}", declared=declared, **plain), np.float64)

    return run


def half(value: Array) -> Array:
    return value.astype(np.float16) if value.dtype.kind == "f" else value


def test_elementwise_probes(on_engine: Evaluate) -> None:
    probes = [probe for probe in PROBES["probes"] if probe["unit"] == "pe"]
    wrong = []
    for probe in probes:
        x, y = (np.array([float(probe[name])], np.float16) for name in "xy")
        if (actual := on_engine(probe["op"], "m6", x=x, y=y)[0]) != float(probe["out"]):
            wrong.append((probe, actual))
    assert len(probes) == 47 and wrong == []


# Worst absolute error, worst error in units of the last place and where: M6, data/06_numerics (K in ane-hardware.md). Where None stands the
# worst unit lies in a tail of unknown slope, near a multiple of pi, or at one of several places of that error.
CHECKS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], float, float, float, float | None, float | None]] = {
    "sigmoid": (tables.sigmoid, torch.sigmoid, -12, 12, 3.355e-3, None, None),
    "tanh": (tables.tanh, torch.tanh, -6, 6, 1.613e-3, 11.0, None),
    "erf": (tables.erf, torch.erf, -9, 9, 8.642e-4, 3.0, None),
    "sin": (tables.sin, torch.sin, -8, 8, 6.329e-4, None, None),
    "exp": (tables.exp, torch.exp, -12, 10, 1.008e2, 9.1, 9.703),
    "log": (tables.log, torch.log, 2.0**-10, 1000, 6.638e-3, 91.0, 1.004),
    "sqrt": (tables.sqrt, torch.sqrt, 2.0**-10, 1000, 1.810e-2, 1.2, 0.002054),
    "rsqrt": (tables.rsqrt, torch.rsqrt, 2.0**-6, 1000, 8.139e-3, 2.1, 0.0332),
    "inverse": (lambda x: tables.reciprocal(round_to_fp16(x + 1e-4)), torch.reciprocal, 2.0**-6, 1000, 0.4375, 13.5, 0.01587),
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_table_has_the_worst_error_that_was_measured(name: str) -> None:
    function, exact, low, high, largest, units, place = CHECKS[name]
    positive = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    every = np.unique(np.concatenate([-positive, positive]))
    x = torch.from_numpy(every[(every >= low) & (every <= high)])
    error = (function(x) - exact(x)).abs()
    assert f"{float(error.max()):.4g}" == f"{largest:.4g}"
    last_place = torch.exp2(torch.floor(torch.log2(exact(x).abs().clamp_min(2.0**-14))) - 10)
    if units is not None:
        assert f"{float((error / last_place).max()):.1f}" == f"{units:.1f}"
    if place is not None:
        assert f"{float(x[(error / last_place).argmax()]):.4g}" == f"{place:.4g}"


@pytest.mark.parametrize("largest", [1.0, 2000.0, 3000.0, 4090.0, 4096.0, 8192.0, 30000.0])
def test_ones_beside_large_numbers_survive_a_reduction_below_4096(largest: float) -> None:
    """G3 in ane-hardware.md (M1): of sixteen ones all up to 4090, four from 4096 on."""
    expected = 16.0 if largest <= 4090 else 4.0
    for triple in ([largest, -largest, 1.0], [-largest, largest, 1.0]):
        x = torch.tensor(triple * 16, dtype=torch.float64)
        assert float(reduce_sum(x, (0,), keep_dims=False)) == expected


def test_a_large_number_and_many_ones() -> None:
    x = torch.tensor([4096.0] + [1.0] * 1024, dtype=torch.float64)
    assert float(reduce_sum(x, (0,), keep_dims=False)) == 5116  # G3, M1


def test_fixed_points(on_engine: Evaluate) -> None:
    """Special values of ane-hardware.md 1.3 and 1.4, M1 (G3) unless noted."""

    def of(op: str, *numbers: float, **further: Any) -> list[float]:
        return list(on_engine(op, x=np.array(numbers), **further))

    nan, inf = math.nan, math.inf
    assert of("log", 0.0) == [-45440.0] and of("log", -1.0) == [0.0]
    assert of("sqrt", -1.0) == [0.0] and of("rsqrt", -1.0) == [0.0]
    assert of("sigmoid", nan, inf) == [1.0, 1.0] and of("tanh", nan) == [1.0] and of("erf", nan) == [1.0]
    assert of("exp", nan, 11.1, 11.0) == [inf, inf, pytest.approx(59874, rel=0.01)]
    assert of("softplus", 10.3, 10.5) == [pytest.approx(10.3, rel=1e-2), 0.0]  # M4, through Core ML
    assert of("round", 0.5, -2.5, 1024.0, 1025.0, -2047.0) == [1.0, -3.0, 1025.0, 1026.0, -2048.0]  # M5
    assert of("softmax", 1000.0, 1.0, 2.0, 3.0) == [1.0, 0.0, 0.0, 0.0]
    assert list(on_engine("sub", x=np.array([inf]), y=np.array([inf]))) == [0.0]
    assert list(on_engine("mul", x=np.array([0.0, 256.0]), y=np.array([inf, 256.0]))) == [0.0, inf]
    assert math.copysign(1, on_engine("add", x=np.array([-0.0]), y=np.array([0.0]))[0]) == 1


@pytest.mark.parametrize(("chip", "expected"), [("m1", math.inf), ("m2", math.inf), ("m4", 4095.0), ("m6", 4095.0)])
def test_a_slice_inside_the_last_axis_multiplies_by_16_on_the_first_chips(on_engine: Evaluate, chip: str, expected: float) -> None:
    x = np.array([[1.0, 4094.0, 4096.0]])
    x[0, 2] = 4095.0 if chip in ("m4", "m6") else 4096.0
    inside = on_engine("slice_by_index", chip, x=x, begin=[0, 1], end=[1, 3])
    assert inside[0, 0] == 4094.0 and (inside[0, 1] == math.inf) == (expected == math.inf)
    assert on_engine("slice_by_index", chip, x=x, begin=[0, 0], end=[1, 3]).tolist() == half(x).astype(float).tolist()
    assert on_engine("slice_by_size", chip, x=x, begin=[0, 1], size=[1, 1]).tolist() == [[4094.0]]


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


# By op: its arguments, and torch's function of them.
CASES: dict[str, tuple[dict[str, Any], Callable[..., Tensor]]] = {
    "linear": ({"x": random(2, 3, 16), "weight": random(5, 16, seed=1), "bias": random(5, seed=2)}, functional.linear),
    "matmul": ({"x": random(2, 16, 3), "y": random(2, 5, 16, seed=1), "transpose_x": True, "transpose_y": True}, lambda x, y: x.mT @ y.mT),
    "conv": (
        {"x": random(2, 4, 9, 8), "weight": random(6, 2, 3, 2, seed=1), "bias": random(6, seed=2), "strides": [2, 1], "groups": 2,
         "pad_type": "custom", "pad": [1, 1, 0, 0], "dilations": [1, 2]},
        lambda x, w, b: functional.conv2d(x, w, b, (2, 1), (1, 0), (1, 2), 2),
    ),
    "conv_transpose": (
        {"x": random(2, 4, 5), "weight": random(4, 3, 3, seed=1), "bias": random(6, seed=2), "strides": [2], "groups": 2,
         "pad_type": "custom", "pad": [1, 1], "dilations": [2]},
        lambda x, w, b: functional.conv_transpose1d(x, w, b, 2, 1, 0, 2, 2),
    ),
    "scaled_dot_product_attention": (
        {"query": random(1, 2, 4, 8), "key": random(1, 2, 6, 8, seed=1), "value": random(1, 2, 6, 5, seed=2),
         "attn_mask": random(1, 1, 4, 6)},
        functional.scaled_dot_product_attention,
    ),
    "softmax": ({"x": random(3, 8)}, lambda x: x.softmax(-1)),
    "layer_norm": (
        {"x": random(2, 3, 8), "axes": [-1], "gamma": random(8, seed=1), "beta": random(8, seed=2)},
        lambda x, gamma, beta: functional.layer_norm(x, (8,), gamma, beta),
    ),
    "instance_norm": (
        {"x": random(2, 3, 8), "gamma": random(3, seed=1), "beta": random(3, seed=2)},
        lambda x, gamma, beta: functional.instance_norm(x, weight=gamma, bias=beta),
    ),
    "gelu": ({"x": random(3, 8)}, functional.gelu),
    "reduce_mean": ({"x": random(3, 4, 5), "axes": [0, -1], "keep_dims": True}, lambda x: x.mean((0, 2), keepdim=True)),
    "real_div": ({"x": random(3, 4), "y": random(4, seed=1) + 3}, torch.div),
    "reshape": ({"x": random(3, 4), "shape": [4, 3]}, lambda x: x.reshape(4, 3)),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["m4", "m4-fast"])
@pytest.mark.parametrize("op", CASES)
def test_an_op_is_torchs_within_the_errors_of_the_engine(on_engine: Evaluate, op: str, mode: str) -> None:
    arguments, function = CASES[op]
    tensors = [torch.from_numpy(half(value).astype(np.float64)) for value in arguments.values() if isinstance(value, np.ndarray)]
    expected = function(*tensors).numpy()
    actual = on_engine(op, mode, **arguments)
    assert actual.shape == expected.shape
    assert np.array_equal(actual, actual.astype(np.float16))
    np.testing.assert_allclose(actual, expected, rtol=4e-3, atol=4e-3)


def test_an_einsum_is_its_product_of_matrices(on_engine: Evaluate, evaluate: Evaluate) -> None:
    x, y = half(random(1, 8, 2, 5)), half(random(1, 6, 2, 8, seed=1))
    actual = on_engine("einsum", values=[x, y], equation="bchq,bkhc->bkhq")
    expected = np.einsum("bchq,bkhc->bkhq", x.astype(float), y.astype(float))
    np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=2e-3)


def test_what_is_declared_fp32_is_computed_as_on_the_cpu(evaluate: Evaluate) -> None:
    x = np.array([1e-6, 0.1], np.float32)
    assert np.array_equal(evaluate("mul", numerics="engine-m4", x=x, y=x), x.astype(float) ** 2)


def test_names() -> None:
    assert {name for name in NUMERICS if name.startswith("engine")} == {
        f"engine-{chip}{form}" for chip in ("m1", "m2", "m4", "m5", "m6") for form in ("", "-fast")
    }
    with pytest.raises(UnsupportedError, match=r"numerics 'engine-m3'; choose one of fp64, .*engine-m4"):
        numerics_named("engine-m3")  # type: ignore[arg-type]
