"""Moving values without changing them. Source of every rule: MIL iOS15 tensor_transformation and tensor_operation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from coreflow.runtime.lift.registry import lowering


@lowering("identity", exact=True)
def identity(x: object) -> object:
    """The value itself, whatever it is."""
    return x


@lowering("reshape", exact=True)
def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """X in another shape: -1 is worked out, 0 keeps the extent of that place."""
    return x.reshape(
        [x.shape[place] if extent == 0 and place < x.dim() and 0 not in x.shape else extent for place, extent in enumerate(shape)]
    )


@lowering("transpose", exact=True)
def transpose(x: Tensor, perm: Sequence[int]) -> Tensor:
    """Axis i of the result is axis perm[i] of x."""
    return x.permute(tuple(perm))


@lowering("expand_dims", exact=True)
def expand_dims(x: Tensor, axes: Sequence[int]) -> Tensor:
    """New axes of extent 1 at these places of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@lowering("squeeze", exact=True)
def squeeze(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Without these axes of extent 1, or without any."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@lowering("concat", exact=True)
def concat(values: Sequence[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """The values one after the other along ``axis``; interleaved, they take turns."""
    values = tuple(value.reshape(1) if value.dim() == 0 else value for value in values)
    if not interleave:
        return torch.cat(values, axis)
    axis = axis % values[0].dim()
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@lowering("stack", exact=True)
def stack(values: Sequence[Tensor], axis: int) -> Tensor:
    """The values along a new axis."""
    return torch.stack(tuple(values), axis)


@lowering("split", exact=True)
def split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Sequence[int] | None = None) -> tuple[Tensor, ...]:
    """Parts along ``axis``: of these sizes, or so many equal ones."""
    if split_sizes is not None:
        return torch.split(x, list(split_sizes), axis)
    assert num_splits is not None
    return torch.split(x, x.shape[axis] // num_splits, axis)


@lowering("slice_by_index", exact=True)
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
    """numpy's x[begin:end:stride] on every axis; a masked begin or end is open, a squeezed axis is taken at begin and dropped."""
    rank = x.dim()
    strides = stride or (1,) * rank
    begin_open = begin_mask or (False,) * rank
    end_open = end_mask or (False,) * rank
    squeezed = squeeze_mask or (False,) * rank
    for axis in reversed(range(rank)):
        if squeezed[axis]:
            x = x.select(axis, begin[axis])
        else:
            wanted = slice(None if begin_open[axis] else begin[axis], None if end_open[axis] else end[axis], strides[axis])
            x = take_slice(x, axis, wanted)
    return x


def take_slice(x: Tensor, axis: int, wanted: slice) -> Tensor:
    """One axis sliced as numpy does; torch has no negative steps, so those are cut forwards and reversed."""
    start, stop, step = wanted.indices(x.shape[axis])
    taken = range(start, stop, step)
    if len(taken) == 0:
        return x.narrow(axis, 0, 0)
    low, high = min(taken[0], taken[-1]), max(taken[0], taken[-1])
    cut = x.narrow(axis, low, high - low + 1)
    if abs(step) > 1:
        cut = cut[(slice(None),) * axis + (slice(None, None, abs(step)),)]
    return cut.flip(axis) if step < 0 else cut


@lowering("slice_by_size", exact=True)
def slice_by_size(x: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
    """``size`` elements from ``begin`` on, on every axis; a size of -1 goes to the end."""
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        start = first % x.shape[axis] if first < 0 else first
        x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
    return x


@lowering("tile", exact=True)
def tile(x: Tensor, reps: Sequence[int]) -> Tensor:
    """X repeated so many times along each axis."""
    return x.repeat(tuple(reps))


@lowering("fill", exact=True)
def fill(shape: Sequence[int], value: Tensor | None = None, *, float_dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of this shape with one value everywhere."""
    filling = torch.zeros((), dtype=float_dtype) if value is None else value
    return filling.reshape(()).expand(tuple(shape)).contiguous()


@lowering("one_hot", exact=True)
def one_hot(
    indices: Tensor, one_hot_vector_size: int, axis: int = -1, on_value: Tensor | None = None, off_value: Tensor | None = None
) -> Tensor:
    """``on_value`` at the index along the new ``axis``, ``off_value`` elsewhere, also where the index is outside."""
    on = torch.ones((), dtype=torch.int32, device=indices.device) if on_value is None else on_value
    off = torch.zeros((), dtype=torch.int32, device=indices.device) if off_value is None else off_value
    place = axis % (indices.dim() + 1)
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


@lowering("topk", exact=True)
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


@lowering("pad", exact=True)
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


@lowering("flatten2d", exact=True)
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    """Two axes: those before ``axis`` as one, the others as one."""
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@lowering("shape")
def shape(x: Tensor, output_dtype: str = "int32") -> Tensor:
    """The extents of x."""
    return torch.tensor(x.shape, dtype=torch.int32, device=x.device)
