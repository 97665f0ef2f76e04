"""The multiply-accumulate core reproduces every published probe and product, and a slow obvious version of its rules."""

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coreflow.models.arrays import Array
from coreflow.runtime.lift.numerics import engine_products
from coreflow.runtime.lift.numerics.engine_fp16 import round_to_fp16
from coreflow.runtime.lift.numerics.engine_products import multiply_accumulate
from coreflow.validate.probe import check

PROBES_FILE = Path(check.__file__).parent / "engine-probes.json"
PROBES = json.loads(PROBES_FILE.read_text())["probes"]
MAC = [probe for probe in PROBES if probe["unit"] == "mac" and "note" not in probe]  # those with a note never reached the engine

# Relative error of the first 256 rows of x @ w.T of fp16 operands, by (M, K, N): ANEForge, bench/results (MIT), equal on M1, M1 Max,
# M2 Max, M4, M4 Max and M6.
PUBLISHED = {
    (64, 256, 256): 0.0012522854527169441,
    (128, 1024, 1024): 0.005521493491066958,
    (512, 512, 512): 0.0025780039702379184,
    (1024, 1024, 1024): 0.005528352999597524,
    (2048, 2048, 2048): 0.012131920427695626,
    (256, 4096, 4096): 0.027275490149715163,
}
FAST = 1 << 23  # products


def tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float16).astype(np.float64))


def of_probe(probe: dict[str, Any]) -> Array:
    return np.array(probe["x_bits"], np.uint16).view(np.float16) if "x_bits" in probe else np.array(probe["x"], np.float16)


def test_every_published_probe_is_reproduced() -> None:
    wrong = []
    for probe in MAC:
        x = of_probe(probe)
        bits = x.view(np.uint16).astype(np.int64)
        # NaN of another pattern than 0x7e00 is a number of its own on the engine; a float64 tensor knows one NaN.
        patterns = np.where(bits >> 15, -1, 1) * (1 + (bits & 0x3FF) / 1024) * 2.0**16
        numbers = np.where((bits & 0x7C00 == 0x7C00) & (bits & 0x3FF != 0), patterns, x.astype(np.float64))
        weight = torch.full((1, len(x)), probe["w"], dtype=torch.float64)
        actual = multiply_accumulate(torch.from_numpy(numbers)[None], weight, tensor([probe["bias"]]))
        if float(actual) != float(probe["out"]):
            wrong.append((probe, float(actual)))
    assert len(MAC) == 331 and wrong == []


def named(sizes: tuple[int, int, int]) -> Any:
    return pytest.param(sizes, marks=[] if math.prod(sizes) < FAST else pytest.mark.slow, id="x".join(map(str, sizes)))


@pytest.mark.parametrize("sizes", list(map(named, PUBLISHED)))
def test_published_errors_of_products_come_out_to_twelve_digits(sizes: tuple[int, int, int]) -> None:
    m, k, n = sizes
    random = np.random.default_rng(0)
    x, w = (random.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(k)) for shape in ((m, k), (n, k)))
    x = x[:256]
    reference = x.astype(np.float64) @ w.astype(np.float64).T
    actual = multiply_accumulate(tensor(x), tensor(w)).numpy()
    assert np.linalg.norm(actual - reference) / np.linalg.norm(reference) == pytest.approx(PUBLISHED[sizes], rel=1e-12)


def by_hand(x: Array, w: Array, bias: float) -> float:
    """The rules of the module docstring, in fractions, one term after the other."""

    def nearest(value: Fraction, step: Fraction) -> Fraction:
        whole = abs(value) / step + Fraction(1, 2)
        return (1 if value >= 0 else -1) * (whole.numerator // whole.denominator) * step

    step = Fraction(1, 1 << 16)
    total = nearest(Fraction(bias), step)
    crossed = 0.0
    for a, b in zip(x.tolist(), w.tolist(), strict=True):
        if not crossed and abs(total) >= 1 << 15:
            crossed = math.copysign(math.inf, total)
        exponents = [max(math.frexp(number)[1] - 1, -14) for number in (a, b)]
        if sum(exponents) >= -16:
            total += nearest(Fraction(a) * Fraction(b), step)
    if not crossed and abs(total) >= 1 << 15:
        crossed = math.copysign(math.inf, total)
    return crossed or float(round_to_fp16(torch.tensor([float(total)], dtype=torch.float64)))


NUMBERS = st.one_of(
    st.floats(-300, 300, width=16), st.floats(-(2.0**-7), 2.0**-7, width=16), st.sampled_from([0.0, 2.0**-24, -(2.0**-14), 181.0, 1.98])
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12), st.floats(-30000, 30000, width=16))
def test_the_core_is_its_rules(terms: list[tuple[float, float]], bias: float) -> None:
    x, w = np.array(terms, np.float16).T
    actual = multiply_accumulate(tensor(x)[None], tensor(w)[None], tensor([bias]))
    assert float(actual) == by_hand(x, w, float(np.float16(bias)))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    x, w, bias = tensor(random.standard_normal((7, 33))), tensor(random.standard_normal((9, 33)) * 300), tensor(random.standard_normal(9))
    whole = multiply_accumulate(x, w, bias)
    monkeypatch.setattr(engine_products, "_BLOCK", 70)
    assert torch.equal(multiply_accumulate(x, w, bias), whole)
    assert torch.isinf(multiply_accumulate(x * 100, w, bias)).any()


def test_a_batch_is_its_products_one_by_one() -> None:
    random = np.random.default_rng(2)
    x, w = tensor(random.standard_normal((2, 1, 3, 8))), tensor(random.standard_normal((4, 5, 8)))
    actual = multiply_accumulate(x, w)
    assert actual.shape == (2, 4, 3, 5)
    assert torch.equal(actual[1, 2], multiply_accumulate(x[1, 0], w[2]))


@pytest.mark.parametrize("scale", [1.0, 1 / 64])
def test_the_fast_form_has_the_error_of_the_exact_one_in_size(scale: float) -> None:
    random = np.random.default_rng(3)
    x, w = tensor(random.standard_normal((64, 512)) * scale), tensor(random.standard_normal((64, 512)) * scale)
    reference = x @ w.T
    exact, fast = (torch.linalg.norm(multiply_accumulate(x, w, is_exact=way) - reference) for way in (True, False))
    assert 0.8 < float(fast / exact) < 1.25


def test_the_fast_form_overflows_where_the_exact_one_does() -> None:
    x, w = torch.full((1, 8), 128.0, dtype=torch.float64), torch.full((1, 8), 32.0, dtype=torch.float64)
    assert float(multiply_accumulate(x, w, is_exact=False)) == math.inf
    assert float(multiply_accumulate(-x, w, is_exact=False)) == -math.inf
