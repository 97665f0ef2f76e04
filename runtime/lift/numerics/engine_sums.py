"""Reductions of the Neural Engine: a fit to a dozen published results, not a rule that was read off the chip.

Four terms at a time are added one after the other in an adder of 12 significant bits, which cuts the smaller operand to the last place of
the larger; the sums of four add up exactly, and the result is rounded to fp16. That gives all seven rows of the published probe
``[B, -B, 1]`` (G3 in ane-hardware.md; M1) in both orders of B, and 5116 for ``[4096] + 1024 ones``.
"""

import torch
from torch import Tensor

from coreflow.runtime.lift.numerics.engine_fp16 import round_to_fp16

_BITS = 12
_LANES = 4


def reduce_sum(x: Tensor, axes: tuple[int, ...], keep_dims: bool) -> Tensor:
    """The sum over ``axes`` as an fp16 number; infinite beyond 65504."""
    return round_to_fp16(_sum(x, axes, keep_dims))


def reduce_mean(x: Tensor, axes: tuple[int, ...], keep_dims: bool) -> Tensor:
    """The sum over ``axes`` by their number, rounded once."""
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return round_to_fp16(_sum(x, axes, keep_dims) / count)


def _sum(x: Tensor, axes: tuple[int, ...], keep_dims: bool) -> Tensor:
    axes = tuple(sorted(axis % x.dim() for axis in axes))
    kept = [axis for axis in range(x.dim()) if axis not in axes]
    terms = x.permute(*kept, *axes).reshape(*(x.shape[axis] for axis in kept), -1)
    terms = torch.nn.functional.pad(terms, (0, -terms.shape[-1] % _LANES)).unflatten(-1, (-1, _LANES))
    total = terms[..., 0]
    for lane in range(1, _LANES):
        total = _add(total, terms[..., lane])
    result = total.sum(-1)
    for axis in axes if keep_dims else ():
        result = result.unsqueeze(axis)
    return result


def _add(x: Tensor, y: Tensor) -> Tensor:
    """The sum, the smaller operand cut to the last of the larger one's significant bits."""
    larger, smaller = torch.where(x.abs() >= y.abs(), x, y), torch.where(x.abs() >= y.abs(), y, x)
    place = torch.exp2((torch.frexp(larger).exponent - _BITS).to(x.dtype))
    return larger + torch.trunc(smaller / place) * place
