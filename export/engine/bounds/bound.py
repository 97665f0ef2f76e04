"""What is known of one tensor: an interval for every element, and l2 balls along an axis.

Arrays of a bound have the rank of the tensor. An axis has its extent, or 1 where one number holds for all of it: that is how a bound of a
tensor of millions of elements stays small.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from coreflow.export.package.graph import Shape
from coreflow.export.package.weights import release_pages
from coreflow.models.arrays import Array, Floats

LIMIT = 2**14  # elements of an array of a bound; more are joined along an axis


class UnboundedError(Exception):
    """An op about whose results nothing is said; the text says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Ball:
    """x = centre + scale * u + rest along one axis, with |u|_2 <= radius for each of some equal blocks of it and |rest| <= error.

    >>> Ball(-1, centre=beta, scale=abs(gamma), radius=np.full((1, 1), 16.0), error=np.zeros((1, 1)))  # layer_norm of 256 channels

    The arrays are aligned with the tensor; along ``axis``, ``radius`` has an entry a block.
    """

    axis: int
    centre: Floats
    scale: Floats
    radius: Floats
    error: Floats

    @property
    def blocks(self) -> int:
        """Blocks of the axis."""
        return self.radius.shape[self.axis]

    def on(self, change: Callable[[Floats], Floats], axis: int | None = None) -> "Ball":
        """The ball with ``change`` done to all its arrays, and perhaps along another axis."""
        arrays = (change(array) for array in (self.centre, self.scale, self.radius, self.error))
        return Ball(self.axis if axis is None else axis, *arrays)

    def radii(self) -> Floats:
        """The largest length of scale * u in every block."""
        return largest_of_blocks(self.scale, self.axis, self.blocks) * self.radius

    def merged(self) -> "Ball":
        """The same with one block and a scale of 1."""
        radius = np.sqrt(np.square(self.radii()).sum(self.axis, keepdims=True))
        return replace(self, scale=np.ones((1,) * radius.ndim), radius=radius)

    def length(self, extent: int) -> Floats:
        """The largest l2 norm along the axis, which has ``extent`` elements."""
        return length_along(self.centre, self.axis, extent) + self.merged().radius + length_along(self.error, self.axis, extent)


BallRule = Callable[[int, int], Ball | None]  # an axis (not negative) and a number of blocks -> a ball


@dataclass(frozen=True, slots=True)
class Squares:
    """A value that tells the length of another: weight * sum over ``axes`` of source^2 <= factor * form(value) - less.

    >>> Squares("square", id(x), axes=(), weight=1.0, factor=1.0, less=0.0)  # x * x

    The form is the value for ``square`` (one of every element) and ``sum``, value^2 for ``root``, 1 / value^2 for ``inverse``.
    """

    form: Literal["square", "sum", "root", "inverse"]
    source: int  # id of the ``Value``
    axes: tuple[int, ...]
    weight: float
    factor: float
    less: float

    def stored(self, relative: float, absolute: float, lowest: float) -> "Squares | None":
        """What is known by the stored value, which differs by so much and is at least ``lowest``."""
        more = 1 + 2 * relative
        if self.form in ("square", "sum"):
            return replace(self, factor=self.factor * more, less=self.less - self.factor * absolute)
        if self.form == "root":  # (a + b)^2 <= (1 + t) a^2 + (1 + 1 / t) b^2
            rest = self.factor * (1 + 1 / relative) * absolute**2
            return replace(self, factor=self.factor * more**2 * (1 + relative), less=self.less - rest)
        if lowest <= 2 * absolute:
            return None
        return replace(self, factor=self.factor * (more / (1 - absolute / lowest)) ** 2)


class Bound:
    """Bounds of the elements of one tensor.

    >>> x = Bound((1, 64, 256), np.full((1, 1, 256), -3.0), np.full((1, 1, 256), 3.0))
    >>> x.magnitude.max(), x.ball(2).length(256)

    ``shares`` is the axis along which no element is negative and the sum differs from 1 by no more than ``excess``.
    """

    fetch: Callable[[], Array] | None = None  # the elements of a constant

    def __init__(
        self,
        shape: Shape,
        low: Floats,
        high: Floats,
        *,
        rule: BallRule | None = None,
        shares: int | None = None,
        excess: float = 0.0,
        squares: Squares | None = None,
    ) -> None:
        self.shape = shape
        self._ends = low, high
        self.rule = rule
        self.shares, self.excess = shares, excess
        self.squares = squares
        self._balls: dict[tuple[int, int], Ball | None] = {}

    @cached_property
    def ends(self) -> tuple[Floats, Floats]:
        """``low`` and ``high``."""
        low, high = self._ends
        # Nearly always there is no NaN, and the least tells it in one pass.
        if np.isnan(low.min(initial=0.0)):
            low = np.where(np.isnan(low), -np.inf, low)
        if np.isnan(high.min(initial=0.0)):
            high = np.where(np.isnan(high), np.inf, high)
        return compact(low, high)

    @property
    def low(self) -> Floats:
        """The least that each element may be."""
        return self.ends[0]

    @property
    def high(self) -> Floats:
        """The greatest that each element may be."""
        return self.ends[1]

    @property
    def rank(self) -> int:
        """How many axes."""
        return len(self.shape)

    @property
    def magnitude(self) -> Floats:
        """The largest magnitude of the elements."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def largest(self) -> float:
        """The largest magnitude of all elements."""
        return float(self.magnitude.max(initial=0.0))

    @property
    def lowest(self) -> float:
        """The least element."""
        return float(self.low.min(initial=np.inf))

    @property
    def highest(self) -> float:
        """The greatest element."""
        return float(self.high.max(initial=-np.inf))

    def extent(self, axis: int) -> int:
        """The extent of an axis; ``UnboundedError`` where it is open."""
        extent = self.shape[axis]
        if extent is None:
            raise UnboundedError("an extent is known only when a prediction runs")
        return extent

    def axis(self, axis: int) -> int:
        """An axis counted from the start."""
        return axis % max(self.rank, 1)

    def ball(self, axis: int, blocks: int = 1) -> Ball:
        """A ball along ``axis``: the best of what is known, at worst that of the intervals."""
        known = self.known_ball(axis, blocks)
        box = box_ball(self, axis, blocks)
        if known is None:
            return box
        extent = self.extent(axis)
        return known if known.length(extent).max() <= box.length(extent).max() else box

    def known_ball(self, axis: int, blocks: int = 1) -> Ball | None:
        """A ball along ``axis`` that says more than the intervals, if one is known."""
        if self.rule is None:
            return None
        key = axis, blocks
        if key not in self._balls:
            self._balls[key] = self.rule(axis, blocks)
        return self._balls[key]


class Constant(Bound):
    """A constant: every element where there are few, of many the least and the greatest. Read when it is asked for.

    >>> Constant((3,), lambda: np.float16([1, 2, 3])).high
    array([1., 2., 3.])
    """

    def __init__(self, shape: Shape, fetch: Callable[[], Array]) -> None:
        super().__init__(shape, np.zeros(0), np.zeros(0))
        self.fetch = fetch

    @cached_property
    def ends(self) -> tuple[Floats, Floats]:
        """``low`` and ``high``."""
        assert self.fetch is not None
        data = self.fetch()
        if data.size <= 4 * LIMIT:
            elements = data.astype(np.float64)
            return compact(elements, elements)
        flat = data.reshape(-1)
        parts = [flat[start : start + 2**20] for start in range(0, flat.size, 2**20)]
        ones = np.ones((1,) * data.ndim)
        ends = min(float(part.min()) for part in parts) * ones, max(float(part.max()) for part in parts) * ones
        release_pages(data)
        return ends


def top(shape: Shape) -> Bound:
    """Nothing is known."""
    ones = np.ones((1,) * len(shape))
    return Bound(shape, -np.inf * ones, np.inf * ones)


def between(shape: Shape, low: float, high: float) -> Bound:
    """Every element lies between two numbers."""
    ones = np.ones((1,) * len(shape))
    return Bound(shape, low * ones, high * ones)


def hull(shape: Shape, bounds: Sequence[Bound]) -> Bound:
    """Whatever holds for all of ``bounds``, which have one rank."""
    low, high = bounds[0].low, bounds[0].high
    for bound in bounds[1:]:
        low, high = np.minimum(low, bound.low), np.maximum(high, bound.high)
    return Bound(shape, low, high)


def box_ball(bound: Bound, axis: int, blocks: int) -> Ball:
    """The ball that the intervals alone give: an element lies within a half-width of the middle."""
    middle, reach = middle_and_reach(bound.low, bound.high)
    extent = bound.extent(axis)
    radius_shape = [1] * bound.rank
    radius_shape[axis] = blocks
    radius = np.full(radius_shape, np.sqrt(extent / blocks))
    return Ball(axis, middle, reach, radius, np.zeros((1,) * bound.rank))


def middle_and_reach(low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """The middle of an interval and its half-width, rounded up; of one without end 0 and infinity."""
    finite = np.isfinite(low) & np.isfinite(high)
    middle = np.where(finite, low / 2 + high / 2, 0.0)
    reach = np.maximum(high - middle, middle - low)
    return middle, np.where(finite, reach * (1 + 1e-15), np.inf)


def moved_apart(low: Floats, high: Floats, relative: float, absolute: float, *, keeps_sign: bool = True) -> tuple[Floats, Floats]:
    """The ends after a rounding, which makes no negative number of others, nor the other way round."""
    least, greatest = low - relative * np.abs(low) - absolute, high + relative * np.abs(high) + absolute
    if not keeps_sign:
        return least, greatest
    return np.where(low >= 0, np.maximum(least, 0), least), np.where(high <= 0, np.minimum(greatest, 0), greatest)


def compact(low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """The same with at most ``LIMIT`` elements: joined along the axes where that loses least."""
    while low.size > LIMIT or high.size > LIMIT:
        low, high = np.broadcast_arrays(low, high)
        choices = [axis for axis, extent in enumerate(low.shape) if extent > 1]
        joined = [(low.min(axis, keepdims=True), high.max(axis, keepdims=True)) for axis in choices]
        low, high = min(joined, key=lambda pair: float(np.mean(pair[1] - pair[0])))
    return low, high


def join(array: Floats, axes: Sequence[int], least: bool = False) -> Floats:
    """The least or greatest along axes, which then have an extent of 1."""
    chosen = tuple(axes)
    return array.min(chosen, keepdims=True) if least else array.max(chosen, keepdims=True)


def full(array: Floats, axis: int, extent: int) -> Floats:
    """The array with all its extent along one axis."""
    if array.shape[axis] == extent:
        return array
    return np.broadcast_to(array, (*array.shape[:axis], extent, *array.shape[axis + 1 :]))


def aligned(array: Floats, rank: int) -> Floats:
    """The array with leading axes of extent 1, as broadcasting puts them."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def length_along(array: Floats, axis: int, extent: int) -> Floats:
    """The l2 norm along one axis of ``extent`` elements."""
    return np.sqrt(np.square(array).sum(axis, keepdims=True) * (extent / array.shape[axis]))


def largest_of_blocks(array: Floats, axis: int, blocks: int) -> Floats:
    """The greatest element of every block of an axis; one where the array has one for all."""
    if array.shape[axis] == 1 or array.shape[axis] == blocks:
        return array
    shape = (*array.shape[:axis], blocks, array.shape[axis] // blocks, *array.shape[axis + 1 :])
    return array.reshape(shape).max(axis + 1)


def repeat_blocks(radius: Floats, axis: int, extent: int) -> Floats:
    """A number of every block for each of its elements."""
    blocks = radius.shape[axis]
    return radius if blocks == 1 else np.repeat(radius, extent // blocks, axis)
