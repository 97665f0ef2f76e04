"""Moving values without changing them. Source of every rule: MIL iOS15 tensor_transformation, where no other is named."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from coreflow.runtime.lift.limits import bounded
from coreflow.runtime.lift.registry import lowering


@lowering("identity")
def identity(x: Tensor) -> Tensor:
    """The value itself; a list or a state goes through too."""
    return x


@lowering("reshape")
def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """``x`` in another shape: -1 is worked out, 0 keeps the extent of that place."""
    extents = [x.shape[place] if extent == 0 and len(shape) == x.dim() else extent for place, extent in enumerate(shape)]
    return x.reshape(extents)


@lowering("reshape", since="iOS17")
def reshape_ios17(x: Tensor, shape: Sequence[int]) -> Tensor:
    """``x`` in another shape: -1 is worked out, 0 keeps the extent of that place counted from the end. Source: MIL iOS17."""
    missing = len(shape) - x.dim()
    extents = [(x.shape[place - missing] if place >= missing else 1) if extent == 0 else extent for place, extent in enumerate(shape)]
    return x.reshape(extents)


@lowering("reshape_like")
def reshape_like(x: Tensor, ref_tensors: Sequence[Tensor], begins: Sequence[int], ends: Sequence[int], end_masks: Sequence[bool]) -> Tensor:
    """``x`` in the shape of begin:end of every reference one after the other; a masked end is open. Source: MIL iOS16."""
    shape: list[int] = []
    for reference, begin, end, is_open in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape.extend(reference.shape[begin : None if is_open else end])
    return x.reshape(shape)


@lowering("transpose")
def transpose(x: Tensor, perm: Sequence[int]) -> Tensor:
    """Axis i of the result is axis perm[i] of x."""
    return x.permute(tuple(perm))


@lowering("expand_dims")
def expand_dims(x: Tensor, axes: Sequence[int]) -> Tensor:
    """New axes of extent 1 at these places of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@lowering("squeeze")
def squeeze(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Without these axes of extent 1, or without any."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@lowering("concat")
def concat(values: Sequence[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """The values one after the other along ``axis``; interleaved, they take turns."""
    values = tuple(value.reshape(1) if value.dim() == 0 else value for value in values)
    bounded((sum(value.numel() for value in values),))
    if not interleave:
        return torch.cat(values, axis)
    axis = axis % values[0].dim()
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@lowering("stack")
def stack(values: Sequence[Tensor], axis: int) -> Tensor:
    """The values along a new axis."""
    bounded((len(values), *values[0].shape))
    return torch.stack(tuple(values), axis)


@lowering("split")
def split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Sequence[int] | None = None) -> tuple[Tensor, ...]:
    """Parts along ``axis``: of these sizes, or so many equal ones."""
    if split_sizes is not None:
        return torch.split(x, list(split_sizes), axis)
    assert num_splits is not None
    return torch.split(x, x.shape[axis] // num_splits, axis)


@lowering("slice_by_index")
def slice_by_index(
    x: Tensor,
    begin: Sequence[int],
    end: Sequence[int],
    *,
    stride: Sequence[int] | None = None,
    begin_mask: Sequence[bool] | None = None,
    end_mask: Sequence[bool] | None = None,
    squeeze_mask: Sequence[bool] | None = None,
) -> Tensor:
    """numpy's x[begin:end:stride] on every axis; a masked begin or end is open, a squeezed axis is taken at begin and dropped.

    Where begin is masked and the axis squeezed, MIL's own value takes the first element. In the shapes that MIL declares, a place before
    the first element is the first one, also for a negative stride, where numpy would go past it; but not where the axis has one element
    or the stride leaves room for one.
    """
    rank = x.dim()
    strides = stride or (1,) * rank
    begin_open = begin_mask or (False,) * rank
    end_open = end_mask or (False,) * rank
    squeezed = squeeze_mask or (False,) * rank
    for axis in reversed(range(rank)):
        if squeezed[axis]:
            x = x.select(axis, 0 if begin_open[axis] else begin[axis])
        else:
            first, last = begin[axis], end[axis]
            one = not begin_open[axis] and not end_open[axis] and first < 0 and last < 0 and first - last <= -strides[axis]
            if not one and x.shape[axis] > 1:
                first, last = _from_start(first, x.shape[axis]), _from_start(last, x.shape[axis])
            x = take_slice(x, axis, slice(None if begin_open[axis] else first, None if end_open[axis] else last, strides[axis]))
    return x


def _from_start(place: int, extent: int) -> int:
    return max(0, place + extent) if place < 0 else place


def take_slice(x: Tensor, axis: int, part: slice) -> Tensor:
    """One axis sliced as numpy does; torch has no negative steps, so those are cut forwards and reversed."""
    start, stop, step = part.indices(x.shape[axis])
    taken = range(start, stop, step)
    if step == 1 and len(taken) == x.shape[axis]:
        return x  # onnxruntime would copy the whole of it
    if len(taken) == 0:
        return x.narrow(axis, 0, 0)
    low, high = min(taken[0], taken[-1]), max(taken[0], taken[-1])
    cut = x.narrow(axis, low, high - low + 1)
    if abs(step) > 1:
        cut = cut[(slice(None),) * axis + (slice(None, None, abs(step)),)]
    return cut.flip(axis) if step < 0 else cut


@lowering("slice_by_size")
def slice_by_size(x: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
    """``size`` elements from ``begin`` on, on every axis; a size of -1 goes to the end."""
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        start = first % x.shape[axis] if first < 0 else first
        x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
    return x


@lowering("slice_update")
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Sequence[int],
    end: Sequence[int],
    *,
    stride: Sequence[int] | None = None,
    begin_mask: Sequence[bool] | None = None,
    end_mask: Sequence[bool] | None = None,
    squeeze_mask: Sequence[bool] | None = None,
) -> Tensor:
    """``x`` with what ``slice_by_index`` would read replaced by ``update``. Source: MIL iOS18 tensor_transformation."""
    # The places of the slice, found by slicing the element numbers: the same rules for every stride and mask.
    numbers = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    places = slice_by_index(numbers, begin, end, stride=stride, begin_mask=begin_mask, end_mask=end_mask, squeeze_mask=squeeze_mask)
    return x.reshape(-1).scatter(0, places.reshape(-1), update.reshape(-1)).reshape(x.shape)


@lowering("reverse")
def reverse(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """``x`` from the end to the start along these axes, or along all."""
    return x.flip(tuple(range(x.dim()) if axes is None else axes))


@lowering("reverse_sequence")
def reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """The first ``lengths[b]`` elements along ``seq_axis`` reversed, for every b along ``batch_axis``."""
    place_shape, length_shape = [1] * x.dim(), [1] * x.dim()
    place_shape[seq_axis], length_shape[batch_axis] = -1, -1
    place = torch.arange(x.shape[seq_axis], device=x.device).reshape(place_shape)
    length = lengths.long().reshape(length_shape)
    return torch.gather(x, seq_axis, torch.where(place < length, length - 1 - place, place).expand_as(x))


@lowering("sliding_windows")
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """Every window of ``size`` elements; ``axis`` counts windows, the axis after it the elements of one."""
    axis = axis % x.dim()
    windows = x.unfold(axis, size, stride).movedim(-1, axis + 1)
    bounded(windows.shape)  # so far they only look at x
    return windows


@lowering("depth_to_space")
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """(B, C, H, W) -> (B, C / b^2, H b, W b): the channels of one block are C / b^2 apart, as in TensorFlow."""
    B, C, H, W = x.shape
    blocks = x.reshape(B, block_size, block_size, C // block_size**2, H, W)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(B, C // block_size**2, H * block_size, W * block_size)


@lowering("space_to_depth")
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """The inverse of ``depth_to_space``."""
    B, C, H, W = x.shape
    blocks = x.reshape(B, C, H // block_size, block_size, W // block_size, block_size)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(B, C * block_size**2, H // block_size, W // block_size)


@lowering("pixel_shuffle")
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """(B, C f^2, H, W) -> (B, C, H f, W f): the channels of one block are neighbours, as in torch."""
    return F.pixel_shuffle(x, upscale_factor)


@lowering("pixel_unshuffle")
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """The inverse of ``pixel_shuffle``. Source: MIL iOS16."""
    return F.pixel_unshuffle(x, downscale_factor)


def _bounded_space_to_batch(x: Tensor, block_shape: Sequence[int], paddings: Tensor) -> None:
    (top, bottom), (left, right) = paddings.tolist()
    bounded((*x.shape[:2], top + x.shape[2] + bottom, left + x.shape[3] + right))


@lowering("space_to_batch", guard=_bounded_space_to_batch)
def space_to_batch(x: Tensor, block_shape: Sequence[int], paddings: Tensor) -> Tensor:
    """(B, C, H, W) -> (B b0 b1, C, H / b0, W / b1) after padding with zeros; ``paddings`` (2, 2)."""
    (top, bottom), (left, right) = paddings.tolist()
    padded = F.pad(x, (left, right, top, bottom))
    B, C, H, W = padded.shape
    rows, columns = block_shape
    blocks = padded.reshape(B, C, H // rows, rows, W // columns, columns)
    return blocks.permute(3, 5, 0, 1, 2, 4).reshape(rows * columns * B, C, H // rows, W // columns)


@lowering("batch_to_space")
def batch_to_space(x: Tensor, block_shape: Sequence[int], crops: Tensor) -> Tensor:
    """The inverse of ``space_to_batch``; ``crops`` (2, 2) are cut off."""
    rows, columns = block_shape
    B, C, H, W = x.shape
    blocks = x.reshape(rows, columns, B // (rows * columns), C, H, W).permute(2, 3, 4, 0, 5, 1)
    whole = blocks.reshape(B // (rows * columns), C, H * rows, W * columns)
    (top, bottom), (left, right) = crops.tolist()
    return whole[:, :, top : H * rows - bottom, left : W * columns - right]
