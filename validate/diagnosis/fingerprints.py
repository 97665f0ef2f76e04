"""Fingerprints of tensors: a few sums over the elements in any order, others in theirs, and the distance between two tensors by them."""

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from coreflow.models.arrays import Array, Floats

_BLOCK = 1 << 14  # elements summed at a time: 128 kB stay in the cache, and no temporary is as large as the tensor
_SQUARABLE = (1e-90, 1e90)  # sizes whose third powers float64 holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Counts, moments and extremes of a tensor, independent of the order of its elements; moments and extremes are of the finite ones.

    >>> fingerprint(torch.tensor([3.0, -4.0])).rms, fingerprint(torch.tensor([-4.0, 3.0])).rms
    (3.5355339059327378, 3.5355339059327378)
    """

    count: int  # of elements
    non_finite: int
    mean: float
    rms: float
    mean_abs: float
    skew: float  # mean of the third powers / (largest |x| · rms²), within [-1, 1]: as well-conditioned as the rms, and it never overflows
    min: float
    max: float


def fingerprint(values: Tensor | Array) -> Fingerprint:
    """The fingerprint of a tensor of any dtype and layout; of complex numbers, that of their parts."""
    tensor = _real(values)
    count = tensor.numel()
    # Expanded dimensions repeat every element alike, which changes no mean.
    for dim, (stride, extent) in enumerate(zip(tensor.stride(), tensor.shape, strict=True)):
        if stride == 0 and extent > 1:
            tensor = tensor.narrow(dim, 0, 1)
    flat: Floats = tensor.to("cpu", torch.float64).reshape(-1).numpy()
    repeats = count // flat.size if flat.size else 1
    finite = flat
    smallest, largest = (float(flat.min()), float(flat.max())) if flat.size else (0.0, 0.0)
    if not (smallest > -math.inf and largest < math.inf):
        finite = flat[np.isfinite(flat)]
        smallest, largest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    peak = max(-smallest, largest)
    unit = 1.0 if _SQUARABLE[0] <= peak <= _SQUARABLE[1] or peak == 0 else peak
    first, absolute, second, third = _sums(finite if unit == 1.0 else finite / unit)
    size = finite.size or 1
    return Fingerprint(
        count=count,
        non_finite=repeats * (flat.size - finite.size),
        mean=unit * (first / size),
        rms=unit * math.sqrt(second / size),
        mean_abs=unit * (absolute / size),
        skew=third / (peak / unit * second) if second else 0.0,
        min=smallest,
        max=largest,
    )


def _sums(flat: Floats) -> tuple[float, float, float, float]:
    """Sums of x, |x|, x² and x³."""
    first = absolute = second = third = 0.0
    buffer = np.empty(min(flat.size, _BLOCK))
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        spare = buffer[: block.size]
        first += float(block.sum())
        absolute += float(np.abs(block, out=spare).sum())
        second += float(block.dot(block))
        third += float(np.multiply(block, block, out=spare).dot(block))
    return first, absolute, second, third


def scaled(values: Fingerprint, factor: float) -> Fingerprint:
    """The fingerprint of the values times a positive ``factor``."""
    by_size = {name: factor * getattr(values, name) for name in ("mean", "rms", "mean_abs", "min", "max")}
    return replace(values, **by_size)


def distance(a: Fingerprint, b: Fingerprint) -> float:
    """Lower bound of the distance of two tensors: 0 for the same values, infinite for other counts of elements or of non-finite ones.

    If every element of one is off by at most e of its size in the other, the distance is at most about 2e. Moments are taken
    relative to the rms, extremes relative to the largest |x|: a rounding is relative to the element that it happens to.
    """
    if (a.count, a.non_finite) != (b.count, b.non_finite):
        return float("inf")
    return float(distances(moments_of(a)[None], moments_of(b))[0])


def moments_of(values: Fingerprint) -> Floats:
    """(6,): the sums that two fingerprints are compared by."""
    return np.array([values.mean, values.rms, values.mean_abs, values.skew, values.min, values.max])


def distances(many: Floats, one: Floats) -> Floats:
    """(N,): distances of N fingerprints from one; many (N, 6), one (6,): their moments."""
    peaks = np.abs(many[:, 4:]).max(1), np.abs(one[4:]).max()
    scale, peak = np.maximum(many[:, 1], one[1]), np.maximum(*peaks)
    unit = np.stack([scale, scale, scale, np.ones_like(scale), peak, peak], 1)
    unit[unit == 0] = 1.0
    # Divided before they are subtracted: the difference of two masks of the largest float64 would be infinite.
    apart = np.abs(many / unit - one / unit)
    apart[:, 3] /= 3  # a third power is off by three times what its base is
    return apart.max(1)


_PROJECTIONS = 4  # a difference that all of them see a thousandth of or less comes once in 10^12


def projections(values: Tensor | Array) -> Floats:
    """(4,): sums of the elements' arcsinh, each times a number drawn for its place in the flat tensor, over the root of the sum of squares.

    Of two tensors the differences of these are as large as their relative distance, about, whatever the difference is: these sums depend
    on the order of the elements, and on no shape. arcsinh x is about x, and ln 2x beyond 1: what differs by 1e-3 does so beside a mask of
    -1e4, too. What is not finite counts as the largest number of float64 with its sign, NaN as 0.
    """
    flat: Floats = _real(values).to("cpu", torch.float64).reshape(-1).numpy()
    sums, squares = np.zeros(_PROJECTIONS), 0.0
    for place, start in enumerate(range(0, flat.size, _BLOCK)):
        block = np.arcsinh(np.nan_to_num(flat[start : start + _BLOCK]))
        sums += _drawn(place, _PROJECTIONS) * (_drawn(-1, _PROJECTIONS * _BLOCK).reshape(_PROJECTIONS, -1)[:, : block.size] @ block)
        squares += float(block.dot(block))
    return sums / math.sqrt(squares) if squares else sums


@cache
def _drawn(place: int, count: int) -> Floats:
    """(count,) normal numbers: those of place -1 are for the elements of a block, all others for whole blocks."""
    return np.random.default_rng([place + 1]).standard_normal(count)


def _real(values: Tensor | Array) -> Tensor:
    """A tensor of at least one dimension, with the parts of complex numbers as elements."""
    tensor = values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values, ndmin=1))
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
