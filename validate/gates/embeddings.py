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


def precision_at(k: int, exact: Floats, actual: Floats, noise: float) -> float:
    """Share of every row's ``k`` nearest others (by cosine) that are its nearest in ``exact`` too.

    Tie-aware: a neighbour counts as right if in ``exact`` it is nearer than the k-th less ``noise``. NaN for fewer than k + 1 rows.
    """
    rows = len(exact)
    if rows <= k:
        return float("nan")
    true, found = (_similarities(each) for each in (exact, actual))
    kth = np.sort(true, axis=1)[:, -k]
    nearest = np.argsort(found, axis=1)[:, -k:]
    return float(np.mean(np.take_along_axis(true, nearest, 1) >= kth[:, None] - noise))


def embedding_gates(exact: Array, simulated: Array, actual: Array, limit: float) -> list[Gate]:
    """Gates on rows (N, D): the worst angle against that of torch's own fp16, at most ``limit`` times as large, and the neighbours.

    The noise of a similarity is 6 sqrt(2) times what the simulation moves similarities by (RMS).
    """
    truth, narrow, given = (as_float64(each).reshape(len(each), -1) for each in (exact, simulated, actual))
    angles = [np.sqrt(np.maximum(0.0, 2 - 2 * cosines(truth, side))) for side in (given, narrow)]
    lowest = float(np.min(cosines(truth, given))) if len(truth) else float("nan")
    above, below = (float(each.max()) if each.size else float("nan") for each in angles)
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
    k = min(NEIGHBOURS, len(truth) - 1)
    if k >= 1:
        off = ~np.eye(len(truth), dtype=bool)
        noise = DECISION_FACTOR * float(np.sqrt(np.mean(np.square((_similarities(narrow) - _similarities(truth))[off]))))
        missed = 1 - precision_at(k, truth, given, noise)
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
    found = unit @ unit.T
    np.fill_diagonal(found, -2.0)
    return np.asarray(found)
