"""Limits as values."""

import math

import pytest

from coreflow.validate.gates.tolerance import DEVICE, LIFTED, few_elements_factor


@pytest.mark.parametrize(("elements", "factor"), [(10, 3.1), (30, 1.8), (100, 1.34)])
def test_few_elements_have_the_allowance_measured_for_their_number(elements: int, factor: float) -> None:
    assert few_elements_factor(elements) == pytest.approx(factor, rel=0.05)


def test_the_factor_is_the_quantile_of_the_f_distribution() -> None:
    stats = pytest.importorskip("scipy.stats")
    for elements in (*range(1, 30), 100, 199, 200, 201, 1000, 10**6):
        assert few_elements_factor(elements) == pytest.approx(math.sqrt(stats.f.ppf(0.999, elements, elements)), rel=1e-6)


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


def test_the_contract_is_three_thousandths_of_the_reference_and_three_thousandths_beside() -> None:
    assert LIFTED.contract(0.0) == 3e-3
    assert LIFTED.contract(10.0) == pytest.approx(3.3e-2)


def test_a_device_may_be_twice_and_with_a_warning_four_times_as_far_off() -> None:
    assert (LIFTED.rms_pass, DEVICE.rms_pass, DEVICE.rms_warn) == (1.5, 2.0, 4.0)
    assert LIFTED.why and DEVICE.why
