"""Whether numbers are the rounding of others, how far they are from them, and the layouts of a weight."""

import itertools
import math
from collections.abc import Iterator

import numpy as np

from coreflow.models import fp16
from coreflow.models.arrays import Array, Bools, Floats

# Largest error of one rounding relative to the number, and the absolute one of the smallest numbers. A few of them in fp32, in which a
# converter folds constants in an order of its own.
_RELATIVE = {"float16": 1.01 * fp16.UNIT_ROUNDOFF, "float32": 4 * 2.0**-24}
_ABSOLUTE = {"float16": 0.51 * fp16.SMALLEST_SUBNORMAL, "float32": 2.0**-149}
_MOST_AXES = 5  # whose orders are all tried: 120


def is_rounding_of(stored: Array, values: Array) -> Bools:
    """(N,) whether each of ``stored`` (N,), float16 or float32, is the rounding of the one of ``values`` (N,) at its place.

    What fp16 does not hold may have become infinite or its largest number, and what is too small its smallest one, as converters write an
    epsilon.
    """
    dtype = stored.dtype.name
    number, reference = stored.astype(np.float64), values.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(number - reference) <= slack_of(reference, dtype)
        same = (number == reference) | (np.isnan(number) & np.isnan(reference))
        if dtype != "float16":
            return near | same
        is_beyond = (np.abs(reference) > fp16.MAX) & (np.sign(number) == np.sign(reference)) & (np.abs(number) >= fp16.MAX)
        is_tiny = (np.abs(reference) < fp16.SMALLEST_SUBNORMAL) & (number == np.sign(reference) * fp16.SMALLEST_SUBNORMAL)
    return near | same | is_beyond | is_tiny


def slack_of(values: Floats, dtype: str) -> Floats:
    """The most that a rounding to ``dtype`` changes each of ``values``."""
    return _RELATIVE[dtype] * np.abs(values) + _ABSOLUTE[dtype]


def layouts(values: Array) -> Iterator[Array]:
    """``values`` with its axes in every order, the present one first; axes of one element, which no order changes, are left out."""
    squeezed = np.atleast_1d(values.squeeze())
    if squeezed.ndim > _MOST_AXES:
        yield squeezed
        return
    for order in itertools.permutations(range(squeezed.ndim)):
        yield squeezed.transpose(order)


def relative_distance(stored: Array, values: Array) -> float:
    """RMS of the differences as a share of the RMS of ``values``; both (N,)."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference, reference = stored.astype(np.float64) - values.astype(np.float64), values.astype(np.float64)
        below = float(np.sqrt(np.mean(np.square(reference))))
        return float(np.sqrt(np.mean(np.square(difference)))) / below if below else math.inf
