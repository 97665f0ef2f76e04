"""Making, ordering and repeating elements. Source of every rule: MIL iOS15 tensor_operation, where no other is named."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from coreflow.runtime.lift.limits import bounded
from coreflow.runtime.lift.registry import lowering


@lowering("tile")
def tile(x: Tensor, reps: Sequence[int]) -> Tensor:
    """``x`` repeated so many times along each axis."""
    bounded((x.numel(), *reps))
    return x.repeat(tuple(reps))


@lowering("fill")
def fill(shape: Sequence[int], value: Tensor | None = None, *, float_dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of this shape with one value everywhere."""
    filling = torch.zeros((), dtype=float_dtype, device=device) if value is None else value
    return filling.reshape(()).expand(bounded(shape)).contiguous()


@lowering("one_hot")
def one_hot(
    indices: Tensor, one_hot_vector_size: int, axis: int = -1, on_value: Tensor | None = None, off_value: Tensor | None = None
) -> Tensor:
    """``on_value`` at the index along the new ``axis``, ``off_value`` elsewhere, also where the index is outside."""
    on = torch.ones((), dtype=torch.int32, device=indices.device) if on_value is None else on_value
    off = torch.zeros((), dtype=torch.int32, device=indices.device) if off_value is None else off_value
    place = axis % (indices.dim() + 1)
    bounded((*indices.shape, one_hot_vector_size))
    shape = [1] * (indices.dim() + 1)
    shape[place] = one_hot_vector_size
    counter = torch.arange(one_hot_vector_size, dtype=indices.dtype, device=indices.device).reshape(shape)
    return torch.where(indices.unsqueeze(place) == counter, on, off)


@lowering("cumsum")
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sum along ``axis``, without the element itself if exclusive, from the end if reversed."""
    along = x.flip(axis) if reverse else x
    total = torch.cumsum(along, axis, dtype=x.dtype)
    if exclusive:
        total = torch.cat((torch.zeros_like(total.narrow(axis, 0, 1)), total.narrow(axis, 0, x.shape[axis] - 1)), axis)
    return total.flip(axis) if reverse else total


@lowering("topk")
def topk(
    x: Tensor,
    *,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:
    """The k largest (ascending: smallest) values along ``axis``, in order, and where they were; of equals the first comes first.

    Source: MIL iOS15 tensor_operation.topk; sort and return_indices since iOS16, output_indices_dtype since iOS17.
    """
    count = x.shape[axis] if k == -1 else k
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    values, indices = values.narrow(axis, 0, count), indices.narrow(axis, 0, count).to(torch.int32)
    return (values, indices) if return_indices else (values,)


@lowering("pad")
def pad(x: Tensor, pad: Sequence[int], mode: str = "constant", constant_val: Tensor | None = None) -> Tensor:
    """``pad`` holds (before, after) for the last axes; new elements are a constant, a reflection without the edge, or the edge.

    Source: MIL iOS15 tensor_operation.pad.
    """
    pairs = list(zip(pad[0::2], pad[1::2], strict=True))
    for axis, (before, after) in enumerate(pairs, start=x.dim() - len(pairs)):
        if before or after:
            x = _pad_axis(x, axis, (before, after), mode, constant_val)
    return x


def _pad_axis(x: Tensor, axis: int, amounts: tuple[int, int], mode: str, constant: Tensor | None) -> Tensor:
    extent = x.shape[axis]
    before, after = amounts
    bounded((*x.shape[:axis], extent + before + after, *x.shape[axis + 1 :]))
    if mode == "constant":
        value = torch.zeros((), dtype=x.dtype, device=x.device) if constant is None else constant.to(x.dtype)
        shapes = [[*x.shape[:axis], amount, *x.shape[axis + 1 :]] for amount in amounts]
        return torch.cat((value.expand(shapes[0]), x, value.expand(shapes[1])), axis)
    place = torch.arange(-before, extent + after, device=x.device)
    if mode == "replicate":
        place = place.clamp(0, extent - 1)
    elif mode == "reflect":
        period = max(2 * (extent - 1), 1)
        place = torch.remainder(place, period)
        place = torch.minimum(place, period - place)
    else:
        raise ValueError(f"pad mode {mode!r}")
    return torch.index_select(x, axis, place)


@lowering("flatten2d")
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    """Two axes: those before ``axis`` as one, the others as one."""
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@lowering("shape")
def shape(x: Tensor, output_dtype: str = "int32") -> Tensor:
    """The extents of x."""
    return torch.tensor(x.shape, dtype=torch.int32, device=x.device)


@lowering("fill_like")
def fill_like(ref_tensor: Tensor, value: Tensor | None = None, *, float_dtype: torch.dtype) -> Tensor:
    """One value everywhere, in the shape of ``ref_tensor``. Source: MIL iOS16."""
    return fill(ref_tensor.shape, value, float_dtype=float_dtype, device=ref_tensor.device)


@lowering("range_1d")
def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """``start, start + step, ...`` as long as it is before ``end``; nothing if it is not before it.

    Of fractions, as float32 counts them: from 0 to 0.3 there are three steps of 0.1, where float64 would count four.
    """
    first, last, stride = (number.item() for number in (start, end, step))
    if stride == 0:
        raise ValueError("a range in steps of 0 has no end")
    steps = (last - first) / stride if isinstance(stride, int) else float((np.float32(last) - np.float32(first)) / np.float32(stride))
    (count,) = bounded((max(0, math.ceil(steps)),))
    return torch.arange(count, dtype=start.dtype, device=start.device) * stride + first


@lowering("argsort")
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """The indices that order x along ``axis``; equals stay in their order."""
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True).to(torch.int32)


@lowering("non_zero")
def non_zero(x: Tensor) -> Tensor:
    """(count, rank): the place of every element that is not 0."""
    return torch.nonzero(x).to(torch.int32)


@lowering("band_part")
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """``x`` with zeros outside the band of ``lower`` and ``upper`` diagonals of its last two axes; -1 keeps them all."""
    rows, columns = bounded(x.shape[-2:])
    below = torch.arange(rows, device=x.device)[:, None] - torch.arange(columns, device=x.device)[None, :]
    kept = torch.ones_like(below, dtype=torch.bool)
    if lower >= 0:
        kept = kept & (below <= lower)
    if upper >= 0:
        kept = kept & (-below <= upper)
    return torch.where(kept, x, torch.zeros_like(x))


@lowering("non_maximum_suppression")
def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    *,
    iou_threshold: float,
    score_threshold: float = -math.inf,
    max_boxes: int,
    per_class_suppression: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes in falling order of their best score, without those that overlap a better one; boxes (N, B, 4), scores (N, B, K).

    A box is (centre x, centre y, width, height). Gives the boxes, their scores and their numbers, filled up with 0, 0 and -1 to
    ``max_boxes``, and how many there are; at least one, the best, is always there.
    """
    N, B, K = scores.shape
    bounded((N, max_boxes, max(4, K)))
    bounded((B, B))
    out_boxes, out_scores = boxes.new_zeros(N, max_boxes, 4), scores.new_zeros(N, max_boxes, K)
    numbers = torch.full((N, max_boxes), -1, dtype=torch.int32, device=boxes.device)
    counts = torch.zeros(N, dtype=torch.int32, device=boxes.device)
    for n in range(N):
        best, classes = scores[n].max(-1)
        overlap = _overlaps(boxes[n])
        chosen: list[int] = []
        for candidate in torch.argsort(best, descending=True, stable=True).tolist():
            if len(chosen) == max_boxes or best[candidate] < score_threshold:
                break
            rivals = [rival for rival in chosen if not per_class_suppression or classes[rival] == classes[candidate]]
            if all(overlap[candidate, rival] <= iou_threshold for rival in rivals):
                chosen.append(candidate)
        chosen = chosen or [int(torch.argmax(best))]
        place = torch.tensor(chosen, device=boxes.device)
        out_boxes[n, : len(chosen)], out_scores[n, : len(chosen)] = boxes[n, place], scores[n, place]
        numbers[n, : len(chosen)], counts[n] = place.to(torch.int32), len(chosen)
    return out_boxes, out_scores, numbers, counts


@lowering("non_maximum_suppression", since="iOS17")
def non_maximum_suppression_ios17(
    boxes: Tensor, scores: Tensor, *, iou_threshold: float, max_boxes: int, per_class_suppression: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Non-maximum suppression for boxes (N, 4, B) and scores (N, K, B), without score threshold and counts. Source: MIL iOS17."""
    kept, kept_scores, numbers, _ = non_maximum_suppression(
        boxes.transpose(1, 2),
        scores.transpose(1, 2),
        iou_threshold=iou_threshold,
        max_boxes=max_boxes,
        per_class_suppression=per_class_suppression,
    )
    return kept.transpose(1, 2), kept_scores.transpose(1, 2), numbers


def _overlaps(boxes: Tensor) -> Tensor:
    """Intersection over union of every pair of (centre x, centre y, width, height): (B, B)."""
    centre, size = boxes[:, :2], boxes[:, 2:]
    low, high = centre - size / 2, centre + size / 2
    sides = (torch.minimum(high[:, None], high[None]) - torch.maximum(low[:, None], low[None])).clamp(min=0)
    shared, area = sides.prod(-1), size.prod(-1)
    return shared / (area[:, None] + area[None] - shared)
