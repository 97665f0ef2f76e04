"""Measures of difference."""

import math

import numpy as np
import pytest

from coreflow.models.arrays import Floats
from coreflow.validate.gates.metrics import independent_share, max_abs, non_finite, ratio, relative_rms, rms, snr_db, worst_slice
from coreflow.validate.gates.tolerance import few_elements_factor


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0, 4.0], math.sqrt(12.5)), ([0.0, 0.0], 0.0), ([1e300, 1e300], 1e300), ([1e-300, 1e-300], 1e-300), ([1.0, math.inf], math.inf)],
    ids=["plain", "zeros", "huge", "tiny", "infinite"],
)
def test_rms(values: list[float], expected: float) -> None:
    assert rms(np.array(values)) == pytest.approx(expected)


@pytest.mark.parametrize("measure", [rms, max_abs], ids=["rms", "max_abs"])
def test_nan_and_nothing_give_nan(measure) -> None:  # type: ignore[no-untyped-def]
    assert math.isnan(measure(np.array([1.0, math.nan])))
    assert math.isnan(measure(np.array([])))


def test_a_difference_in_fp16_is_taken_in_float64() -> None:
    # 2048 + 1 is 2048 in fp16, and 60000² is no number there.
    assert max_abs(np.array([60000], np.float16)) == 60000
    assert rms(np.array([60000, 60000], np.float16)) == 60000


def test_snr_of_a_hundredth_is_forty_decibels() -> None:
    assert snr_db(np.full(5, 0.01), np.ones(5)) == pytest.approx(40)
    assert snr_db(np.zeros(5), np.ones(5)) == math.inf
    assert relative_rms(np.zeros(3), np.zeros(3)) == 0


@pytest.mark.parametrize(("above", "below", "expected"), [(0, 0, 0), (1, 0, math.inf), (1, 2, 0.5)])
def test_ratio(above: float, below: float, expected: float) -> None:
    assert ratio(above, below) == expected


def test_a_ratio_of_nan_is_nan() -> None:
    assert math.isnan(ratio(math.nan, 0)) and math.isnan(ratio(math.nan, 1))


def test_the_worst_slice_is_the_channel_that_is_off() -> None:
    error, noise = np.ones((8, 1, 16, 32)), np.ones((8, 1, 16, 32))
    error[:, :, :, 17] = 5
    worst = worst_slice(error, noise, 0.0, shares=[1.0] * error.ndim)
    assert (worst.axis, worst.index, worst.ratio) == (3, 17, 5.0)


def test_the_worst_slice_is_measured_by_its_own_budget_and_never_below_the_floor() -> None:
    error, noise = np.ones((8, 1, 16)), np.ones((8, 1, 16))
    error[:, :, 3] = noise[:, :, 3] = 100  # as noisy as it may be
    error[:, :, 5], noise[:, :, 5] = 0.5, 0.0
    worst = worst_slice(error, noise, floor=0.1, shares=[1.0] * error.ndim)
    assert (worst.axis, worst.index, worst.ratio) == (2, 5, 5.0)


def test_a_slice_with_nan_is_the_worst() -> None:
    error, noise = np.ones((2, 4)), np.ones((2, 4))
    error[1, 2] = math.nan
    assert math.isnan(worst_slice(error, noise, 0.0, shares=[1.0] * error.ndim).ratio)


def test_non_finite_values_are_counted() -> None:
    assert non_finite(np.array([1.0, math.nan, -math.inf])) == 2


def test_a_slice_that_is_mostly_exact_counts_the_elements_that_are_not() -> None:
    error, noise = np.zeros((16, 5)), np.zeros((16, 5))
    error[:2, 3], noise[:2, 3] = 4.0, 1.0
    error[:, 1], noise[:, 1] = 3.0, 1.0
    worst = worst_slice(error, noise, 0.0, shares=[1.0] * error.ndim)
    # Two elements four times too large are no news; sixteen three times too large are.
    assert (worst.axis, worst.index) == (1, 1)
    assert worst.factor == few_elements_factor(16, comparisons=16 + 5)


SAMPLES, CHANNELS = 8, 200


def correlated_errors(random: np.random.Generator, correlation: float) -> Floats:
    """(samples, channels) of variance 1; any two samples are correlated."""
    common, own = random.standard_normal((1, CHANNELS)), random.standard_normal((SAMPLES, CHANNELS))
    return math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_the_independent_share_of_samples_is_that_of_the_variance_of_their_mean_square(correlation: float) -> None:
    random = np.random.default_rng(0)
    mean_squares = np.concatenate([np.mean(correlated_errors(random, correlation) ** 2, 0) for _ in range(400)])
    # A mean of N independent squares of normal numbers has the variance 2 / N.
    freedom = 2 * np.mean(mean_squares) ** 2 / np.var(mean_squares)
    shares = [independent_share(correlated_errors(random, correlation), 0) for _ in range(100)]
    assert SAMPLES * np.mean(shares) == pytest.approx(freedom, rel=0.05)


def test_errors_that_are_not_there_or_not_finite_have_no_correlation() -> None:
    assert independent_share(np.zeros((8, 3)), 0) == independent_share(np.full((8, 3), math.inf), 0) == 1
    assert independent_share(np.ones((1, 3)), 0) == 1


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
def test_the_worst_of_many_correlated_slices_gives_a_false_alarm_in_no_more_than_one_case_of_a_thousand(correlation: float) -> None:
    random, alarms, cases = np.random.default_rng(1), 0, 300
    for _ in range(cases):
        error, noise = (correlated_errors(random, correlation) for _ in range(2))
        shares = [independent_share(noise, axis) for axis in range(2)]
        alarms += worst_slice(error, noise, 0.0, shares).excess > 1
    assert alarms <= 3  # more have a probability of 0.03 %; with eight samples as independent ones, 0.9 gives 254


def test_a_channel_that_is_off_in_all_samples_is_seen_where_samples_are_independent() -> None:
    random = np.random.default_rng(2)
    error, noise = (correlated_errors(random, 0.0) for _ in range(2))
    error[:, 17] *= 20
    worst = worst_slice(error, noise, 0.0, [independent_share(noise, axis) for axis in range(2)])
    assert (worst.axis, worst.index) == (1, 17) and worst.excess > 1
