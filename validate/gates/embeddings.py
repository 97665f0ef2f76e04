"""Rows that are compared with one another: their directions, and which are each other's neighbours."""

import numpy as np

from coreflow.models.arrays import Array, Floats
from coreflow.validate.gates.metrics import as_float64, ratio
from coreflow.validate.gates.tolerance import DECISION_FACTOR
from coreflow.validate.report.model import Gate

NEIGHBOURS = 5


def cosines(first: Floats, second: Floats) -> Floats:
    """(N,): of each row of ``first`` (N, D) with the same one of ``second``; NaN for a row of zeros."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.sum(first * second, axis=1) / lengths)


def precision_at(k: int, reference: Floats, actual: Floats, noise: float) -> float:
    """Share of every row's ``k`` nearest others (by cosine) that are its nearest in ``reference`` too.

    Tie-aware: a neighbour counts as right if in ``reference`` it is nearer than the k-th less ``noise``. NaN for fewer than k + 1 rows.
    """
    rows = len(reference)
    if rows <= k:
        return float("nan")
    similarities, actual_similarities = _similarities(reference), _similarities(actual)
    kth = np.sort(similarities, axis=1)[:, -k]
    nearest = np.argsort(actual_similarities, axis=1)[:, -k:]
    return float(np.mean(np.take_along_axis(similarities, nearest, 1) >= kth[:, None] - noise))


def embedding_gates(reference: Array, simulated: Array, actual: Array, limit: float) -> list[Gate]:
    """Gates on rows (N, D): the worst angle against that of torch's own fp16, at most ``limit`` times as large, and the neighbours.

    The noise of a similarity is 6 sqrt(2) times what the simulation moves similarities by (RMS).
    """
    reference, simulated, actual = (as_float64(rows).reshape(len(rows), -1) for rows in (reference, simulated, actual))
    angles = [np.sqrt(np.maximum(0.0, 2 - 2 * cosines(reference, rows))) for rows in (actual, simulated)]
    lowest = float(np.min(cosines(reference, actual))) if len(reference) else float("nan")
    above, below = (float(angle.max()) if angle.size else float("nan") for angle in angles)
    value = ratio(above, max(below, 2.0**-12))
    gates = [
        Gate(
            name="cosine",
            outcome="pass" if value <= limit else "fail",
            value=value,
            limit=limit,
            text=f"the lowest cosine of a row is {lowest:.9g}",
        )
    ]
    k = min(NEIGHBOURS, len(reference) - 1)
    if k >= 1:
        off = ~np.eye(len(reference), dtype=bool)
        noise = DECISION_FACTOR * float(np.sqrt(np.mean(np.square((_similarities(simulated) - _similarities(reference))[off]))))
        missed = 1 - precision_at(k, reference, actual, noise)
        gates.append(
            Gate(
                name="neighbours",
                outcome="pass" if missed <= 0 else "fail",
                value=missed,
                limit=0,
                text=f"precision@{k} is {1 - missed:.4f}, ties within fp16 noise allowed",
            )
        )
    return gates


def _similarities(rows: Floats) -> Floats:
    """(N, N) cosines; -2, below all others, on the diagonal, where a row meets itself."""
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2.0)
    return np.asarray(cosine)
