"""Hard decisions inside a module - thresholds, roundings - and the elements in which fp16 may take them either way.

A module that decides has a method ``decision_margins(*inputs) -> (B, kinds, ...)``: the distance of every decision from its
border, infinite where there is none to take. A decision nearer to its border than fp16's own error may legitimately fall
either way, and then the outputs differ by far more than any rounding. What really fell the other way is counted and left out
of the ratios: element by element in outputs whose last axes (or first ones behind the batch) are those of the margins, in
which an element belongs to a decision; and by whole samples in all others, and where a clear element differs too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coreflow.models.arrays import Array, Bools
from coreflow.validate.gates.metrics import as_float64, max_abs, rms
from coreflow.validate.gates.tolerance import DECISION_FACTOR, LIFTED, MAX_AMBIGUOUS_SHARE
from coreflow.validate.ladder.observation import Observation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kept:
    """What counts of one output: the samples, and in them all elements but some.

    >>> kept = decisions.outputs["surface"]
    >>> kept.samples.sum(), kept.left_out.sum()
    (7, 12)
    """

    samples: Bools  # (samples,)
    left_out: Bools  # (samples, ...): elements of those whose own decision fell otherwise


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decisions:
    """What counts: the samples whose decisions are clear, and of the others those elements in which none fell otherwise.

    >>> decisions = find_decisions(observations, ["surface"])
    >>> [place for place, nearness in enumerate(decisions.nearness) if nearness < 1]  # ambiguous
    [3]
    """

    nearness: tuple[float, ...]  # of each sample's nearest decision to its border, in multiples of what counts as clear
    outputs: Mapping[str, Kept]

    @property
    def kept(self) -> Bools:
        """(samples,): whether a sample counts for every output."""
        return np.logical_and.reduce([kept.samples for kept in self.outputs.values()])

    def left_out(self, sample: int) -> int:
        """Number of elements of one sample that are left out although the sample is not."""
        return sum(int(kept.left_out[sample].sum()) for kept in self.outputs.values() if kept.samples[sample])


def find_decisions(observations: Sequence[Observation], outputs: Sequence[str]) -> Decisions:
    """The decisions in all samples; without any, everything counts. ``outputs`` are the names in the reference's order."""
    reference = [seen.reference_margins for seen in observations if seen.reference_margins is not None]
    simulated = [seen.simulated_margins for seen in observations if seen.simulated_margins is not None]
    count = len(observations)
    if not reference:
        shapes = zip(outputs, (np.atleast_1d(array).shape for array in observations[0].reference), strict=True)
        everything = {name: Kept(samples=np.ones(count, bool), left_out=np.broadcast_to(False, (count, *shape))) for name, shape in shapes}
        return Decisions(nearness=(np.inf,) * count, outputs=everything)
    noise = margin_noise(reference, simulated)
    multiples = [_multiples(margins, noise) for margins in reference]
    near = tuple(float(np.min(multiple, initial=np.inf)) for multiple in multiples)
    kept = {}
    for place, name in enumerate(outputs):
        arrays = [np.atleast_1d(seen.reference[place]) for seen in observations]
        own = [own_multiples(multiple, array.shape) for multiple, array in zip(multiples, arrays, strict=True)]
        nearest = [np.asarray(least if mine is None else mine) for least, mine in zip(near, own, strict=True)]
        clear = np.stack([np.broadcast_to(multiple >= 1, array.shape) for multiple, array in zip(nearest, arrays, strict=True)])
        fp16 = [np.atleast_1d(seen.simulated[place]) for seen in observations]
        alike = np.stack(agreeing(arrays, fp16, [seen.actual[name] for seen in observations], clear))
        excused = ~alike & ~clear & np.array([mine is not None for mine in own]).reshape(-1, *(1,) * (clear.ndim - 1))
        kept[name] = _kept(alike, excused, np.array(near) < 1)
    return Decisions(nearness=near, outputs=kept)


def _kept(alike: Bools, excused: Bools, ambiguous: Bools) -> Kept:
    """What counts of one output: not an ambiguous sample where more differs than is ``excused``, or where that is most of it."""
    axes = tuple(range(1, alike.ndim))
    is_whole = (alike | excused).all(axis=axes) & (excused.mean(axis=axes) <= MAX_AMBIGUOUS_SHARE)
    samples = ~ambiguous | is_whole
    return Kept(samples=samples, left_out=excused & samples.reshape(-1, *(1,) * len(axes)))


def margin_noise(reference: Sequence[Array], simulated: Sequence[Array]) -> Array:
    """(kinds,): RMS difference of the margins in fp16 and in float64, over all samples where both are finite."""
    in_fp64, in_fp16 = np.concatenate(reference), np.concatenate(simulated)
    finite = np.isfinite(in_fp64) & np.isfinite(in_fp16)
    difference = np.where(finite, in_fp16, 0.0) - np.where(finite, in_fp64, 0.0)
    return np.array([rms(difference[:, kind][finite[:, kind]]) if finite[:, kind].any() else 0.0 for kind in range(in_fp64.shape[1])])


def nearness(margins: Array, noise: Array) -> float:
    """The least margin of one sample (1, kinds, ...) in multiples of what counts as clear; below 1 the sample is ambiguous."""
    return float(np.min(_multiples(margins, noise), initial=np.inf))


def _multiples(margins: Array, noise: Array) -> Array:
    """(B, ...): the least of all kinds of margins (B, kinds, ...) in multiples of what counts as clear."""
    clear = DECISION_FACTOR * noise.reshape(1, -1, *(1,) * (margins.ndim - 2))
    # Without noise a decision is exact and falls one way only, on the border or not.
    return np.asarray(np.divide(margins, clear, out=np.full(margins.shape, np.inf), where=clear > 0).min(axis=1, initial=np.inf))


def own_multiples(multiples: Array, shape: tuple[int, ...]) -> Array | None:
    """``multiples`` (B, ...) of one sample as those of an output's elements (B, ...); None where no element has a decision of its own."""
    batch, *own = multiples.shape
    others = len(shape) - 1 - len(own)
    if multiples.size < 2 or others < 0 or shape[0] != batch:
        return None
    if list(shape[1 + others :]) == own:
        return multiples.reshape(batch, *(1,) * others, *own)
    return multiples.reshape(batch, *own, *(1,) * others) if list(shape[1 : 1 + len(own)]) == own else None


def agreeing(reference: Sequence[Array], simulated: Sequence[Array], actual: Sequence[Array], clear: Bools) -> list[Bools]:
    """For each element of each sample of one output, whether neither execution is off by far more than fp16 usually is.

    Usual is the median of the simulation's largest error in the ``clear`` elements of a sample, over the samples where it has one. When
    none is clear it is the least of all samples, unless that is more than fp16 may lose: then a decision fell otherwise in every sample.
    """
    with np.errstate(invalid="ignore"):
        by_simulation, by_package = (
            [np.abs(as_float64(values) - as_float64(expected)) for values, expected in zip(side, reference, strict=True)]
            for side in (simulated, actual)
        )
    largest = np.array([np.max(errors, initial=0.0, where=where) for errors, where in zip(by_simulation, clear, strict=True)])
    if np.any(clear):
        # Without the zeros: an output may stay empty in most samples.
        inexact = largest[largest > 0]
        usual = float(np.median(inexact)) if inexact.size else 0.0
    else:
        largest = np.array([max_abs(errors) for errors in by_simulation])
        best = int(np.argmin(largest))
        usual = float(largest[best]) if largest[best] <= LIFTED.ceiling * max_abs(reference[best]) else 0.0
    limit = DECISION_FACTOR * usual
    return [(first <= limit) & (second <= limit) for first, second in zip(by_simulation, by_package, strict=True)]
