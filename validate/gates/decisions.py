"""Hard decisions inside a module - thresholds, roundings - and the samples in which fp16 may take them either way.

A module that decides has a method ``decision_margins(*inputs) -> (B, kinds, ...)``: the distance of every decision from its
border, infinite where there is none to take. A decision nearer to its border than fp16's own error may legitimately fall
either way, and then the outputs differ by far more than any rounding. Such samples are counted, and those that really
fell the other way are left out of the ratios.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coreflow.models.arrays import Array, Bools
from coreflow.validate.gates.metrics import as_float64, max_abs, rms
from coreflow.validate.gates.tolerance import DECISION_FACTOR, LIFTED
from coreflow.validate.ladder.observation import Observation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decisions:
    """The samples that count: those whose decisions are clear, and those in which no decision fell otherwise.

    >>> decisions = find_decisions(observations, ["surface"])
    >>> [place for place, nearness in enumerate(decisions.nearness) if nearness < 1]  # ambiguous
    [3]
    """

    nearness: tuple[float, ...]  # of each sample's nearest decision to its border, in multiples of what counts as clear
    kept: Bools  # (samples,)


def find_decisions(observations: Sequence[Observation], outputs: Sequence[str]) -> Decisions:
    """The decisions in all samples; without any, every sample counts. ``outputs`` are the names in the reference's order."""
    reference = [seen.reference_margins for seen in observations if seen.reference_margins is not None]
    simulated = [seen.simulated_margins for seen in observations if seen.simulated_margins is not None]
    if not reference:
        return Decisions(nearness=(np.inf,) * len(observations), kept=np.ones(len(observations), bool))
    noise = margin_noise(reference, simulated)
    near = tuple(nearness(margins, noise) for margins in reference)
    clear, agree = np.array(near) >= 1, np.ones(len(observations), bool)
    for place, name in enumerate(outputs):
        agree &= agreeing(
            [np.atleast_1d(seen.reference[place]) for seen in observations],
            [np.atleast_1d(seen.simulated[place]) for seen in observations if seen.simulated is not None],
            [seen.actual[name] for seen in observations],
            clear,
        )
    return Decisions(nearness=near, kept=agree | clear)


def margin_noise(reference: Sequence[Array], simulated: Sequence[Array]) -> Array:
    """(kinds,): RMS difference of the margins in fp16 and in float64, over all samples where both are finite."""
    in_fp64, in_fp16 = np.concatenate(reference), np.concatenate(simulated)
    finite = np.isfinite(in_fp64) & np.isfinite(in_fp16)
    difference = np.where(finite, in_fp16, 0.0) - np.where(finite, in_fp64, 0.0)
    return np.array([rms(difference[:, kind][finite[:, kind]]) if finite[:, kind].any() else 0.0 for kind in range(in_fp64.shape[1])])


def nearness(margins: Array, noise: Array) -> float:
    """The least margin of one sample (1, kinds, ...) in multiples of what counts as clear; below 1 the sample is ambiguous."""
    clear = DECISION_FACTOR * noise.reshape(1, -1, *(1,) * (margins.ndim - 2))
    # Without noise a decision is exact and falls one way only, on the border or not.
    multiples = np.divide(margins, clear, out=np.full(margins.shape, np.inf), where=clear > 0)
    return float(np.min(multiples, initial=np.inf))


def agreeing(reference: Sequence[Array], simulated: Sequence[Array], actual: Sequence[Array], clear: Bools) -> Bools:
    """For each sample of one output, whether neither execution is off by far more than fp16 usually is: no decision fell otherwise.

    Usual is the median of the simulation's largest error in those ``clear`` samples where it has one. When none is clear it is the
    least of all, unless that is more than fp16 may lose: then a decision fell otherwise in every sample.
    """
    with np.errstate(invalid="ignore"):
        by_simulation, by_package = (
            np.array([max_abs(as_float64(values) - as_float64(expected)) for values, expected in zip(side, reference, strict=True)])
            for side in (simulated, actual)
        )
    if clear.any():
        # Without the zeros: an output may stay empty in most samples.
        inexact = by_simulation[clear & (by_simulation > 0)]
        usual = float(np.median(inexact)) if inexact.size else 0.0
    else:
        best = int(np.argmin(by_simulation))
        usual = float(by_simulation[best]) if by_simulation[best] <= LIFTED.ceiling * max_abs(reference[best]) else 0.0
    return (by_simulation <= DECISION_FACTOR * usual) & (by_package <= DECISION_FACTOR * usual)
