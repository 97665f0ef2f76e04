"""Convolutions."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from coreflow.runtime.lift.limits import bounded
from coreflow.runtime.lift.registry import lowering

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def spatial_padding(
    pad_type: str, pad: Sequence[int], extents: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Before and after each spatial axis; ``kernel`` counts its dilation.

    ``same`` makes the output ceil(input / stride) long and puts an odd element after, ``same_lower`` before. Source: MIL conv.
    """
    if pad_type == "valid":
        return [(0, 0)] * len(kernel)
    if pad_type == "custom":
        return [(pad[2 * axis], pad[2 * axis + 1]) for axis in range(len(kernel))]
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"pad_type {pad_type!r}")
    totals = [max(0, (-(-i // s) - 1) * s + k - i) for i, k, s in zip(extents, kernel, strides, strict=True)]
    sides = [(total // 2, total - total // 2) for total in totals]
    return sides if pad_type == "same" else [(after, before) for before, after in sides]


def for_torch(padding: Sequence[tuple[int, int]]) -> list[int]:
    """The same padding in the order of F.pad: last axis first."""
    return [amount for pair in reversed(padding) for amount in pair]


def conv_geometry(
    x: Sequence[int],
    weight: Sequence[int],
    strides: Sequence[int] | None = None,
    pad_type: str = "valid",
    pad: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
) -> tuple[tuple[int, ...], list[tuple[int, int]], tuple[int, ...]]:
    """Strides, padding and dilations of every spatial axis of a convolution of shape ``x`` with weights of shape ``weight``."""
    rank = len(weight) - 2
    strides, dilations = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    kernel = [(extent - 1) * dilation + 1 for extent, dilation in zip(weight[2:], dilations, strict=True)]
    return strides, spatial_padding(pad_type, pad or (0,) * (2 * rank), x[2:], kernel, strides), dilations


def _bounded_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sequence[int] | None = None,
    pad_type: str = "valid",
    pad: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> None:
    strides, around, dilations = conv_geometry(x.shape, weight.shape, strides, pad_type, pad, dilations)
    kernel = [(extent - 1) * dilation + 1 for extent, dilation in zip(weight.shape[2:], dilations, strict=True)]
    padded = [before + extent + after for extent, (before, after) in zip(x.shape[2:], around, strict=True)]
    bounded((*x.shape[:2], *padded))
    windows = [max(0, (extent - size) // stride + 1) for extent, size, stride in zip(padded, kernel, strides, strict=True)]
    bounded((x.shape[0], weight.shape[0], *windows))


@lowering("conv", guard=_bounded_conv)
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sequence[int] | None = None,
    pad_type: str = "valid",
    pad: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation; x (B, C_in, spatial...), weight (C_out, C_in / groups, kernel...). Source: MIL iOS15 conv.conv."""
    strides, padding, dilations = conv_geometry(x.shape, weight.shape, strides, pad_type, pad, dilations)
    if any(before != after for before, after in padding):
        x = F.pad(x, for_torch(padding))
        padding = [(0, 0)] * len(padding)
    return _CONV[len(padding)](x, weight, bias, strides, tuple(before for before, _ in padding), dilations, groups)


def _bounded_conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    output_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
    **cut: object,
) -> None:
    rank = x.dim() - 2
    extents = zip(x.shape[2:], weight.shape[2:], strides or (1,) * rank, dilations or (1,) * rank, strict=True)
    whole = [max(0, (extent - 1) * stride + (size - 1) * dilation + 1) for extent, size, stride, dilation in extents]
    for spatial in (whole, whole if output_shape is None else output_shape[2:]):
        bounded((x.shape[0], weight.shape[1] * groups, *spatial))


@lowering("conv_transpose", guard=_bounded_conv_transpose)
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pad: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pad_type: str = "valid",
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """The gradient of ``conv``; x (B, C_in, spatial...), weight (C_in, C_out / groups, kernel...). Source: MIL iOS15 conv.conv_transpose.

    The whole result is computed and then cut: ``custom`` cuts ``pad`` off each end, ``same`` leaves stride * input, an ``output_shape``
    decides where the cut at the end lies (elements past the whole result hold the bias alone).
    """
    rank = x.dim() - 2
    strides = strides or (1,) * rank
    dilations = dilations or (1,) * rank
    whole = _CONV_TRANSPOSE[rank](x, weight, None, tuple(strides), 0, 0, groups, tuple(dilations))
    cut = cut_transposed(whole, x.shape, strides, pad_type, pad, output_shape)
    return cut if bias is None else cut + bias.reshape(cut.shape[1], *(1,) * rank)


def cut_transposed(
    whole: Tensor,
    shape: Sequence[int],
    strides: Sequence[int],
    pad_type: str,
    pad: Sequence[int] | None,
    output_shape: Sequence[int] | None,
) -> Tensor:
    """The part of a whole transposed convolution that MIL keeps, zeros past its end; ``shape`` is that of the input."""
    rank = whole.dim() - 2
    for axis in range(rank):
        extent = whole.shape[axis + 2]
        before, after = (pad[2 * axis], pad[2 * axis + 1]) if pad_type == "custom" and pad else (0, 0)
        target = extent - before - after
        if output_shape is not None:
            target = output_shape[axis + 2]
        elif pad_type == "same":
            target = strides[axis] * shape[axis + 2]
        if pad_type == "same":
            before = max(0, extent - target) // 2
        present = min(target, extent - before)
        whole = whole.narrow(axis + 2, before, present)
        if present < target:
            whole = F.pad(whole, [0, 0] * (rank - 1 - axis) + [0, target - present])
    return whole
