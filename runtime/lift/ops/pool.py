"""Pooling over the spatial axes of (B, C, spatial...). Source of every rule: MIL iOS15 pool."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from coreflow.runtime.lift.limits import bounded
from coreflow.runtime.lift.ops.conv import for_torch, spatial_padding
from coreflow.runtime.lift.registry import lowering

_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAXIMUM = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _bounded_pool(
    x: Tensor,
    *,
    kernel_sizes: Sequence[int],
    pad_type: str,
    strides: Sequence[int] | None = None,
    pad: Sequence[int] | None = None,
    ceil_mode: bool = False,
    exclude_padding_from_average: bool = False,
) -> None:
    padding, overhang = _window_padding(x, kernel_sizes, strides or (1,) * len(kernel_sizes), pad_type, pad, ceil_mode=ceil_mode)
    bounded((*x.shape[:2], *(b + extent + a + o for extent, (b, a), o in zip(x.shape[2:], padding, overhang, strict=True))))


@lowering("max_pool", guard=_bounded_pool)
def max_pool(
    x: Tensor,
    *,
    kernel_sizes: Sequence[int],
    pad_type: str,
    strides: Sequence[int] | None = None,
    pad: Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest element of every window; padding never wins."""
    strides = strides or (1,) * len(kernel_sizes)
    padding, overhang = _window_padding(x, kernel_sizes, strides, pad_type, pad, ceil_mode=ceil_mode)
    around = [(before, after + extra) for (before, after), extra in zip(padding, overhang, strict=True)]
    pool, windows = _MAXIMUM[len(kernel_sizes)], (tuple(kernel_sizes), tuple(strides))
    if all(before == after <= size // 2 for (before, after), size in zip(around, kernel_sizes, strict=True)):
        return pool(x, *windows, padding=tuple(before for before, _ in around))  # all the padding that torch can pool without a copy
    return pool(F.pad(x, for_torch(around), value=-math.inf), *windows)


@lowering("avg_pool", guard=_bounded_pool)
def avg_pool(
    x: Tensor,
    *,
    kernel_sizes: Sequence[int],
    pad_type: str,
    strides: Sequence[int] | None = None,
    pad: Sequence[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """The mean of every window; padding counts as zeros, or not at all. Places that ceil_mode adds beyond the padding never count."""
    strides = strides or (1,) * len(kernel_sizes)
    padding, overhang = _window_padding(x, kernel_sizes, strides, pad_type, pad, ceil_mode=ceil_mode)
    mean = _mean_of_windows(_pad_both(x, padding, overhang), kernel_sizes, strides)
    if any(overhang) or (exclude_padding_from_average and any(map(any, padding))):
        ones = torch.ones_like(x[:1, :1])
        counted = F.pad(ones, for_torch(padding), value=0.0 if exclude_padding_from_average else 1.0)
        counted = F.pad(counted, for_torch([(0, extra) for extra in overhang]))
        mean = mean / _mean_of_windows(counted, kernel_sizes, strides)
    return mean


@lowering("l2_pool", guard=_bounded_pool)
def l2_pool(
    x: Tensor,
    *,
    kernel_sizes: Sequence[int],
    pad_type: str,
    strides: Sequence[int] | None = None,
    pad: Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The length of every window taken as a vector."""
    strides = strides or (1,) * len(kernel_sizes)
    padding, overhang = _window_padding(x, kernel_sizes, strides, pad_type, pad, ceil_mode=ceil_mode)
    mean = _mean_of_windows(_pad_both(x.square(), padding, overhang), kernel_sizes, strides)
    return torch.sqrt(mean * math.prod(kernel_sizes))


def _window_padding(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], pad_type: str, pad: Sequence[int] | None, *, ceil_mode: bool
) -> tuple[list[tuple[int, int]], list[int]]:
    """The padding of every spatial axis, and how far the last window hangs over it (ceil_mode only)."""
    extents = x.shape[2:]
    padding = spatial_padding(pad_type, pad or (0,) * (2 * len(kernel)), extents, kernel, strides)
    if not ceil_mode:
        return padding, [0] * len(kernel)
    overhang = []
    for extent, (before, after), size, stride in zip(extents, padding, kernel, strides, strict=True):
        padded = extent + before + after
        count = -(-(padded - size) // stride) + 1
        if (count - 1) * stride >= extent + before and before + after > 0:
            count -= 1  # a window must not begin in the padding at the end
        overhang.append(max(0, (count - 1) * stride + size - padded))
    return padding, overhang


def _pad_both(x: Tensor, padding: Sequence[tuple[int, int]], overhang: Sequence[int]) -> Tensor:
    around = [(before, after + extra) for (before, after), extra in zip(padding, overhang, strict=True)]
    return F.pad(x, for_torch(around)) if any(map(any, around)) else x


def _mean_of_windows(x: Tensor, kernel: Sequence[int], strides: Sequence[int]) -> Tensor:
    return _AVERAGE[len(kernel)](x, tuple(kernel), tuple(strides))
