"""Laws of ops that only move values: what goes where, for every axis, stride, mask and mode."""

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.runtime.lift.ops.shape import slice_by_index

if TYPE_CHECKING:
    from tests.runtime.lift.laws.conftest import Draw, Law

Arguments = dict[str, Any]


def moved(draw: "Draw", low: int = 1, high: int = 5, **extents: int) -> Any:
    """Elements of any type, all of them different where the type has enough."""
    shape = draw.shape(low, high, **extents)
    return draw.one((draw.distinct, draw.bools))(*shape)


def factors(draw: "Draw", count: int, pieces: int) -> list[int]:
    """``pieces`` extents whose product is ``count``."""
    result = []
    for _ in range(pieces - 1):
        result.append(draw.one([k for k in range(1, count + 1) if count % k == 0]))
        count //= result[-1]
    return [*result, count]


def reshape(draw: "Draw") -> Arguments:
    x = moved(draw, 0)
    shape = factors(draw, x.size, draw.whole(1, 5))
    if draw.flag():
        shape[draw.whole(0, len(shape) - 1)] = -1
    return {"x": x, "shape": shape}


def reshape_keeping(draw: "Draw") -> Arguments:
    """0 keeps the extent of its place: counted from the end since iOS17, before that for the same rank only."""
    x = moved(draw, 2, 4)
    kept = draw.whole(1, x.ndim - 1)
    if draw.flag():
        return {"x": x, "shape": [*[0] * kept, *[-1] * (x.ndim > kept), *[1] * (x.ndim - kept - 1)], "opset": "CoreML6"}
    head = factors(draw, math.prod(x.shape[: x.ndim - kept]), draw.whole(1, 2))
    return {"x": x, "shape": [*head, *[0] * kept], "opset": draw.since("CoreML7")}


def expand_dims(draw: "Draw") -> Arguments:
    """Axes of the result: as many new ones as its rank goes beyond that of x."""
    x = moved(draw, 0, 3)
    rank = x.ndim + draw.whole(1, 5 - x.ndim)
    axes = draw.perm(rank)[: rank - x.ndim]
    return {"x": x, "axes": [axis - rank if draw.flag() else axis for axis in axes]}


def squeeze(draw: "Draw") -> Arguments:
    """At least one axis stays: MIL has no value for a scalar made of a vector."""
    shape = draw.shape(2, 5, least=2)
    axes = draw.axes(len(shape))[: len(shape) - 1]
    for axis in axes:
        shape[axis] = 1
    return {"x": draw.distinct(*shape), "axes": draw.one([None, axes])}


def concat(draw: "Draw") -> Arguments:
    shape = draw.shape(1, 5)
    axis = draw.axis(len(shape))
    values = []
    for _ in range(draw.whole(1, 4)):
        shape[axis] = draw.whole(1, 4)
        values.append(draw.floats(*shape))
    return {"values": values, "axis": axis}


def interleave(draw: "Draw") -> Arguments:
    """MIL's own value leaves the flag out."""
    shape = draw.shape(1, 5)
    return {"values": [draw.floats(*shape) for _ in range(draw.whole(1, 4))], "axis": draw.axis(len(shape)), "interleave": True}


def in_turns(values: Any, axis: int, interleave: bool) -> Any:
    first, count = values[0], len(values)
    result = np.concatenate(values, axis)
    for k, value in enumerate(values):
        np.moveaxis(result, axis, 0)[k::count] = np.moveaxis(value, axis, 0)
    assert result.shape[axis] == count * first.shape[axis]
    return result


def stack(draw: "Draw") -> Arguments:
    shape = draw.shape(0, 4)
    return {"values": [draw.floats(*shape) for _ in range(draw.whole(1, 3))], "axis": draw.axis(len(shape) + 1)}


def split(draw: "Draw") -> Arguments:
    shape = draw.shape(1, 4)
    axis = draw.axis(len(shape))
    count = draw.whole(2, 3)
    if draw.flag():
        shape[axis] *= count
        return {"x": draw.distinct(*shape), "num_splits": count, "axis": axis}
    sizes = draw.wholes(count, 1, 3)
    shape[axis] = sum(sizes)
    return {"x": draw.distinct(*shape), "split_sizes": sizes, "axis": axis}


def slicing(draw: "Draw") -> Arguments:
    """Begins and ends inside and outside the axis; no slice is empty, because MIL has no empty tensors."""
    x = moved(draw, 1, 5, most=5)
    begin_mask, end_mask = ([draw.whole(0, 3) == 0 for _ in x.shape] for _ in range(2))
    squeeze_mask = draw.one([None, [draw.whole(0, 3) == 0 for _ in x.shape]])
    begin, end, stride = [], [], []
    for axis, extent in enumerate(x.shape):
        step = draw.one([1, 1, 2, 3, -1, -2])
        first, last = draw.whole(0, extent - 1), draw.whole(0, extent - 1)
        if squeeze_mask and squeeze_mask[axis]:
            step = 1
        elif (last - first) * step < 0:
            first, last = last, first
        stop = last + (1 if step > 0 else -1)
        end_mask[axis] = end_mask[axis] or stop < 0  # no number means the place before the first one
        begin.append(first - extent if draw.flag() else first)
        end.append(stop if stop >= 0 and draw.flag() else stop - extent if stop < extent else stop + draw.whole(0, 2))
        stride.append(step)
    if squeeze_mask and all(squeeze_mask):
        squeeze_mask[0] = False
    masks = {name: mask if any(mask) else None for name, mask in (("begin_mask", begin_mask), ("end_mask", end_mask))}
    return {"x": x, "begin": begin, "end": end, "stride": stride, **masks, "squeeze_mask": squeeze_mask}


def sliced(
    x: Any, begin: Any, end: Any, stride: Any = None, begin_mask: Any = None, end_mask: Any = None, squeeze_mask: Any = None
) -> tuple[Any, ...]:
    """The same slice in numpy's words."""
    none = [False] * x.ndim
    return tuple(
        (0 if (begin_mask or none)[i] else begin[i])
        if (squeeze_mask or none)[i]
        else slice(
            None if (begin_mask or none)[i] else begin[i], None if (end_mask or none)[i] else end[i], 1 if stride is None else stride[i]
        )
        for i in range(x.ndim)
    )


def slice_update(draw: "Draw") -> Arguments:
    arguments = slicing(draw)
    x = arguments["x"]
    place = sliced(**arguments)
    return {**arguments, "update": draw.ints(*x[place].shape).astype(x.dtype), "opset": "CoreML8"}


def updated(x: Any, update: Any, **place: Any) -> Any:
    result = x.copy()
    result[sliced(x, **place)] = update
    return result


def slice_by_size(draw: "Draw") -> Arguments:
    x = moved(draw, 1, 5)
    begin = [draw.whole(0, extent - 1) for extent in x.shape]
    size = [draw.one([-1, draw.whole(1, extent - first)]) for extent, first in zip(x.shape, begin, strict=True)]
    return {"x": x, "begin": begin, "size": size}


def pad(draw: "Draw") -> Arguments:
    mode = draw.one(["constant", "constant", "reflect", "replicate"])
    x = draw.floats(*draw.shape(1, 5, least=2))
    padded = draw.whole(1, x.ndim if mode == "constant" else min(2, x.ndim))
    most = [3 if mode != "reflect" else extent - 1 for extent in x.shape[x.ndim - padded :] for _ in range(2)]
    value = draw.one([None, 2.5]) if mode == "constant" else None
    return {"x": x, "pad": [draw.whole(0, amount) for amount in most], "mode": mode, "constant_val": value}


def reverse(draw: "Draw") -> Arguments:
    x = moved(draw)
    return {"x": x, "axes": draw.one([None, draw.axes(x.ndim)])}


def reverse_sequence(draw: "Draw") -> Arguments:
    x = moved(draw, 2, 4)
    batch, along = draw.perm(x.ndim)[:2]
    axes = {"seq_axis": draw.one([along, along - x.ndim]), "batch_axis": draw.one([batch, batch - x.ndim])}
    return {"x": x, "lengths": draw.ints(x.shape[batch], low=0, high=x.shape[along]), **axes}


def reversed_heads(x: Any, lengths: Any, seq_axis: int, batch_axis: int) -> Any:
    result = x.copy()
    for b, length in enumerate(lengths):
        rows, source = (np.moveaxis(side, (batch_axis, seq_axis), (0, 1))[b] for side in (result, x))
        rows[:length] = source[:length][::-1]
    return result


def sliding_windows(draw: "Draw") -> Arguments:
    x = draw.distinct(*draw.shape(1, 4))
    axis = draw.axis(x.ndim)
    return {"x": x, "axis": axis, "size": draw.whole(1, x.shape[axis]), "stride": draw.one([None, 1, 2, 3])}


def windows(x: Any, axis: int, size: int, stride: int = 1) -> Any:
    axis = axis % x.ndim
    starts = range(0, x.shape[axis] - size + 1, stride)
    return np.stack([np.take(x, range(start, start + size), axis) for start in starts], axis)


def blocks(draw: "Draw", *, down: bool, name: str = "block_size") -> Arguments:
    size = draw.whole(1, 3)
    B, C, H, W = draw.wholes(4, 1, 3)
    shape = (B, C, H * size, W * size) if down else (B, C * size**2, H, W)
    return {"x": draw.distinct(*shape).astype(np.float32), name: size}


def pixel_unshuffle(draw: "Draw") -> Arguments:
    arguments = blocks(draw, down=True, name="downscale_factor")
    return {**arguments, "downscale_factor": np.uint32(arguments["downscale_factor"]), "opset": draw.since("CoreML6")}


def deep(x: Any, block_size: int) -> Any:
    """(row, column, channel) of a block become the channel, in this order."""
    B, C, H, W = x.shape
    result = np.empty((B, C * block_size**2, H // block_size, W // block_size), x.dtype)
    for i, j, c in itertools.product(range(block_size), range(block_size), range(C)):
        result[:, (i * block_size + j) * C + c] = x[:, c, i::block_size, j::block_size]
    return result


def shuffled_deep(x: Any, downscale_factor: int) -> Any:
    """(channel, row, column) become the channel, in this order."""
    B, C, H, W = x.shape
    f = int(downscale_factor)
    result = np.empty((B, C * f**2, H // f, W // f), x.dtype)
    for c, i, j in itertools.product(range(C), range(f), range(f)):
        result[:, (c * f + i) * f + j] = x[:, c, i::f, j::f]
    return result


def undone(there: Callable[..., Any]) -> Callable[..., Any]:
    """The inverse of ``there``, found by sending the numbers of the elements through it."""

    def back(x: Any, **factors: int) -> Any:
        (factor,) = factors.values()
        B, C, H, W = x.shape
        numbers = np.arange(x.size).reshape(B, C // factor**2, H * factor, W * factor)
        result = np.empty(x.size, x.dtype)
        result[there(numbers, factor).ravel()] = x.ravel()
        return result.reshape(numbers.shape)

    return back


def space_to_batch(draw: "Draw") -> Arguments:
    rows, columns = draw.wholes(2, 1, 3)
    paddings = np.array([draw.wholes(2, 0, 2), draw.wholes(2, 0, 2)], np.int32)
    B, C, H, W = draw.wholes(4, 1, 3)
    extents = H * rows * 3 - paddings[0].sum(), W * columns * 3 - paddings[1].sum()
    x = draw.floats(B, C, max(1, extents[0]), max(1, extents[1]))
    for axis, size in enumerate((rows, columns)):
        paddings[axis, 1] += -(x.shape[axis + 2] + paddings[axis].sum()) % size
    return {"x": x, "block_shape": [rows, columns], "paddings": paddings}


def batched(x: Any, block_shape: Any, paddings: Any) -> Any:
    padded = np.pad(x, [(0, 0), (0, 0), *paddings])
    rows, columns = block_shape
    return np.concatenate([padded[:, :, i::rows, j::columns] for i in range(rows) for j in range(columns)])


def batch_to_space(draw: "Draw") -> Arguments:
    """Blocks that ``batched`` made, to be put together again."""
    arguments = space_to_batch(draw)
    return {"x": batched(**arguments), "block_shape": arguments["block_shape"], "crops": arguments["paddings"]}


def put_together(x: Any, block_shape: Any, crops: Any) -> Any:
    rows, columns = block_shape
    B = len(x) // (rows * columns)
    whole = np.empty((B, x.shape[1], x.shape[2] * rows, x.shape[3] * columns), x.dtype)
    for k in range(rows * columns):
        whole[:, :, k // columns :: rows, k % columns :: columns] = x[k * B : (k + 1) * B]
    (top, bottom), (left, right) = crops
    return whole[:, :, top : whole.shape[2] - bottom, left : whole.shape[3] - right]


def crop(draw: "Draw") -> Arguments:
    x = draw.floats(*draw.shape(4, 4, least=3, most=6))
    return {"x": x, "crop_height": draw.wholes(2, 0, 1), "crop_width": draw.wholes(2, 0, 1)}


def cropped(x: Any, crop_height: Any, crop_width: Any) -> Any:
    (top, bottom), (left, right) = crop_height, crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def tile(draw: "Draw") -> Arguments:
    x = moved(draw, 1, 5, most=3)
    return {"x": x, "reps": draw.wholes(x.ndim, 1, 3)}


def transpose(draw: "Draw") -> Arguments:
    x = moved(draw)
    return {"x": x, "perm": [axis - x.ndim if draw.flag() else axis for axis in draw.perm(x.ndim)]}


def flatten2d(draw: "Draw") -> Arguments:
    """An axis with others on both sides: without, MIL's own value is a TypeError."""
    x = moved(draw, 2, 5)
    axis = draw.whole(1, x.ndim - 1)
    return {"x": x, "axis": draw.one([None, axis, axis - x.ndim])}


LAWS: dict[str, Callable[["Draw"], Arguments]] = {
    "identity": lambda draw: {"x": moved(draw, 0, 5)},
    "reshape": reshape,
    "reshape that keeps extents": reshape_keeping,
    "transpose": transpose,
    "expand_dims": expand_dims,
    "squeeze": squeeze,
    "concat": concat,
    "stack": stack,
    "split": split,
    "slice_by_index": slicing,
    "slice_update": slice_update,
    "slice_by_size": slice_by_size,
    "pad": pad,
    "tile": tile,
    "flatten2d": flatten2d,
    "reverse": reverse,
    "reverse_sequence": reverse_sequence,
    "sliding_windows": sliding_windows,
    "space_to_depth": lambda draw: blocks(draw, down=True),
    "depth_to_space": lambda draw: blocks(draw, down=False),
    "pixel_unshuffle": pixel_unshuffle,
    "pixel_shuffle": lambda draw: blocks(draw, down=False, name="upscale_factor"),
    "space_to_batch": space_to_batch,
    "batch_to_space": batch_to_space,
    "crop": crop,
}
ORACLES: dict[str, Callable[..., Any]] = {
    "slice_by_index": lambda x, **place: x[sliced(x, **place)],
    "slice_update": updated,
    "reverse_sequence": reversed_heads,
    "sliding_windows": windows,
    "space_to_depth": deep,
    "depth_to_space": undone(deep),
    "pixel_unshuffle": shuffled_deep,
    "pixel_shuffle": undone(shuffled_deep),
    "space_to_batch": batched,
    "batch_to_space": put_together,
    "crop": cropped,
}


@pytest.mark.parametrize("case", LAWS)
def test_results_are_those_that_mil_infers(law: "Law", case: str) -> None:
    law.agrees_with_mil(case.partition(" ")[0], LAWS[case], ORACLES.get(case))


def test_interleaved_values_take_turns(law: "Law") -> None:
    law.agrees_with(in_turns, "concat", interleave)


MOVES = ("reshape", "transpose", "expand_dims", "squeeze", "slice_by_index", "slice_by_size", "slice_update", "reverse", "sliding_windows")


@pytest.mark.parametrize("op", MOVES)
def test_integers_of_every_width_move_too(law: "Law", op: str) -> None:
    """Since iOS17; here they are carried as int32."""

    def arguments(draw: "Draw") -> Arguments:
        drawn = LAWS[op](draw)
        kind = draw.one([np.int8, np.uint8, np.int16, np.uint16])
        moved: Arguments = {
            name: (drawn[name] % 100).astype(kind) for name in ("x", "update") if name in drawn and drawn[name].dtype != bool
        }
        return {**drawn, **moved, "opset": drawn.get("opset") or draw.since("CoreML7")}

    law.agrees_with_mil(op, arguments)


def test_scalars_are_put_together_as_vectors_of_one(law: "Law") -> None:
    def arguments(draw: "Draw") -> Arguments:
        return {"values": [np.array(draw.floats(1)[0]) for _ in range(draw.whole(1, 3))], "axis": 0}

    law.agrees_with(lambda values, axis: np.array(values), "concat", arguments)


@pytest.mark.parametrize("extent", [1, 2, 3, 4])
def test_every_slice_of_a_short_axis_is_mils_where_mil_agrees_with_itself(extent: int) -> None:
    """Its declared shapes and its values come from two functions, which differ for places before the first element."""
    quiet_coremltools()
    from coremltools.converters.mil.mil.ops.defs._utils import solve_slice_by_index_shape, solve_slice_by_index_slice

    x, beyond = np.arange(extent), range(-extent - 2, extent + 3)
    agreed = 0
    for begin, end, step, *masks in itertools.product(range(-extent, extent), beyond, (1, 2, -1, -2), (False, True), (False, True)):
        arguments: tuple[list[Any], ...] = [begin], [end], [step], [masks[0]], [masks[1]]
        try:
            (count,) = solve_slice_by_index_shape([extent], *map(list, arguments), None)
        except ValueError:
            continue
        reference = x[tuple(solve_slice_by_index_slice([extent], *map(list, arguments), None))]
        if len(reference) == count:
            agreed += 1
            actual = slice_by_index(torch.from_numpy(x), *arguments[:2], stride=[step], begin_mask=[masks[0]], end_mask=[masks[1]])
            assert actual.tolist() == reference.tolist(), arguments
    assert agreed > 50
