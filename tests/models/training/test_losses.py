"""The losses, against hand-written sums."""

import math

import numpy as np
import pytest
import torch

from coreflow.models.training.losses import IGNORED, energy_loss, text_loss, token_accuracy


def test_text_loss_is_the_mean_surprise_of_the_tokens_that_are_asked_for() -> None:
    generator = np.random.default_rng(0)
    logits, targets = generator.normal(size=(2, 4, 6)), generator.integers(6, size=(2, 4))
    targets[0, 2:] = IGNORED
    surprises = []
    for row, at in np.ndindex(2, 4):
        if targets[row, at] != IGNORED:
            weights = [math.exp(value) for value in logits[row, at]]
            surprises.append(-math.log(weights[targets[row, at]] / sum(weights)))
    loss = text_loss(torch.from_numpy(logits), torch.from_numpy(targets))
    assert len(surprises) == 6
    assert loss.item() == pytest.approx(sum(surprises) / 6, rel=1e-12)


def test_text_loss_of_even_logits_is_the_logarithm_of_the_vocabulary() -> None:
    assert text_loss(torch.zeros(3, 5, 32), torch.zeros(3, 5, dtype=torch.long)).item() == pytest.approx(math.log(32))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ([3.0, 4.0], 0.0),
        ([6.0, 8.0], 1.0),  # twice as long: an error as large as the target, in its direction
        ([-3.0, -4.0], 4.0 + 2.0),
        ([-4.0, 3.0], 2.0 + 1.0),
    ],
    ids=["equal", "twice", "opposite", "at a right angle"],
)
def test_energy_loss_is_relative_error_plus_distance_in_direction(output: list[float], expected: float) -> None:
    assert energy_loss(torch.tensor([output]), torch.tensor([[3.0, 4.0]])).item() == pytest.approx(expected, abs=1e-6)


def test_energy_loss_is_a_mean_over_rows() -> None:
    output, target = torch.randn(5, 8), torch.randn(5, 8)
    rows = [energy_loss(output[row : row + 1], target[row : row + 1]).item() for row in range(5)]
    assert energy_loss(output, target).item() == pytest.approx(sum(rows) / 5, rel=1e-5)


def test_accuracy_counts_asked_tokens_and_whole_rows() -> None:
    targets = torch.tensor([[1, 2, 3, IGNORED], [4, 5, IGNORED, IGNORED], [6, 7, 8, 9]])
    predicted = torch.tensor([[1, 2, 3, 0], [4, 0, 1, 1], [6, 7, 8, 9]])
    tokens, rows = token_accuracy(predicted, targets)
    assert tokens == pytest.approx(8 / 9)
    assert rows == pytest.approx(2 / 3)
