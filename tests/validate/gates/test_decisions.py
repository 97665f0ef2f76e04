"""Decisions that fp16 may take either way."""

import numpy as np
import pytest

from coreflow.validate.gates.decisions import agreeing, margin_noise, nearness
from coreflow.validate.gates.tolerance import DECISION_FACTOR


def test_noise_is_pooled_by_kind_over_finite_margins() -> None:
    reference = [np.array([[[1.0, 2.0], [3.0, np.inf]]]), np.array([[[1.0, 2.0], [np.inf, np.inf]]])]
    simulated = [np.array([[[1.1, 1.9], [3.4, np.inf]]]), np.array([[[1.1, 1.9], [0.5, np.inf]]])]
    np.testing.assert_allclose(margin_noise(reference, simulated), [0.1, 0.4])


def test_a_kind_that_never_occurs_has_no_noise_and_no_near_decision() -> None:
    nothing = [np.full((1, 1, 3), np.inf)]
    assert margin_noise(nothing, nothing) == [0.0]
    assert nearness(nothing[0], np.array([0.0])) == np.inf


@pytest.mark.parametrize(("margin", "is_near"), [(0.99, True), (1.01, False), (0.0, True)])
def test_a_decision_is_near_within_six_root_two_of_its_noise(margin: float, is_near: bool) -> None:
    margins = np.full((1, 2, 5), 100.0)
    margins[0, 1, 3] = margin * DECISION_FACTOR * 0.01
    assert (nearness(margins, np.array([1e-6, 0.01])) < 1) == is_near


def test_samples_agree_unless_one_side_is_off_by_far_more_than_usual() -> None:
    random = np.random.default_rng(0)
    reference = [random.standard_normal((1, 9)) for _ in range(5)]
    simulated, actual = ([logits + 1e-3 * random.standard_normal((1, 9)) for logits in reference] for _ in range(2))
    clear = np.array([True, False, True, False, True])
    assert agreeing(reference, simulated, actual, clear).all()
    simulated[1][0, 4] += 0.1
    actual[3][0, 2] = np.nan
    np.testing.assert_array_equal(agreeing(reference, simulated, actual, clear), [True, False, True, False, True])


def test_where_fp16_is_exact_any_difference_is_a_disagreement() -> None:
    reference = [np.ones((1, 3))] * 3
    off = [reference[0], reference[0] + 1e-6, reference[0]]
    np.testing.assert_array_equal(agreeing(reference, reference, off, np.ones(3, bool)), [True, False, True])


def test_usual_errors_come_from_clear_samples_or_else_from_the_best_one() -> None:
    reference = [np.ones((1, 3))] * 5
    simulated = [np.full((1, 3), 1 + error) for error in (1.0, 1.0, 1.0, 1.0, 1e-3)]
    for clear in ([False] * 4 + [True], [False] * 5):
        np.testing.assert_array_equal(agreeing(reference, simulated, simulated, np.array(clear)), [False] * 4 + [True])


def test_no_sample_agrees_where_every_one_has_turned() -> None:
    reference = [np.ones((1, 3))] * 4
    turned = [np.full((1, 3), 1.5)] * 4
    assert not agreeing(reference, turned, turned, np.zeros(4, bool)).any()


def test_samples_in_which_an_output_stays_empty_do_not_make_others_disagree() -> None:
    reference = [np.zeros((1, 3))] * 3 + [np.ones((1, 3))] * 2
    off = [np.zeros((1, 3))] * 3 + [np.full((1, 3), 1.001)] * 2
    assert agreeing(reference, off, off, np.array([True, True, True, True, False])).all()
