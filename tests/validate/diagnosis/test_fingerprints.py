"""Fingerprints of tensors against numpy."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from coreflow.models.arrays import Array
from coreflow.validate.diagnosis.fingerprints import Fingerprint, distance, fingerprint, projections

RANDOM = np.random.default_rng(0)


def by_hand(values: Array) -> Fingerprint:
    x = np.asarray(values, np.float64).ravel()
    finite = x[np.isfinite(x)]
    peak = np.abs(finite).max()
    return Fingerprint(
        count=x.size,
        non_finite=x.size - finite.size,
        mean=finite.mean(),
        rms=math.sqrt((finite**2).mean()),
        mean_abs=np.abs(finite).mean(),
        skew=(finite**3).mean() / (peak * (finite**2).mean()) if peak else 0.0,
        min=finite.min(),
        max=finite.max(),
    )


VALUES: dict[str, Array] = {
    "normal": RANDOM.standard_normal((3, 4, 5)),
    "more than one block": RANDOM.exponential(2.0, 40_000),
    "fp16": RANDOM.standard_normal(64).astype(np.float16),
    "integers": RANDOM.integers(-5, 300, (7, 3)),
    "booleans": RANDOM.random(33) < 0.3,
    "a scalar": np.array(-2.5),
    "zeros": np.zeros((2, 3)),
    "a mask": np.where(RANDOM.random((4, 9)) < 0.5, -1e4, 0.0),
    "with infinities and NaN": np.array([1.0, np.inf, -3.0, np.nan, -np.inf, 0.5]),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_fingerprint_has_the_sums_that_numpy_computes(kind: str) -> None:
    assert dataclasses.asdict(fingerprint(VALUES[kind])) == pytest.approx(dataclasses.asdict(by_hand(VALUES[kind])), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", VALUES)
def test_layout_and_type_of_array_do_not_count(kind: str) -> None:
    values, reference = VALUES[kind], fingerprint(VALUES[kind])
    shuffled = np.random.default_rng(1).permutation(values.ravel())
    for same in (torch.from_numpy(values.copy()), values.T, torch.from_numpy(shuffled.copy()).reshape(1, -1), np.flip(values)):
        assert distance(fingerprint(same), reference) < 1e-13


def test_an_expanded_tensor_counts_as_if_it_were_written_out() -> None:
    row = torch.tensor([[1.0, float("nan"), -4.0]])
    expanded = row.expand(5, 3)
    assert distance(fingerprint(expanded), fingerprint(expanded.clone())) < 1e-15
    assert (fingerprint(expanded).count, fingerprint(expanded).non_finite) == (15, 5)


def test_sizes_whose_powers_overflow_or_vanish_are_told_apart() -> None:
    largest = np.finfo(np.float64).max
    for size in (1e-200, 1e200, largest):
        values = size * np.array([1.0, -0.5, 0.25])
        sums = fingerprint(values)
        assert sums.rms / size == pytest.approx(math.sqrt(1.3125 / 3))
        assert distance(sums, fingerprint(values[::-1])) == pytest.approx(0, abs=1e-15)
        assert distance(sums, fingerprint(-values)) > 0.1
    assert distance(fingerprint(np.array([largest, 0])), fingerprint(np.array([-largest, 0]))) == pytest.approx(math.sqrt(2))


def test_nothing_at_all_has_a_fingerprint_too() -> None:
    for empty in (np.zeros(0), np.array([np.nan])):
        assert distance(fingerprint(empty), fingerprint(empty)) == 0
    assert distance(fingerprint(np.zeros(0)), fingerprint(np.array([np.nan]))) == math.inf


def test_other_counts_are_infinitely_far_apart() -> None:
    assert distance(fingerprint(np.zeros(3)), fingerprint(np.zeros(4))) == math.inf
    assert distance(fingerprint(np.array([0, np.inf])), fingerprint(np.zeros(2))) == math.inf


@pytest.mark.parametrize("kind", ["normal", "more than one block", "a mask", "one large among many"])
@pytest.mark.parametrize("size", [1e-6, 2.0**-11])
def test_roundings_of_every_element_move_a_fingerprint_by_no_more_than_twice_their_size(kind: str, size: float) -> None:
    values = VALUES.get(kind, np.where(np.arange(50_000) == 7, 1.0, 1e-5))
    noisy = values * (1 + np.random.default_rng(2).uniform(-size, size, values.shape))
    assert 0 < distance(fingerprint(noisy), fingerprint(values)) <= 2.05 * size
    assert distance(fingerprint(noisy), fingerprint(values)) == distance(fingerprint(values), fingerprint(noisy))


@pytest.mark.parametrize("change", [lambda x: -x, lambda x: x + 0.01, lambda x: x * 1.01, np.abs, lambda x: x.clip(-1, 1)])
def test_other_values_are_apart(change: Callable[[Array], Array]) -> None:
    values = RANDOM.standard_normal(1000)
    assert distance(fingerprint(values), fingerprint(change(values))) > 5e-3


def apart(a: Array, b: Array) -> float:
    return float(np.sqrt(np.square(projections(a) - projections(b)).mean()))


@pytest.mark.parametrize("shape", [(12,), (3, 4, 5), (40_000,)], ids=str)
@pytest.mark.parametrize("size", [1e-9, 1e-3])
def test_projections_are_as_far_apart_as_the_tensors(shape: tuple[int, ...], size: float) -> None:
    values = RANDOM.uniform(-0.3, 0.3, shape)
    noisy = values + size * RANDOM.standard_normal(shape)
    relative = np.linalg.norm(noisy - values) / np.linalg.norm(values)
    assert relative / 8 < apart(values, noisy) < 8 * relative


def test_projections_see_the_order_and_no_shape() -> None:
    pair = RANDOM.standard_normal((2, 5, 20_000))
    assert apart(pair, pair.reshape(-1)) == 0
    assert apart(pair, pair[::-1]) > 0.1, "the two parts exchanged"
    blocks = RANDOM.standard_normal((4, 1 << 14))
    assert apart(blocks, blocks[[0, 2, 1, 3]]) > 0.1, "two blocks that are summed at a time, exchanged"
    square = RANDOM.standard_normal((6, 6))
    assert apart(square, square.T) > 0.1


def test_projections_see_small_numbers_beside_a_mask() -> None:
    masked = np.where(np.tri(32, dtype=bool), RANDOM.standard_normal((32, 32)), -1e4)
    assert apart(masked, np.where(masked > -1e3, masked * 1.001, masked)) > 1e-5


def test_projections_see_where_the_infinite_ones_are() -> None:
    assert apart(np.array([np.inf, 1.0, 2.0]), np.array([-np.inf, 1.0, 2.0])) > 0.1
    assert apart(np.array([np.inf, 1.0, np.nan]), np.array([np.nan, 1.0, np.inf])) > 0.1
    assert np.isfinite(projections(np.array([np.nan, np.inf, -np.inf]))).all()
    assert (projections(np.zeros(5)) == 0).all() and (projections(np.zeros(0)) == 0).all()
