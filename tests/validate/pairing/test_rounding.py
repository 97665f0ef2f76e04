"""Rounding and layouts: what a converter may do to a weight, and nothing more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreflow.models.arrays import Array
from coreflow.validate.pairing.rounding import is_rounding_of, layouts, relative_distance


def drawn(seed: int, shape: tuple[int, ...], scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@given(seed=st.integers(0, 1000), exponent=st.integers(-12, 4))
def test_numbers_rounded_to_fp16_are_the_rounding(seed: int, exponent: int) -> None:
    values = drawn(seed, (256,), 10.0**exponent)
    assert is_rounding_of(values.astype(np.float16), values).all()


@given(seed=st.integers(0, 1000), steps=st.integers(2, 5), sign=st.sampled_from([-1, 1]))
def test_numbers_two_steps_away_are_not(seed: int, steps: int, sign: int) -> None:
    values = drawn(seed, (256,))
    stored = (values.astype(np.float16).view(np.int16) + np.int16(sign * steps)).view(np.float16)
    assert not is_rounding_of(stored, values).any()


@pytest.mark.parametrize(
    ("stored", "value", "expected"),
    [
        pytest.param(np.inf, 3.4e38, True, id="overflows"),
        pytest.param(-65504.0, -3.4e38, True, id="the largest number in place of an overflow"),
        pytest.param(np.inf, -3.4e38, False, id="overflows to the other side"),
        pytest.param(np.inf, 1.0, False, id="infinite for a small number"),
        pytest.param(2.0**-24, 1e-12, True, id="an epsilon raised to the smallest number"),
        pytest.param(0.0, 1e-12, True, id="an epsilon that vanished"),
        pytest.param(2e-5, 1e-5, False, id="another epsilon"),
        pytest.param(np.nan, np.nan, True, id="not a number in both"),
        pytest.param(np.nan, 1.0, False, id="not a number"),
        pytest.param(-np.inf, -np.inf, True, id="a mask"),
    ],
)
def test_ends_of_fp16(stored: float, value: float, expected: bool) -> None:
    assert is_rounding_of(np.array([stored], np.float16), np.array([value]))[0] == expected


@given(data=st.data(), seed=st.integers(0, 100), shape=st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple))
def test_every_order_of_axes_is_a_layout(data: st.DataObject, seed: int, shape: tuple[int, ...]) -> None:
    values = drawn(seed, shape)
    permuted = values.transpose(data.draw(st.permutations(range(len(shape))))).reshape(-1)
    assert any(np.array_equal(layout.reshape(-1), permuted) for layout in layouts(values))


def test_distance_is_relative() -> None:
    values = drawn(0, (1000,))
    assert relative_distance((values * 1.1).astype(np.float32), values) == pytest.approx(0.1, rel=1e-5)
    assert relative_distance(values, np.zeros(1000)) == np.inf
