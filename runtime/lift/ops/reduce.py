"""Reductions. Source of every formula: MIL iOS15 reduction. Integers stay integers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from coreflow.runtime.lift.limits import bounded
from coreflow.runtime.lift.registry import lowering


def _reduction(op: str, function: Callable[[Tensor, list[int], bool], Tensor]) -> None:
    """Registers ``function(x, axes, keep_dims)`` for ``op``; where no axes are given it is all of them, of an empty list none."""

    @lowering(op)
    def lowered(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
        chosen = sorted({axis % max(x.dim(), 1) for axis in axes}) if axes is not None else list(range(x.dim()))
        if not x.numel():
            bounded([extent for axis, extent in enumerate(x.shape) if axis not in chosen])  # of nothing, a sum for every place
        # torch would take an empty list for all axes: every element is reduced alone, along an axis of extent 1.
        result = function(x, chosen, keep_dims) if chosen or not x.dim() else function(x.unsqueeze(0), [0], False)
        return result if result.dtype == x.dtype else result.to(x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return (x if x.is_floating_point() else x.double()).mean(axes, keepdim=keep)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in reversed(axes):
        x = x.prod(axis, keepdim=keep)
    return x


def _length(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return (x if x.is_floating_point() else x.double()).square().sum(axes, keepdim=keep).sqrt()


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return (x if x.is_floating_point() else x.double()).sum(axes, keepdim=keep).log()


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x if x.is_floating_point() else x.double(), axes, keepdim=keep)


_reduction("reduce_sum", lambda x, axes, keep: x.sum(axes, keepdim=keep))
_reduction("reduce_mean", _mean)
_reduction("reduce_max", lambda x, axes, keep: x.amax(axes, keepdim=keep))
_reduction("reduce_min", lambda x, axes, keep: x.amin(axes, keepdim=keep))
_reduction("reduce_prod", _product)
_reduction("reduce_l1_norm", lambda x, axes, keep: x.abs().sum(axes, keepdim=keep))
_reduction("reduce_l2_norm", _length)
_reduction("reduce_sum_square", lambda x, axes, keep: x.square().sum(axes, keepdim=keep))
_reduction("reduce_log_sum", _log_sum)
_reduction("reduce_log_sum_exp", _log_sum_exp)


@lowering("reduce_argmax")
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Index of the first largest element along ``axis``."""
    return torch.argmax(x, axis, keepdim=keep_dims).to(torch.int32)


@lowering("reduce_argmin")
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Index of the first smallest element along ``axis``."""
    return torch.argmin(x, axis, keepdim=keep_dims).to(torch.int32)
