"""MIL ops as the Neural Engine computes them: rules E1 to E10 of ane-hardware.md section 2, whose confidence each function repeats.

A: exact on all published data. B: a measured rule. C: approximate, a composition of roundings or the function itself.
Arguments are those of the lowerings in ``runtime/lift/ops``; floats are tensors of fp16 numbers, in float64 or, where errors
are drawn, in float32. Results are rounded to fp16.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coreflow.runtime.lift.numerics import engine_tables as tables
from coreflow.runtime.lift.numerics.engine_fp16 import decode, half_away, round_to_fp16
from coreflow.runtime.lift.numerics.engine_products import multiply_accumulate
from coreflow.runtime.lift.numerics.engine_sums import reduce_mean, reduce_sum
from coreflow.runtime.lift.ops.conv import conv_geometry, cut_transposed, for_torch

Function = Callable[..., Tensor]
_ROUNDED = 1024  # from here on a half is lost in fp16


@dataclass(frozen=True, slots=True)
class EngineOps:
    """The ops of one mode of the emulator.

    >>> EngineOps(is_exact=True).forms()["linear"](x, weight, bias)
    """

    is_exact: bool

    def forms(self) -> dict[str, Function]:
        """By op; others are computed as they are and rounded."""
        own: dict[str, Function] = {
            "linear": self.linear,
            "matmul": self.matmul,
            "einsum": self.einsum,
            "conv": self.conv,
            "conv_transpose": self.conv_transpose,
            "scaled_dot_product_attention": self.attention,
        }
        return own | _FORMS

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """E1 and E1b (A): the bias is the start value of the sum."""
        rows = x if x.dim() > 1 else x[None]
        result = multiply_accumulate(rows, weight, bias, is_exact=self.is_exact)
        return result if x.dim() > 1 else result[0]

    def matmul(self, x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
        """E1 (A)."""
        left = x.transpose(-1, -2) if transpose_x and x.dim() > 1 else x
        right = y.transpose(-1, -2) if transpose_y and y.dim() > 1 else y
        rows = left if left.dim() > 1 else left[None]
        columns = right.transpose(-1, -2) if right.dim() > 1 else right[None]
        result = multiply_accumulate(rows, columns, is_exact=self.is_exact)
        result = result if right.dim() > 1 else result[..., 0]
        return result if left.dim() > 1 else result[..., 0, :] if right.dim() > 1 else result[..., 0]

    def einsum(self, values: Sequence[Tensor], equation: str) -> Tensor:
        """E1 (A): a product of matrices for every index that both operands and the result have."""
        if (plan := _matrices_of(values, equation)) is None:
            return round_to_fp16(torch.einsum(equation, *values))
        left, right, extents, axes = plan
        return multiply_accumulate(left, right, is_exact=self.is_exact).reshape(extents).permute(axes)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """E9 (B): product, scale, mask, softmax, product."""
        scores = multiply_accumulate(query, key, is_exact=self.is_exact)
        scores = round_to_fp16(scores * round_to_fp16(query.new_tensor(query.shape[-1] ** -0.5)))
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = torch.where(attn_mask, scores, -math.inf)
            else:
                scores = round_to_fp16(decode(scores) + decode(attn_mask))
        return multiply_accumulate(softmax(scores), value.transpose(-1, -2), is_exact=self.is_exact)

    def conv(
        self,
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
        """E1 (A) of kernels of 1, E1c (B) of others: the direct form; M5 and M6 may take Winograd's for 3 x 3, 4e-4 off."""
        strides, around, dilations = conv_geometry(x.shape, weight.shape, strides, pad_type, pad, dilations)
        windows = torch.nn.functional.pad(x, for_torch(around))
        for axis, (extent, stride, dilation) in enumerate(zip(weight.shape[2:], strides, dilations, strict=True), start=2):
            windows = windows.unfold(axis, (extent - 1) * dilation + 1, stride)[..., ::dilation]
        rank = len(strides)  # windows: (B, C, spatial..., kernel...)
        spatial = windows.shape[2 : 2 + rank]
        order = (0, *range(2, 2 + rank), 1, *range(2 + rank, 2 + 2 * rank))
        rows = windows.permute(order).reshape(-1, groups, weight.shape[1] * math.prod(weight.shape[2:]))
        kernels = weight.reshape(groups, weight.shape[0] // groups, -1)
        biases = [None] * groups if bias is None else list(bias.reshape(groups, -1))
        parts = [multiply_accumulate(rows[:, group], kernels[group], biases[group], is_exact=self.is_exact) for group in range(groups)]
        result = torch.cat(parts, -1).reshape(x.shape[0], *spatial, weight.shape[0])
        return result.movedim(-1, 1)

    def conv_transpose(
        self,
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
        """E1c (B): a convolution of x with zeros between its elements, by the mirrored kernel."""
        rank = x.dim() - 2
        strides, dilations = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
        sparse = x.new_zeros(*x.shape[:2], *((extent - 1) * stride + 1 for extent, stride in zip(x.shape[2:], strides, strict=True)))
        places: Any = (..., *(slice(None, None, stride) for stride in strides))
        sparse[places] = x
        grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).transpose(1, 2)
        kernel = grouped.reshape(-1, weight.shape[0] // groups, *weight.shape[2:]).flip(tuple(range(2, 2 + rank)))
        reach = [(extent - 1) * dilation for extent, dilation in zip(weight.shape[2:], dilations, strict=True)]
        around = [amount for extent in reach for amount in (extent, extent)]
        whole = self.conv(sparse, kernel, bias, pad_type="custom", pad=around, dilations=dilations, groups=groups)
        cut = cut_transposed(whole, x.shape, strides, pad_type, pad, output_shape)
        if bias is None or output_shape is None:
            return cut
        is_whole = cut_transposed(torch.ones_like(whole), x.shape, strides, pad_type, pad, output_shape) == 1
        return torch.where(is_whole, cut, bias.reshape(-1, *(1,) * rank))


def _matrices_of(values: Sequence[Tensor], equation: str) -> tuple[Tensor, Tensor, list[int], list[int]] | None:
    """Two operands of Einstein's sum as matrices (batch, M, K) and (batch, N, K), and the extents and the order of the result's axes.

    None where they are not two, or where one of them is summed or read along its diagonal alone.
    """
    reads, _, gives = equation.replace(" ", "").partition("->")
    labels = reads.split(",")
    if len(values) != 2 or any(len(set(own)) < len(own) for own in labels):
        return None
    shared = [label for label in labels[0] if label in labels[1]]
    batch, summed = [label for label in shared if label in gives], [label for label in shared if label not in gives]
    rows, columns = ([label for label in own if label not in shared] for own in labels)
    if set(rows + columns) - set(gives):
        return None
    extents: dict[str, int] = {}
    for own, value in zip(labels, values, strict=True):
        extents |= {label: max(extent, extents.get(label, 0)) for label, extent in zip(own, value.shape, strict=True)}

    def matrix(own: str, kept: list[str], value: Tensor) -> Tensor:
        order = [*batch, *kept, *summed]
        whole = value.permute([own.index(label) for label in order]).expand([extents[label] for label in order])
        return whole.reshape(*(math.prod(extents[label] for label in part) for part in (batch, kept, summed)))

    order = [*batch, *rows, *columns]
    left, right = (matrix(*parts) for parts in zip(labels, (rows, columns), values, strict=True))
    return left, right, [extents[label] for label in order], [order.index(label) for label in gives]


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """E6 (C): the maximum subtracted, the exp of E5, a sum, a quotient, each rounded."""
    x = decode(x)
    powers = tables.exp(round_to_fp16(x - x.amax(axis, keepdim=True)))
    return round_to_fp16(powers / reduce_sum(powers, (axis,), keep_dims=True))


def layer_norm(
    x: Tensor, *, axes: Sequence[int] | None = None, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """E7 (C): mean, difference, square, mean, reciprocal root and product, each rounded; squares overflow at 256."""
    over = tuple(range(x.dim()) if axes is None else axes)
    shape = [extent if axis in {place % x.dim() for place in over} else 1 for axis, extent in enumerate(x.shape)]
    return _normalised(x, over, epsilon, *(None if part is None else part.reshape(shape) for part in (gamma, beta)))


def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """E7 (C), as ``layer_norm``."""
    shape = (x.shape[1], *(1,) * (x.dim() - 2))
    parts = (None if part is None else part.reshape(shape) for part in (gamma, beta))
    return _normalised(x, tuple(range(2, x.dim())), epsilon, *parts)


def _normalised(x: Tensor, axes: tuple[int, ...], epsilon: float, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    x = decode(x)
    less = round_to_fp16(x - reduce_mean(x, axes, keep_dims=True))
    variance = reduce_mean(decode(round_to_fp16(less * less)), axes, keep_dims=True)
    result = round_to_fp16(less * tables.rsqrt(decode(round_to_fp16(variance + epsilon))))
    result = result if gamma is None else round_to_fp16(result * gamma)
    return result if beta is None else round_to_fp16(result + beta)


def _rounded(x: Tensor) -> Tensor:
    """E8 (B, M5): 0.5 is added in fp16, so that 1024 gives 1025."""
    size = decode(x).abs()
    whole = torch.where(size < _ROUNDED, half_away(size), torch.floor(round_to_fp16(size + 0.5)))
    return round_to_fp16(torch.copysign(whole, x))


def _of_table(function: Callable[[Tensor], Tensor]) -> Function:
    """E5 (B): a function of ``x`` by its table."""
    return lambda x: round_to_fp16(function(decode(x)))


def _over_axes(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Function:
    """E4 (C): a reduction; where no axes are given it is all of them, of an empty list none."""

    def reduced(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
        over = tuple(range(x.dim())) if axes is None else tuple(axes)
        return function(decode(x), over, keep_dims) if over else x

    return reduced


def _inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """E5 (B): the epsilon is added in fp16 first."""
    return tables.reciprocal(round_to_fp16(decode(x) + round_to_fp16(x.new_tensor(epsilon))))


def _log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return tables.log(round_to_fp16(decode(x) + round_to_fp16(x.new_tensor(epsilon))))


def _rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return tables.rsqrt(round_to_fp16(decode(x) + round_to_fp16(x.new_tensor(epsilon))))


_FORMS: dict[str, Function] = {
    **{
        name: _of_table(function)
        for name, function in {
            "sigmoid": tables.sigmoid,
            "tanh": tables.tanh,
            "erf": tables.erf,
            "sin": tables.sin,
            "exp": tables.exp,
            "sqrt": tables.sqrt,
            "softplus": tables.softplus,
        }.items()
    },
    "log": _log,
    "rsqrt": _rsqrt,
    "inverse": _inverse,
    "reduce_sum": _over_axes(reduce_sum),
    "reduce_mean": _over_axes(reduce_mean),
    "softmax": softmax,
    "layer_norm": layer_norm,
    "instance_norm": instance_norm,
    "round": _rounded,
}
