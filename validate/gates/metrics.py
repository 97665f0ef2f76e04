"""Measures of size and difference in float64; NaN goes in and comes out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coreflow.models.arrays import Array, Floats
from coreflow.validate.gates.tolerance import few_elements_factor


def as_float64(values: Array) -> Floats:
    """``values`` in float64, before any difference is taken."""
    return np.asarray(values, dtype=np.float64)


def rms(values: Array) -> float:
    """Root of the mean square; NaN of nothing."""
    array = as_float64(values)
    if not array.size:
        return math.nan
    # Scaled first: the square of a large float64 overflows, the square of a small one vanishes.
    scale = float(np.abs(array).max())
    if scale == 0 or not math.isfinite(scale):
        return scale
    return scale * math.sqrt(float(np.mean(np.square(array / scale))))


def relative_rms(error: Array, reference: Array) -> float:
    """RMS(error) / RMS(reference); 0 for 0 / 0."""
    return ratio(rms(error), rms(reference))


def snr_db(error: Array, reference: Array) -> float:
    """20 log10(RMS(reference) / RMS(error)) in decibels; infinite without an error."""
    relative = relative_rms(error, reference)
    return -20 * math.log10(relative) if relative > 0 else math.inf if relative == 0 else math.nan


def max_abs(values: Array) -> float:
    """Largest magnitude; NaN if any value is, and of nothing."""
    return float(np.abs(as_float64(values)).max()) if values.size else math.nan


def ratio(above: float, below: float) -> float:
    """``above / below``; 0 for 0 / 0 and infinite for anything else over 0."""
    if below == 0:
        return 0.0 if above == 0 else math.nan if math.isnan(above) else math.inf
    return above / below


@dataclass(frozen=True, slots=True)
class WorstSlice:
    """The part of a tensor (samples, ...) whose error is largest against its own budget.

    >>> part = worst_slice(error, noise, floor=1e-6, shares=(1.0, 1.0))
    >>> f"index {part.index} of axis {part.axis}: {part.ratio:.1f} times its budget"
    """

    ratio: float  # RMS(error) / budget of this slice
    factor: float  # allowance for its few independent elements and for the number of slices
    axis: int  # 0 counts the samples, 1 is the first axis of the tensor
    index: int

    @property
    def excess(self) -> float:
        """The ratio with that allowance taken out."""
        return self.ratio / self.factor


def worst_slice(error: Floats, noise: Floats, floor: float, shares: Sequence[float]) -> WorstSlice:
    """The worst index of any axis of ``error`` (samples, ...): a sample, a channel, a row.

    The budget of a slice is RMS(noise) in it, and at least ``floor``; a slice with NaN is the worst there is. ``shares`` has the
    ``independent_share`` of every axis.
    """
    axes = [axis for axis, extent in enumerate(error.shape) if extent > 1 or axis == 0]
    comparisons = sum(error.shape[axis] for axis in axes)
    slices: list[WorstSlice] = []
    for axis in axes:
        others = tuple(other for other in range(error.ndim) if other != axis)
        with np.errstate(invalid="ignore", over="ignore"):
            above = np.sqrt(np.mean(np.square(error), axis=others))
            below = np.maximum(np.sqrt(np.mean(np.square(noise), axis=others)), floor)
            ratios = np.divide(above, below, out=np.where(above == 0, 0.0, np.inf), where=below > 0)
        # An element without any error says nothing: a column of a sparse output has fewer elements than rows.
        counts = np.count_nonzero((error != 0) | (noise != 0), axis=others)
        share = math.prod(shares[other] for other in others)
        factors = np.array([few_elements_factor(max(int(count) * share, 1.0), comparisons) for count in counts])
        index = int(np.argmax(np.where(np.isnan(ratios), np.inf, ratios / factors)))
        slices.append(WorstSlice(float(ratios[index]), float(factors[index]), axis, index))
    return max(slices, key=lambda worst: math.inf if math.isnan(worst.excess) else worst.excess)


def independent_share(noise: Floats, axis: int) -> float:
    """Degrees of freedom of a mean square along ``axis`` of ``noise``, as a share of its extent n: 1 / (1 + (n - 1) r^2).

    r is the intraclass correlation along the axis, of errors whose expectation is zero: the mean of e_i e_j over i != j divided by the
    mean of e_i^2 (Fisher 1925, section 38). The squares of normal errors correlated by r are correlated by r^2, so that
    their mean has the variance 2 sigma^4 (1 + (n - 1) r^2) / n, as n / (1 + (n - 1) r^2) independent ones have (Satterthwaite 1946,
    Biometrics Bulletin 2, 110-114).
    """
    extent = noise.shape[axis]
    scale = float(np.abs(noise).max()) if noise.size else 0.0
    if extent < 2 or scale == 0 or not math.isfinite(scale):
        return 1.0
    scaled = noise / scale
    squares = float(np.sum(np.square(scaled)))
    correlation = (float(np.sum(np.square(scaled.sum(axis)))) / squares - 1) / (extent - 1)
    return 1 / (1 + (extent - 1) * correlation * correlation)


def non_finite(values: Array) -> int:
    """Number of values that are NaN or infinite."""
    return int(np.count_nonzero(~np.isfinite(values)))
