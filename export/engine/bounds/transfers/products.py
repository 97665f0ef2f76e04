"""Sums of products: linear, matmul, and what else multiplies by a matrix."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from coreflow.export.engine.bounds.bound import (
    LIMIT,
    Ball,
    BallRule,
    Bound,
    UnboundedError,
    aligned,
    between,
    full,
    middle_and_reach,
)
from coreflow.export.engine.bounds.registry import Call, transfer
from coreflow.export.engine.bounds.transfers.moves import moved
from coreflow.export.package.graph import Shape
from coreflow.export.package.weights import release_pages
from coreflow.models.arrays import Array, Floats

_BLOCK = 2**15  # elements of a weight that are float numbers at a time, so that they stay in the second cache
_ENDLESS = 1e30  # numbers beyond it are taken to have no bound, and weights are not read for them
_SMALL = 2**16  # elements of a weight that is summed in float64


@transfer("linear")
def linear(call: Call) -> Bound:
    """w x + b for every row w of a constant weight (D_out, D_in)."""
    weight, bias = call.fetch("weight"), call.array("bias")
    if weight is None or ("bias" in call.op.inputs and bias is None):
        raise UnboundedError("the weight is computed")
    return contracted(call, call["x"], weight, bias)


@transfer("matmul")
def matmul(call: Call) -> Bound:
    """A product by a constant matrix as linear's; of two computed matrices by their rows and columns."""
    x, y = call["x"], call["y"]
    fetch, is_swapped = call.fetch("y"), call.flag("transpose_y")
    if fetch is not None and y.rank == 2 and x.rank > 1 and not call.flag("transpose_x"):
        return contracted(call, x, fetch if is_swapped else lambda: fetch().T, None)
    if x.rank < 2 or y.rank < 2:
        return _of_vectors(call)
    left = _swapped(x) if call.flag("transpose_x") else x
    right = _swapped(y) if call.flag("transpose_y") else y
    return product(call, left, right, call.shape())


def _of_vectors(call: Call) -> Bound:
    x, y = call["x"], call["y"]
    terms = x.extent(x.rank - (2 if call.flag("transpose_x") and x.rank > 1 else 1))
    magnitude = terms * x.largest * y.largest
    call.note("sum", magnitude + terms * call.slack.product)
    reach = (magnitude * (1 + 1e-12) + terms * call.slack.product) * np.ones((1,) * len(call.shape()))
    return Bound(call.shape(), -reach, reach)


def _swapped(x: Bound) -> Bound:
    """The last two axes in each other's place."""
    axes = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    return moved(x, tuple(x.shape[axis] for axis in axes), lambda array: array.transpose(axes), lambda axis: axes[axis])


# --- a constant matrix ---------------------------------------------------------------------------------------------------------------


def row_blocks(weight: Array) -> Iterator[tuple[slice, Floats]]:
    """The rows (D_out, D_in) of a weight in float64, some at a time; its pages of the weight file are released."""
    step = max(1, _BLOCK // max(1, weight.shape[1]))
    for start in range(0, len(weight), step):
        part = slice(start, min(start + step, len(weight)))
        yield part, weight[part].astype(np.float64)
    release_pages(weight)


def contracted(call: Call, x: Bound, fetch: Callable[[], Array], bias: Array | None, axis: int | None = None) -> Bound:
    """sum_i weight[o, i] x_i + bias[o] along one axis of ``x``, the last one where none is named.

    By intervals: w . middle +- |w| . half-width. By a ball: w . centre +- (length of w * scale) radius +- |w| . error. A partial sum, in
    whichever order, is at most |w| . |x|, and at most |w| . |centre| + (length of w * scale) radius + |w| . error.
    """
    axis = x.rank - 1 if axis is None else axis
    weight = fetch()
    results, terms = weight.shape
    shape = (*x.shape[:axis], results, *x.shape[axis + 1 :])
    low, high, outer = _rows_of(x, axis, results)
    if not (low.min() > -_ENDLESS and high.max() < _ENDLESS):
        call.note("sum", np.inf)
        return Bound(shape, np.full((1,) * x.rank, -np.inf), np.full((1,) * x.rank, np.inf))
    middle, reach = middle_and_reach(low, high)
    ball = common_ball(x.ball(axis), terms)
    sums = _row_sums(weight, middle, reach, ball)
    offset = np.zeros(1) if bias is None else bias.astype(np.float64).reshape(-1)
    slack = terms * call.slack.product + sums.rounding * (sums.largest + np.abs(offset))
    around = sums.radius + sums.error + sums.rounding * sums.outer
    call.note("sum", float((np.minimum(sums.largest, sums.outer + around) + np.abs(offset) + slack).max(initial=0.0)))
    lows = np.maximum(sums.middle - sums.reach, sums.centre - around) + offset - slack
    highs = np.minimum(sums.middle + sums.reach, sums.centre + around) + offset + slack

    def back(rows: Floats) -> Floats:
        return np.moveaxis(rows.reshape((*outer, results)), -1, axis)

    def rule(along: int, blocks: int) -> Ball | None:
        return _image(call, (sums, ball, offset), fetch, (axis, x.rank, blocks)) if along == axis else None

    return Bound(shape, back(lows), back(highs), rule=rule)


def _rows_of(x: Bound, axis: int, results: int) -> tuple[Floats, Floats, tuple[int, ...]]:
    """The intervals of ``x`` as rows (R, D_in), and the extents of the other axes; one row where that would be much."""
    terms = x.extent(axis)
    low, high = np.broadcast_arrays(x.low, x.high)
    others = [place for place in range(x.rank) if place != axis]
    if low.size // low.shape[axis] * max(terms, results) > 4 * LIMIT:
        low, high = low.min(tuple(others), keepdims=True), high.max(tuple(others), keepdims=True)
    rows = [np.moveaxis(full(array, axis, terms), axis, -1) for array in (low, high)]
    return rows[0].reshape(-1, terms), rows[1].reshape(-1, terms), rows[0].shape[:-1]


@dataclass(frozen=True, slots=True, eq=False)
class CommonBall:
    """A ball that holds for all rows: vectors (D,), and a radius a block.

    >>> CommonBall(centre=beta, scale=abs(gamma), radius=np.array([16.0]), error=np.zeros(256))
    """

    centre: Floats
    scale: Floats
    radius: Floats
    error: Floats

    def per_element(self) -> Floats:
        """scale * radius of every element."""
        return self.scale * np.repeat(self.radius, len(self.scale) // len(self.radius))


def common_ball(ball: Ball, extent: int) -> CommonBall:
    """One ball along the axis of ``ball`` for all places on the other axes."""

    def vector(array: Floats, count: int) -> Floats:
        rows = np.moveaxis(array, ball.axis, -1).reshape(-1, array.shape[ball.axis])
        return np.broadcast_to(rows.max(0), (count,))

    centre, error = vector(ball.centre, extent), ball.error
    if ball.centre.size > ball.centre.shape[ball.axis]:  # the centres differ: one in the middle, and how far the others are
        lowest = -vector(-ball.centre, extent)
        along = [extent if axis == ball.axis else 1 for axis in range(error.ndim)]
        error = error + ((centre - lowest) / 2 * (1 + 1e-15)).reshape(along)
        centre = (centre + lowest) / 2
    return CommonBall(centre, vector(ball.scale, extent), vector(ball.radius, ball.blocks), vector(error, extent))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowSums:
    """What the rows w of a weight make of intervals m +- h in R rows, and of a ball.

    >>> sums = _row_sums(weight, middle, reach, ball)
    >>> sums.middle - sums.reach, sums.centre - sums.radius - sums.error

    w . m, |w| . h and |w| . (|m| + h) are (R, D_out); w . centre, |w| . |centre|, |w| . error and the length of w * scale times the radius,
    of all blocks together, (D_out,). ``rounding`` is what the sums may be off, relative to sums of magnitudes.
    """

    middle: Floats
    reach: Floats
    largest: Floats
    centre: Floats
    outer: Floats
    error: Floats
    radius: Floats
    rounding: float


@cache
def _fp16_numbers() -> Array:
    """Every fp16 number in float32, by its bits: looking them up takes less than half the time of a conversion."""
    return np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _numbers(block: Array, kind: type[np.floating[Any]]) -> Array:
    """Some rows of a weight as floats, a copy."""
    if block.dtype == np.float16 and kind is np.float32:
        return _fp16_numbers().take(block.view(np.uint16))
    return block.astype(kind)


def _row_sums(weight: Array, middle: Floats, reach: Floats, ball: CommonBall) -> RowSums:
    """One pass over a weight: in float32 where it is large, since a package has to be through in seconds."""
    terms, count, blocks = weight.shape[1], len(middle), len(ball.radius)
    signed = np.concatenate([middle, ball.centre[None]]).T
    unsigned = np.concatenate([reach, np.abs(middle) + reach, np.abs(ball.centre)[None], ball.error[None]]).T
    largest_scale = float(ball.scale.max(initial=0.0)) or 1.0
    is_large = weight.size > _SMALL and max(np.abs(signed).max(), unsigned.max(), largest_scale) < _ENDLESS
    kind = np.float32 if is_large else np.float64
    rounding = (terms + 4) * 2.0**-23 if is_large else 1e-12
    # Column b: the squared scales of block b, zeros elsewhere.
    squares = np.square(ball.scale / largest_scale)[:, None] * (np.arange(terms)[:, None] * blocks // terms == np.arange(blocks))
    operands = [array.astype(kind) for array in (signed, unsigned, squares)]
    parts: list[list[Floats]] = [[], [], []]
    step = max(1, _BLOCK // max(1, terms))
    for start in range(0, len(weight), step):
        rows = _numbers(weight[start : start + step], kind)
        parts[0].append(rows @ operands[0])
        np.abs(rows, out=rows)
        parts[1].append(rows @ operands[1])
        np.square(rows, out=rows)
        parts[2].append(rows @ operands[2])
    release_pages(weight)
    by_sign, by_size, by_square = (np.concatenate(part).astype(np.float64).T for part in parts)
    # A product below the smallest number of float32 is lost.
    lengths = np.sqrt(by_square) * largest_scale * (1 + rounding) + (1e-18 * largest_scale * np.sqrt(terms) if is_large else 0.0)
    return RowSums(
        middle=by_sign[:count],
        reach=by_size[:count],
        largest=by_size[count : 2 * count],
        centre=by_sign[count],
        outer=by_size[2 * count],
        error=by_size[2 * count + 1] * (1 + rounding),
        radius=ball.radius @ lengths,
        rounding=rounding,
    )


def _image(call: Call, known: tuple[RowSums, CommonBall, Floats], fetch: Callable[[], Array], place: tuple[int, int, int]) -> Ball:
    """The ball into which a weight takes a ball: by its largest singular value in every block of results, or by the lengths of rows."""
    (sums, ball, offset), (axis, rank, blocks) = known, place
    results, terms = len(sums.centre), len(ball.centre)
    if results % blocks:
        blocks = 1
    step = results // blocks
    radii = np.sqrt(np.square(sums.radius).reshape(blocks, step).sum(1))
    for block in range(blocks) if call.work.affords(step, terms, blocks) else ():
        rows = fetch()[block * step : (block + 1) * step].astype(np.float64) * ball.per_element()
        radii[block] = min(radii[block], call.work.spectral_norm(rows) * np.sqrt(len(ball.radius)))
    error = sums.error + sums.rounding * (sums.outer + sums.radius + np.abs(offset)) + terms * call.slack.product

    def along(vector: Floats) -> Floats:
        return vector.reshape([len(vector) if place == axis else 1 for place in range(rank)])

    return Ball(axis, along(sums.centre + offset), along(np.ones(1)), along(radii * (1 + sums.rounding)), along(error))


# --- two computed matrices -----------------------------------------------------------------------------------------------------------


def product(call: Call, x: Bound, y: Bound, shape: Shape) -> Bound:
    """x (..., M, K) by y (..., K, N): by intervals, by lengths of rows and columns, and, where rows of x are shares of 1, as their mean."""
    rank = len(shape)
    terms = x.extent(x.rank - 1)
    slack = terms * call.slack.product
    row, column = x.rank - 1, y.rank - 2
    lengths = aligned(x.ball(row).length(terms), rank) * aligned(y.ball(column).length(terms), rank)
    middle, reach, largest = _by_intervals(x, y, terms)
    partial = np.fmin(lengths, largest)
    low, high = np.fmax(middle - reach, -lengths), np.fmin(middle + reach, lengths)
    rule = None
    if x.shares == row:
        least, greatest = y.low.min(column, keepdims=True), y.high.max(column, keepdims=True)
        magnitude = np.maximum(np.abs(least), np.abs(greatest))
        low, high = np.fmax(low, least - x.excess * magnitude), np.fmin(high, greatest + x.excess * magnitude)
        partial = np.fmin(partial, magnitude * (1 + x.excess))
        rule = _means(x, y, rank, terms * call.slack.product)
    rounding = slack + 1e-12 * partial
    call.note("sum", float(np.max(partial + rounding, initial=0.0)))
    return Bound(shape, low - rounding, high + rounding, rule=rule)


def _by_intervals(x: Bound, y: Bound, terms: int) -> tuple[Floats, Floats, Floats]:
    """Middle, half-width and largest partial sum of products of intervals."""
    (xm, xr), (ym, yr) = middle_and_reach(x.low, x.high), middle_and_reach(y.low, y.high)
    if all(array.shape[-1] == 1 for array in (xm, xr)) and all(array.shape[-2] == 1 for array in (ym, yr)):
        count = terms
    else:
        count = 1
        xm, xr = (full(array, array.ndim - 1, terms) for array in (xm, xr))
        ym, yr = (full(array, array.ndim - 2, terms) for array in (ym, yr))
    if xm.size // xm.shape[-1] * (ym.size // ym.shape[-2]) > 4 * LIMIT:
        return np.zeros(1), np.full(1, np.inf), np.full(1, np.inf)
    xa, ya = np.abs(xm), np.abs(ym)
    largest = count * ((xa + xr) @ (ya + yr))
    with np.errstate(invalid="ignore"):
        reach = count * (xa @ yr + xr @ ya + xr @ yr)
    largest, reach = (np.where(np.isnan(array), np.inf, array) for array in (largest, reach))
    return count * (xm @ ym), reach + 1e-12 * np.where(np.isfinite(largest), largest, 0.0), largest


def _means(x: Bound, y: Bound, rank: int, slack: float) -> BallRule:
    """The ball of a mean of rows: that of the rows, where one holds for all of them."""
    column = y.rank - 2

    def rule(axis: int, blocks: int) -> Ball | None:
        if axis != rank - 1:
            return None
        ball = y.known_ball(y.rank - 1, blocks)
        if ball is None or ball.centre.shape[column] > 1:
            return None
        mass = 1 + x.excess
        error = ball.error.max(column, keepdims=True) * mass + np.abs(ball.centre) * x.excess + slack
        scale, radius = (array.max(column, keepdims=True) for array in (ball.scale, ball.radius))
        return Ball(axis, *(aligned(array, rank) for array in (ball.centre, scale * mass, radius, error)))

    return rule


# --- products by other names ---------------------------------------------------------------------------------------------------------


@transfer("einsum")
def einsum(call: Call) -> Bound:
    """Of two values with one label to sum over a product of matrices; of others by their largest magnitudes."""
    values = call.values("values")
    reads, _, gives = call.text("equation", "").replace(" ", "").partition("->")
    labels = reads.split(",")
    matrices = _matrices(labels, gives, values) if len(values) == 2 else None
    if matrices is not None:
        return _as_matrices(call, matrices, gives)
    extents: dict[str, int] = {}
    for text, value in zip(labels, values, strict=True):
        for axis, label in enumerate(text):
            extents[label] = max(value.extent(axis), extents.get(label, 1))
    terms = math.prod(extent for label, extent in extents.items() if label not in gives)
    size = terms * math.prod(value.largest for value in values) * (1 + 1e-12) + terms * call.slack.product
    call.note("sum", size)
    ones = np.ones((1,) * len(call.shape()))
    return Bound(call.shape(), -size * ones, size * ones)


@dataclass(frozen=True, slots=True, eq=False)
class Matrices:
    """An einsum as a product of matrices: both operands in order, and the labels of the result's axes.

    >>> Matrices(x, y, order="bhqk")
    """

    x: Bound
    y: Bound
    order: str


def _matrices(labels: Sequence[str], gives: str, values: Sequence[Bound]) -> Matrices | None:
    one, other = labels
    shared = [label for label in one if label in other]
    summed, batch = [label for label in shared if label not in gives], [label for label in shared if label in gives]
    free = [sorted(set(one) - set(other)), sorted(set(other) - set(one))]
    is_plain = len(set(one)) == len(one) and len(set(other)) == len(other) and set(gives) == {*batch, *free[0], *free[1]}
    if len(summed) != 1 or not is_plain or max(map(len, free)) > 1:
        return None
    x, y = values
    if any(x.shape[one.index(label)] != y.shape[other.index(label)] for label in [*summed, *batch]):
        return None  # an axis of one element is broadcast
    left = _ordered(x, one, [*batch, *free[0], *summed], len(batch) if not free[0] else None)
    right = _ordered(y, other, [*batch, *summed, *free[1]], len(batch) + 1 if not free[1] else None)
    return Matrices(left, right, "".join(batch) + (free[0][0] if free[0] else ".") + (free[1][0] if free[1] else "."))


def _ordered(x: Bound, labels: str, order: Sequence[str], new: int | None) -> Bound:
    """``x`` with its axes in this order, and perhaps a new one of one element."""
    axes = [labels.index(label) for label in order]
    result = moved(x, tuple(x.shape[axis] for axis in axes), lambda array: array.transpose(axes), lambda axis: axes[axis])
    if new is None:
        return result
    shape = (*result.shape[:new], 1, *result.shape[new:])

    def before(axis: int) -> int | None:
        return None if axis == new else axis - (axis > new)

    return moved(result, shape, lambda array: np.expand_dims(array, new), before)


def _as_matrices(call: Call, matrices: Matrices, gives: str) -> Bound:
    x, y, order = matrices.x, matrices.y, matrices.order
    result = product(call, x, y, (*x.shape[:-1], y.shape[-1]))
    places = [order.index(label) for label in gives]
    gone = tuple(axis for axis, label in enumerate(order) if label == ".")

    def change(array: Floats) -> Floats:
        return array.transpose([*places, *gone]).reshape([array.shape[place] for place in places])

    return moved(result, call.shape(), change, lambda axis: places[axis])


@transfer("scaled_dot_product_attention")
def attention(call: Call) -> Bound:
    """Scores by lengths of rows; the result is a mean of values."""
    query, key, value = call["query"], call["key"], call["value"]
    size, length = query.extent(query.rank - 1), key.extent(key.rank - 2)
    scores = query.ball(query.rank - 1).length(size).max() * key.ball(key.rank - 1).length(size).max()
    call.note("sum", float(scores) * (1 + 1e-12) + size * call.slack.product)
    relative, absolute = call.slack.of("softmax")
    shape, rank = call.shape(), len(call.shape())
    weights = between((*shape[:-1], length), 0.0, 1.0)
    shares = Bound(weights.shape, weights.low, weights.high, shares=rank - 1, excess=relative + absolute * length)
    return product(call, shares, value, shape)
