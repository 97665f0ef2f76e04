"""Decisions that fp16 may take either way."""

import numpy as np
import pytest

from coreflow.models.arrays import Array, Bools
from coreflow.validate.gates.decisions import agreeing, find_decisions, margin_noise, nearness, own_multiples
from coreflow.validate.gates.tolerance import DECISION_FACTOR
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.ladder.observation import Observation


def whole(reference: list[Array], simulated: list[Array], actual: list[Array], clear: Bools) -> Bools:
    """Whether all elements of each sample agree."""
    return np.array([alike.all() for alike in agreeing(reference, simulated, actual, clear)])


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
    assert whole(reference, simulated, actual, clear).all()
    simulated[1][0, 4] += 0.1
    actual[3][0, 2] = np.nan
    np.testing.assert_array_equal(whole(reference, simulated, actual, clear), [True, False, True, False, True])


def test_where_fp16_is_exact_any_difference_is_a_disagreement() -> None:
    reference = [np.ones((1, 3))] * 3
    off = [reference[0], reference[0] + 1e-6, reference[0]]
    np.testing.assert_array_equal(whole(reference, reference, off, np.ones(3, bool)), [True, False, True])


def test_usual_errors_come_from_clear_samples_or_else_from_the_best_one() -> None:
    reference = [np.ones((1, 3))] * 5
    simulated = [np.full((1, 3), 1 + error) for error in (1.0, 1.0, 1.0, 1.0, 1e-3)]
    for clear in ([False] * 4 + [True], [False] * 5):
        np.testing.assert_array_equal(whole(reference, simulated, simulated, np.array(clear)), [False] * 4 + [True])


def test_no_sample_agrees_where_every_one_has_turned() -> None:
    reference = [np.ones((1, 3))] * 4
    turned = [np.full((1, 3), 1.5)] * 4
    assert not whole(reference, turned, turned, np.zeros(4, bool)).any()


def test_samples_in_which_an_output_stays_empty_do_not_make_others_disagree() -> None:
    reference = [np.zeros((1, 3))] * 3 + [np.ones((1, 3))] * 2
    off = [np.zeros((1, 3))] * 3 + [np.full((1, 3), 1.001)] * 2
    assert whole(reference, off, off, np.array([True, True, True, True, False])).all()


@pytest.mark.parametrize(
    ("margins", "output", "own"),
    [
        ((1, 1, 9), (1, 3, 1, 9), (1, 1, 1, 9)),
        ((1, 9), (1, 9), (1, 9)),
        ((1, 9), (1, 9, 4), (1, 9, 1)),
        ((1, 4, 5), (1, 2, 4, 5), (1, 1, 4, 5)),
        ((3,), (3, 7), (3, 1)),
        ((1, 9), (1, 8, 8), None),
        ((1, 9), (2, 9), None),
        ((1, 1), (1, 1), None),
    ],
    ids=["last axes", "all axes", "first axes", "a picture", "rows of a batch", "others", "another batch", "one decision"],
)
def test_an_element_has_the_decisions_of_its_place(margins: tuple[int, ...], output: tuple[int, ...], own: tuple[int, ...] | None) -> None:
    multiples = np.random.default_rng(0).random(margins)
    placed = own_multiples(multiples, output)
    assert (None if placed is None else placed.shape) == own
    assert placed is None or np.array_equal(placed.reshape(-1), multiples.reshape(-1))


def observe(flips: dict[int, list[int]], near: dict[int, list[int]], other: dict[int, list[int]] | None = None) -> list[Observation]:
    """Eight samples of outputs "own" (1, 2, 20) and "sum" (1, 3): elements of a sample that are one more, and near a border."""
    observations = []
    for sample in range(8):
        random = np.random.default_rng(sample)
        own, total = random.standard_normal((1, 2, 20)), random.standard_normal((1, 3))
        simulated, actual = (own + 1e-3 * random.standard_normal(own.shape) for _ in range(2))
        actual[:, :, flips.get(sample, [])] += 1
        moved = total + 1e-3 * random.standard_normal(total.shape)
        moved[:, (other or {}).get(sample, [])] += 1
        margins = np.ones((1, 1, 20))
        margins[:, :, near.get(sample, [])] = 1e-4
        observations.append(
            Observation(
                sample=Sample(label=f"seed {sample}", inputs={}, seed=sample),
                rungs={"R4": {"own": actual, "sum": moved}},
                squares={},
                reference=(own, total),
                simulated=(simulated, total + 1e-3 * random.standard_normal(total.shape)),
                margins=(None, None),
                reference_margins=margins,
                simulated_margins=margins + 1e-3 * random.standard_normal(margins.shape),
            )
        )
    return observations


def test_elements_whose_own_decision_fell_otherwise_are_left_out_alone() -> None:
    """One doubtful element of twenty left out the whole sample; with one in each nothing was left to judge by."""
    every = {sample: [sample] for sample in range(8)}
    decisions = find_decisions(observe(every, every), ["own", "sum"])
    assert decisions.kept.all() and all(nearness < 1 for nearness in decisions.nearness)
    assert [decisions.left_out(sample) for sample in range(8)] == [2] * 8
    assert decisions.outputs["own"].left_out[3, 0, :, 3].all() and not decisions.outputs["sum"].left_out.any()


def test_a_doubtful_element_that_agrees_counts() -> None:
    decisions = find_decisions(observe({}, {2: [4]}), ["own", "sum"])
    assert decisions.nearness[2] < 1 and decisions.kept.all() and not decisions.outputs["own"].left_out.any()


@pytest.mark.parametrize(
    ("flips", "near", "other"),
    [({2: [4, 5]}, {2: [4]}, {}), ({2: list(range(11))}, {2: list(range(11))}, {}), ({}, {2: [4]}, {2: [1]})],
    ids=["a clear element differs too", "most elements", "an output of no decision's own"],
)
def test_a_sample_is_left_out_where_its_doubtful_elements_do_not_explain_it(
    flips: dict[int, list[int]], near: dict[int, list[int]], other: dict[int, list[int]]
) -> None:
    decisions = find_decisions(observe(flips, near, other), ["own", "sum"])
    assert decisions.kept.tolist() == [sample != 2 for sample in range(8)]
    assert decisions.outputs["own" if other else "sum"].samples.all()  # the other output keeps it


def test_what_differs_without_a_near_decision_counts() -> None:
    decisions = find_decisions(observe({2: [4]}, {}), ["own", "sum"])
    assert decisions.kept.all() and not decisions.outputs["own"].left_out.any()
