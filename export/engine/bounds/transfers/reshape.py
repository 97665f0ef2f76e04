"""Reshapes: runs of axes that hold the same elements before and after keep what is known of each."""

import math
from collections.abc import Sequence

from coreflow.export.engine.bounds.bound import LIMIT, Ball, Bound, full
from coreflow.export.engine.bounds.registry import Call, transfer
from coreflow.export.engine.bounds.transfers.moves import anywhere
from coreflow.export.package.graph import Shape
from coreflow.models.arrays import Floats

Run = tuple[list[int], list[int]]  # axes before and after that hold the same elements


@transfer("reshape", "flatten2d", "reshape_like")
def reshape(call: Call) -> Bound:
    """The same elements in another shape."""
    return in_shape(call["x"], call.shape())


def in_shape(x: Bound, after: Shape) -> Bound:
    """``x`` in another shape; a split axis and joined axes keep their balls."""
    olds, news = _fixed(x.shape), _fixed(after)
    if olds is None or news is None or math.prod(olds) != math.prod(news) or 0 in olds:
        return anywhere(x, after)
    reshaping = _Reshaping(x, olds, news)
    return Bound(
        after,
        reshaping.array(reshaping.whole(x.low, least=True)),
        reshaping.array(reshaping.whole(x.high, least=False)),
        rule=reshaping.ball,
        shares=reshaping.axis_after(x.shares),
        excess=x.excess,
    )


def _fixed(shape: Shape) -> tuple[int, ...] | None:
    known = tuple(extent for extent in shape if extent is not None)
    return known if len(known) == len(shape) else None


class _Reshaping:
    """One reshape: its runs, and how arrays and balls go through it.

    >>> _Reshaping(x, (1, 64, 768), (1, 64, 12, 64)).runs
    [([0], [0]), ([1], [1]), ([2], [2, 3])]
    """

    def __init__(self, x: Bound, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        self.x, self.before, self.after = x, before, after
        self.runs = _runs(before, after)

    def array(self, array: Floats, run: Run | None = None, extents: Sequence[int] = ()) -> Floats:
        """An array, each run of which is whole or one element, in the shape after; one ``run`` has other ``extents``."""
        shape: list[int] = []
        for old, new in self.runs:
            if run is not None and new == run[1]:
                shape += extents
            elif math.prod(array.shape[axis] for axis in old) == 1:
                shape += [1] * len(new)
            else:
                shape += (self.after[axis] for axis in new)
        return array.reshape(shape)

    def whole(self, array: Floats, *, least: bool) -> Floats:
        """An array, each run of which is whole or one element; joined where it would become large."""
        for old, _ in self.runs:
            if self._is_even(array, old):
                continue
            missing = math.prod(self.before[axis] for axis in old if array.shape[axis] == 1)
            if array.size * missing <= 4 * LIMIT:
                for axis in old:
                    array = full(array, axis, self.before[axis])
            else:
                array = array.min(tuple(old), keepdims=True) if least else array.max(tuple(old), keepdims=True)
        return array

    def _is_even(self, array: Floats, old: Sequence[int]) -> bool:
        is_whole = [array.shape[axis] == self.before[axis] for axis in old]
        return all(is_whole) or all(array.shape[axis] == 1 for axis in old)

    def _several(self, axes: Sequence[int], shape: Sequence[int]) -> list[int]:
        """The axes of more than one element."""
        return [axis for axis in axes if shape[axis] > 1]

    def axis_after(self, axis: int | None) -> int | None:
        """Where an axis is afterwards, if it is still one axis."""
        for old, new in self.runs:
            olds, news = self._several(old, self.before), self._several(new, self.after)
            if axis in olds and len(olds) == len(news) == 1:
                return news[0]
        return None

    def ball(self, axis: int, blocks: int) -> Ball | None:
        """A ball along an axis of the result: of one axis, of the last part of a split one, or of several that were joined."""
        old, new = run = next(run for run in self.runs if axis in run[1])
        olds, news = self._several(old, self.before), self._several(new, self.after)
        if not old or (news and axis != news[-1]) or len(olds) > 1 < len(news):
            return None  # elements along it are no neighbours, or neighbours of two axes
        joined = math.prod(self.before[place] for place in olds[:-1])
        rows = math.prod(self.after[place] for place in news[:-1])
        ball = self.x.known_ball(olds[-1] if olds else old[-1], max(1, rows * blocks // joined))
        if ball is None or ball.blocks % rows or not self._is_even_elsewhere(ball, old):
            return None
        centre, scale, error = (self._whole_run(array, old) for array in (ball.centre, ball.scale, ball.error))
        if max(array.size for array in (centre, scale, error)) > 4 * LIMIT:
            return None
        radius = ball.radius
        for place in olds[:-1]:
            radius = full(radius, place, self.before[place])
        extents = [joined * ball.blocks // rows if place == axis else self.after[place] if place in news[:-1] else 1 for place in new]
        return Ball(axis, self.array(centre), self.array(scale), self.array(radius, run, extents), self.array(error))

    def _is_even_elsewhere(self, ball: Ball, run: Sequence[int]) -> bool:
        """Whether the arrays of a ball have every other run whole or as one element."""
        others = [old for old, _ in self.runs if old != run]
        return all(self._is_even(array, old) for array in (ball.centre, ball.scale, ball.radius, ball.error) for old in others)

    def _whole_run(self, array: Floats, run: Sequence[int]) -> Floats:
        """The array with one run whole, unless it has one element for all of it."""
        if max(array.shape[axis] for axis in run) > 1:
            for axis in run:
                array = full(array, axis, self.before[axis])
        return array


def _runs(before: Sequence[int], after: Sequence[int]) -> list[Run]:
    """The shortest runs of axes with the same number of elements."""
    runs: list[Run] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old: list[int] = []
        new: list[int] = []
        left = right = 1
        while not (old or new) or left != right:
            if (left <= right and i < len(before)) or j == len(after):
                left *= before[i]
                old.append(i)
                i += 1
            if j < len(after) and (right < left or not new):
                right *= after[j]
                new.append(j)
                j += 1
        runs.append((old, new))
    return runs
