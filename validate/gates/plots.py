"""Pictures of one output, and its worst elements, from the arrays of a comparison."""

import math
import re

import numpy as np

from coreflow.models.arrays import Floats
from coreflow.validate.gates.comparison import Comparison
from coreflow.validate.gates.metrics import as_float64
from coreflow.validate.report.model import Element, Plots

_POINTS = 400  # of a scatter plot
_BINS = 40
_ROWS = 400
_WORST = 3
_SCORES = re.compile(r"logit|score|prob", re.IGNORECASE)
_MANY_CLASSES = 100


def plots_of(comparison: Comparison) -> Plots:
    """Pictures of one output of floats; empty for integers, and when nothing finite was compared."""
    reference, simulated, actual = (
        as_float64(side[comparison.kept]) for side in (comparison.reference, comparison.simulated, comparison.actual)
    )
    finite = np.isfinite(reference) & np.isfinite(simulated) & np.isfinite(actual) & comparison.counted
    if comparison.spec.dtype == "int32" or not finite.any():
        return Plots()
    margin, perturbation = _margins(comparison.name, reference, actual)
    reference, simulated, actual = reference[finite], simulated[finite], actual[finite]
    error, noise = np.abs(actual - reference), np.abs(simulated - reference)
    kept = np.unique(np.linspace(0, error.size - 1, _POINTS).astype(int))
    # Those with the largest errors are in the picture, whatever the choice.
    kept = np.unique(np.concatenate([kept, np.argpartition(error, -min(20, error.size))[-20:]]))
    edges, counts = _histogram(error, noise)
    return Plots(
        reference=tuple(np.abs(reference)[kept].tolist()),
        error=tuple(error[kept].tolist()),
        edges=edges,
        actual_counts=counts[0],
        simulated_counts=counts[1],
        margin=margin,
        perturbation=perturbation,
    )


def worst_elements(comparison: Comparison) -> tuple[Element, ...]:
    """The elements with the largest errors among the samples that are kept, those that are not finite first."""
    places = np.flatnonzero(comparison.kept)
    reference, simulated, actual = (as_float64(side[places]) for side in (comparison.reference, comparison.simulated, comparison.actual))
    with np.errstate(invalid="ignore"):
        error = np.abs(actual - reference)
    error = np.where((actual == reference) & np.isinf(reference) | ~comparison.counted, 0.0, error)
    error[np.isnan(error)] = np.inf
    if not error.size or not error.max() > 0:
        return ()
    flat = error.reshape(-1)
    order = np.argpartition(flat, -min(_WORST, flat.size))[-_WORST:]
    elements = []
    for place in sorted(order.tolist(), key=lambda place: -flat[place]):
        if flat[place] == 0:
            continue
        sample, *index = (int(axis) for axis in np.unravel_index(place, error.shape))
        at = (sample, *index)
        elements.append(
            Element(
                sample=comparison.labels[int(places[sample])],
                index=tuple(index),
                reference=float(reference[at]),
                simulated=float(simulated[at]),
                actual=float(actual[at]),
            )
        )
    return tuple(elements)


def _histogram(error: Floats, noise: Floats) -> tuple[tuple[float, ...], tuple[tuple[int, ...], tuple[int, ...]]]:
    """Both distributions of log10 |error| over the same bins; zeros are left out."""
    logs = [np.log10(side[side > 0]) for side in (error, noise)]
    both = np.concatenate(logs)
    if not both.size:
        return (), ((), ())
    low, high = math.floor(float(both.min())), math.ceil(float(both.max()))
    edges = np.linspace(max(low, high - 12), max(high, low + 1), _BINS + 1)
    counts = [tuple(int(count) for count in np.histogram(side, edges)[0]) for side in logs]
    return tuple(edges.tolist()), (counts[0], counts[1])


def _margins(name: str, reference: Floats, actual: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of rows of scores: the largest minus the second, and how much the package moved the two against each other."""
    if (
        reference.ndim < 2
        or reference.shape[-1] < 2
        or not (_SCORES.search(name) or (reference.ndim <= 3 and reference.shape[-1] >= _MANY_CLASSES))
    ):
        return (), ()
    rows, actual_rows = reference.reshape(-1, reference.shape[-1])[:_ROWS], actual.reshape(-1, reference.shape[-1])[:_ROWS]
    finite = np.isfinite(rows).all(-1) & np.isfinite(actual_rows).all(-1)
    rows, actual_rows = rows[finite], actual_rows[finite]
    order = np.argsort(rows, axis=-1)[:, -2:]
    second, first = (np.take_along_axis(rows, order[:, place : place + 1], -1)[:, 0] for place in (0, 1))
    moved = [np.take_along_axis(actual_rows - rows, order[:, place : place + 1], -1)[:, 0] for place in (0, 1)]
    return tuple((first - second).tolist()), tuple(np.abs(moved[1] - moved[0]).tolist())
