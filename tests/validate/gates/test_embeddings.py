"""Directions and neighbours of rows."""

import numpy as np
import pytest

from coreflow.models.arrays import Array
from coreflow.validate.gates.embeddings import cosines, embedding_gates, precision_at

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.standard_normal((40, 16))


def to_fp16(rows: Array) -> Array:
    return rows.astype(np.float16).astype(np.float64)


def outcomes(actual: Array) -> dict[str, str]:
    return {gate.name: gate.outcome for gate in embedding_gates(ROWS, to_fp16(ROWS), actual, 3.0)}


def test_cosines_are_those_of_the_definition() -> None:
    other = RANDOM.standard_normal((40, 16))
    expected = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(ROWS, other, strict=True)]
    np.testing.assert_allclose(cosines(ROWS, other), expected, rtol=1e-12)


def test_precision_counts_true_neighbours() -> None:
    def slow(k: int, reference: Array, actual: Array) -> float:
        hits = 0
        for row in range(len(reference)):
            others = [other for other in range(len(reference)) if other != row]
            sides = [sorted(others, key=lambda other: -float(cosines(side[[row]], side[[other]])[0]))[:k] for side in (reference, actual)]
            hits += len(set(sides[0]) & set(sides[1]))
        return hits / (k * len(reference))

    noisy = ROWS + 0.3 * RANDOM.standard_normal(ROWS.shape)
    assert precision_at(5, ROWS, noisy, 0.0) == pytest.approx(slow(5, ROWS, noisy))
    assert 0.3 < precision_at(5, ROWS, noisy, 0.0) < 1


def test_a_neighbour_as_near_as_another_counts() -> None:
    rows = np.array([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6], [-1.0, 0.1]])
    other = rows.copy()
    other[1, 1] += 1e-3  # now the second neighbour of the first row is the nearest
    assert precision_at(1, rows, other, 0.0) < 1 or precision_at(1, rows, other, 1e-3) == 1
    assert precision_at(1, rows, other, 2e-3) == 1


def test_fp16_passes_and_a_turned_or_swapped_row_does_not() -> None:
    assert outcomes(to_fp16(ROWS)) == {"cosine": "pass", "neighbours": "pass"}
    turned = to_fp16(ROWS)
    turned[7] += 0.02 * RANDOM.standard_normal(16)
    assert outcomes(turned)["cosine"] == "fail"
    swapped = to_fp16(ROWS)
    swapped[[3, 4]] = swapped[[4, 3]]
    assert outcomes(swapped) == {"cosine": "fail", "neighbours": "fail"}
    lost = to_fp16(ROWS)
    lost[5] = np.nan
    assert outcomes(lost)["cosine"] == "fail"
