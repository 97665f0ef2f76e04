"""Limits as values."""

import math
from dataclasses import replace

import pytest

from coreflow.models.errors import ConfigError
from coreflow.validate.gates.tolerance import DEVICE, LIFTED, Limits, few_elements_factor


@pytest.mark.parametrize(("elements", "factor"), [(10, 3.1), (30, 1.8), (100, 1.34)])
def test_few_elements_have_the_allowance_measured_for_their_number(elements: int, factor: float) -> None:
    assert few_elements_factor(elements) == pytest.approx(factor, rel=0.05)


def test_the_factor_is_the_quantile_of_the_f_distribution() -> None:
    stats = pytest.importorskip("scipy.stats")
    for elements in (*range(1, 30), 100, 199, 200, 201, 1000, 10**6):
        assert few_elements_factor(elements) == pytest.approx(math.sqrt(stats.f.ppf(0.999, elements, elements)), rel=1e-6)


@pytest.mark.parametrize("comparisons", [1, 8, 1000, 10**6])
@pytest.mark.parametrize("freedom", [1.0, 1.25, 2.5, 7.9, 33.3, 150.0, 199.99, 200.01, 5000.5])
def test_the_factor_of_many_comparisons_is_the_quantile_at_their_share_of_the_confidence(freedom: float, comparisons: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = math.sqrt(stats.f.isf(0.001 / comparisons, freedom, freedom))
    assert few_elements_factor(freedom, comparisons) == pytest.approx(expected, rel=5e-5)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 318.309), (2, 22.327), (5, 5.893), (10, 4.144), (30, 3.385), (1000, 3.098)],
    ids=str,
)
def test_the_factor_follows_from_printed_tables_of_students_t(freedom: int, quantile: float) -> None:
    x = quantile / math.sqrt(freedom)
    assert few_elements_factor(freedom) == pytest.approx(x + math.sqrt(1 + x * x), rel=2e-4)


def test_no_elements_allow_no_verdict_and_more_elements_allow_less() -> None:
    factors = [few_elements_factor(2**power) for power in range(20)]
    assert few_elements_factor(0) == math.inf
    assert factors == sorted(factors, reverse=True)
    assert 1 < factors[-1] < 1.01


def test_limits_of_a_caller_replace_those_of_a_tolerance() -> None:
    assert (LIFTED.contract, LIFTED.ceiling) == (0.01, 0.01)
    assert Limits().on(LIFTED) == LIFTED
    assert Limits(contract=0.002).on(LIFTED) == replace(LIFTED, contract=0.002)
    assert Limits(ceiling=0.03).on(LIFTED) == replace(LIFTED, ceiling=0.03)
    assert Limits(contract=0.05, ceiling=0.02).on(LIFTED) == replace(LIFTED, contract=0.05, ceiling=0.02)


def test_a_contract_above_the_ceiling_raises_it() -> None:
    assert Limits(contract=0.05).on(LIFTED).ceiling == 0.05


@pytest.mark.parametrize("value", [0.0, -0.1, math.inf, math.nan])
def test_a_limit_that_nothing_or_everything_meets_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="for 1 %"):
        Limits(contract=value)


def test_a_device_may_be_twice_and_with_a_warning_four_times_as_far_off() -> None:
    assert (LIFTED.rms_pass, DEVICE.rms_pass, DEVICE.rms_warn) == (1.5, 2.0, 4.0)
    assert LIFTED.why and DEVICE.why
