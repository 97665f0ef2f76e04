"""Errors and ranges of one op in fp16, summed over samples."""

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coreflow.models import fp16
from coreflow.validate.gates.metrics import ratio

# RMS error of rounding to fp16, as a share of the RMS of what is rounded: ulp / sqrt(12) of each value, averaged over a normal
# distribution's binades (simulated with 1e7 draws: 0.41 unit roundoffs).
ROUNDING = 0.41 * fp16.UNIT_ROUNDOFF
_BLOCK = 1 << 17  # elements that are measured at a time: a dozen passes over them read from the cache, not from memory


@dataclass(slots=True)
class Range:
    """The finite values of a tensor over all samples.

    >>> seen = Range()
    >>> seen.widen(torch.tensor([-2.0, 0.0, 0.5]))
    >>> seen.largest, seen.smallest
    (2.0, 0.5)
    """

    low: float = math.inf
    high: float = -math.inf
    smallest: float = math.inf  # magnitude, without zeros

    def widen(self, values: Tensor) -> None:
        """Include ``values``."""
        if not values.numel() or not values.is_floating_point():
            return
        low, high = _ends(values)
        if not math.isfinite(low + high):
            values = values[torch.isfinite(values)]
            if not values.numel():
                return
            low, high = _ends(values)
        self.include(low, high, smallest_of(values))

    def include(self, low: float, high: float, smallest: float) -> None:
        """Include values between ``low`` and ``high``, the smallest magnitude of which, without zeros, is ``smallest``."""
        self.low, self.high, self.smallest = min(self.low, low), max(self.high, high), min(self.smallest, smallest)

    @property
    def largest(self) -> float:
        """Magnitude; 0 when nothing finite was seen."""
        return max(abs(self.low), abs(self.high)) if self.low <= self.high else 0.0


@dataclass(slots=True)
class Tally:
    """Sums over all elements and samples of one op's first floating result.

    >>> tally = Tally()
    >>> tally.add(unrounded, rounded, reference, inputs)
    >>> tally.local_rho, tally.ulps
    (0.98, 0.5)
    """

    elements: int = 0
    local: float = 0.0  # sum of squares of the local error, and of the results before their rounding
    unrounded: float = 0.0
    error: float = 0.0  # sum of squares of the accumulated error, and of the results in fp64
    reference: float = 0.0
    local_max: float = 0.0
    unrounded_max: float = 0.0
    overflowed: int = 0
    underflowed: int = 0
    range: Range = field(default_factory=Range)

    @property
    def relative(self) -> float:
        """Accumulated error as a share of the result."""
        return math.sqrt(ratio(self.error, self.reference))

    @property
    def local_rho(self) -> float:
        """Local error in roundings."""
        return ratio(math.sqrt(self.local), ROUNDING * math.sqrt(self.unrounded))

    @property
    def ulps(self) -> float:
        """Largest local error in units of the last place of the largest result."""
        return self.local_max / _spacing(self.unrounded_max) if self.unrounded_max else 0.0

    def add(self, unrounded: Tensor, result: Tensor, reference: Tensor, inputs: Iterable[Any]) -> None:
        """Add one sample: its ``result``, the same before its rounding and in fp64; values that are not finite are only counted.

        ``inputs`` of the op are looked at only where it made NaN.
        """
        if reference.shape != result.shape:  # a shape that depends on values, and these on the arithmetic
            return
        only_moves = unrounded is result
        flat = [tensor.reshape(-1) for tensor in (unrounded, result, reference)]
        invalid = 0
        for start in range(0, result.numel(), _BLOCK):
            block = [tensor[start : start + _BLOCK] for tensor in flat]
            invalid += self._add_block(*block, only_moves=only_moves)
        if invalid and all(bool(torch.isfinite(value).all()) for value in inputs if isinstance(value, Tensor)):
            self.overflowed += invalid

    def _add_block(self, unrounded: Tensor, result: Tensor, reference: Tensor, *, only_moves: bool) -> int:
        """Add elements (N,); the number of those that are NaN before their rounding."""
        invalid = 0
        self.elements += result.numel()
        difference = reference - result
        error = torch.dot(difference, difference).item()
        all_finite = math.isfinite(error)
        if not all_finite:
            finite = torch.isfinite(result) & torch.isfinite(reference)
            self.overflowed += int((torch.isfinite(unrounded) & torch.isfinite(reference) & ~torch.isfinite(result)).sum())
            invalid = int(torch.isnan(unrounded).sum())
            self.range.widen(result)
            unrounded, result, reference = unrounded[finite], result[finite], reference[finite]
            difference = reference - result
            error = torch.dot(difference, difference).item()
        self.error += error
        self.reference += torch.dot(reference, reference).item()
        if only_moves or not result.numel():
            if all_finite:
                self.range.widen(result)
            return invalid
        low, high = _ends(unrounded)
        smallest = smallest_of(unrounded)
        if all_finite:  # roundings keep an order: the ends of what was rounded are the ends, rounded
            rounded = [float(np.float16(value)) for value in (low, high, smallest)]
            self.range.include(rounded[0], rounded[1], rounded[2] or smallest_of(result))
        loss = result - unrounded
        self.local += torch.dot(loss, loss).item()
        self.unrounded += torch.dot(unrounded, unrounded).item()
        least, most = _ends(loss)
        self.local_max = max(self.local_max, most, -least)
        self.unrounded_max = max(self.unrounded_max, high, -low)
        if smallest < fp16.SMALLEST_NORMAL:
            sizes = unrounded.abs()
            self.underflowed += int(((sizes < fp16.SMALLEST_NORMAL) & (sizes > 0)).sum())
        return invalid


def smallest_of(values: Tensor) -> float:
    """The smallest magnitude that is not zero, of finite numbers; infinite where all are zero.

    Found among the bits, which order magnitudes as integers do: one less than those of zero wraps around to the largest. A mask and a
    selection take ten times as long.
    """
    double = values.dtype == torch.float64
    widest = 2**63 - 1 if double else 2**31 - 1
    least = int(values.abs().view(torch.int64 if double else torch.int32).sub_(1).bitwise_and_(widest).min())
    if least == widest:
        return math.inf
    return float(struct.unpack("=d", struct.pack("=q", least + 1))[0] if double else struct.unpack("=f", struct.pack("=i", least + 1))[0])


def _ends(values: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(values)
    return low.item(), high.item()


def _spacing(size: float) -> float:
    """Distance of the fp16 numbers at ``size``, however large."""
    return 2.0 ** (max(math.floor(math.log2(size)), -14) - 10)
