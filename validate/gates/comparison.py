"""One output over all samples: the arrays compared, and their differences."""

import math
from dataclasses import dataclass

import numpy as np

from coreflow.models import fp16
from coreflow.models.arrays import Array, Bools, Floats
from coreflow.models.spec import TensorSpec
from coreflow.validate.gates.metrics import as_float64, independent_share, max_abs, non_finite, ratio, rms
from coreflow.validate.gates.tolerance import Tolerance


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """One output over all samples; arrays are (samples, ...) and of one shape.

    >>> report = judge_output(comparison, LIFTED, rungs={})
    """

    name: str
    spec: TensorSpec
    reference: Array
    simulated: Array
    actual: Array
    labels: tuple[str, ...]  # a sample each
    kept: Bools  # (samples,): False where a decision may fall either way, and did
    left_out: Bools | None = None  # (samples, ...): elements of the other samples whose own decision fell otherwise
    # Of integers that are argmaxes, each element's: the two best scores' distance, and how far fp16 moves scores of its row.
    margins: Array | None = None
    margin_noise: Array | None = None

    @property
    def kept_labels(self) -> list[str]:
        """Labels of the samples that are kept."""
        return [label for label, is_kept in zip(self.labels, self.kept, strict=True) if is_kept]

    @property
    def counted(self) -> Bools:
        """(kept samples, ...): the elements that count."""
        kept = self.reference[self.kept]
        return np.ones(kept.shape, bool) if self.left_out is None else ~self.left_out[self.kept]

    def count_differing(self, sample: int, budget: float, factor: float) -> int:
        """Number of elements of one sample that differ by more than ``factor`` budgets."""
        error = np.abs(as_float64(self.actual[sample]) - as_float64(self.reference[sample]))
        return int(np.count_nonzero(~(error <= factor * budget)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Errors:
    """Errors of one floating output over the samples that are kept, in float64, and their ratios to the budget.

    >>> errors = measure(comparison, LIFTED)
    >>> errors.rho_rms, errors.overflowed
    (1.02, 0)
    """

    reference: Floats  # 0 where nothing can be compared: neither of a reference that is not finite nor beyond fp16
    simulated: Floats
    actual: Floats
    error: Floats  # actual - reference
    noise: Floats  # simulated - reference; infinite where that is NaN: a budget without limit, which the ceiling refuses
    comparable: Bools
    missing: int  # values of all samples that are not finite though the reference is, or finite though it is infinite
    overflowed: int  # values of all samples that fp16 does not hold
    simulated_missing: int
    reference_rms: float
    floor: float  # the smallest budget
    noise_rms: float
    budget: float
    rho_rms: float
    rho_max: float
    shares: tuple[
        float, ...
    ]  # of each axis, how many of its errors are independent, by the noise alone: a fault cannot widen its own limit

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the mean square of all errors."""
        return self.error.size * math.prod(self.shares)


def measure(comparison: Comparison, tolerance: Tolerance) -> Errors:
    """The errors of an output."""
    reference, simulated, actual = (as_float64(side) for side in (comparison.reference, comparison.simulated, comparison.actual))
    overflowed = _overflows(reference, actual)
    is_fine = np.isfinite(actual) & np.isfinite(reference) | (np.isinf(actual) & (actual == reference)) | overflowed | np.isnan(reference)
    comparable = np.isfinite(reference) & ~overflowed
    if comparison.left_out is not None:
        comparable &= ~comparison.left_out
    error, noise = _difference(actual, reference, comparable), _difference(simulated, reference, comparable)
    noise = np.where(np.isnan(noise), np.inf, noise)
    kept = comparison.kept
    error, noise, kept_reference = error[kept], noise[kept], np.where(comparable, reference, 0.0)[kept]
    relative_floor = tolerance.floor * tolerance.unit_roundoff
    reference_rms, noise_rms = rms(kept_reference), rms(noise)
    floor = relative_floor * reference_rms
    budget = max(noise_rms, floor)
    return Errors(
        reference=kept_reference,
        simulated=simulated[kept],
        actual=actual[kept],
        error=error,
        noise=noise,
        comparable=comparable[kept],
        missing=int(np.count_nonzero(~is_fine)),
        overflowed=int(np.count_nonzero(overflowed)),
        simulated_missing=non_finite(simulated[comparable]),
        reference_rms=reference_rms,
        floor=floor,
        noise_rms=noise_rms,
        budget=budget,
        rho_rms=ratio(rms(error), budget),
        rho_max=ratio(max_abs(error), max(max_abs(noise), relative_floor * max_abs(kept_reference))),
        shares=tuple(independent_share(noise, axis) for axis in range(noise.ndim)),
    )


def _difference(values: Floats, reference: Floats, comparable: Bools) -> Floats:
    """``values - reference``, 0 where nothing can be compared."""
    with np.errstate(invalid="ignore"):
        return np.where(comparable, values - reference, 0.0)


def _overflows(reference: Floats, actual: Floats) -> Bools:
    """Elements that are infinite because fp16 does not hold the reference's value."""
    return np.isinf(actual) & np.isfinite(reference) & (np.abs(reference) > fp16.MAX) & (np.sign(actual) == np.sign(reference))
