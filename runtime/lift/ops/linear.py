"""Linear algebra."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from coreflow.runtime.lift.limits import bounded
from coreflow.runtime.lift.registry import lowering


def _bounded_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    bounded((*x.shape[:-1], weight.shape[0]))


def _bounded_matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> None:
    """Torch repeats a matrix for every element of a batch that it is broadcast to, so those are counted too."""
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    rows, columns = x.shape[-1 if transpose_x else -2 :][:1], y.shape[-2 if transpose_y else -1 :][:1]
    for matrix in (x.shape[-2:], y.shape[-2:], (*rows, *columns)):
        bounded((*batch, *matrix))


def _bounded_einsum(values: Sequence[Tensor], equation: str) -> None:
    reads, _, gives = equation.replace(" ", "").partition("->")
    extents: dict[str, int] = {}
    for labels, value in zip(reads.split(","), values, strict=False):  # torch refuses what does not fit
        for label, extent in zip(labels, value.shape, strict=False):
            extents[label] = max(extent, extents.get(label, 0))
    bounded([extents.get(label, 1) for label in gives])


def _bounded_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> None:
    batch = np.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    for rows, columns in ((query.shape[-2], key.shape[-2]), (query.shape[-2], value.shape[-1])):
        bounded((*batch, rows, columns))


@lowering("linear", guard=_bounded_linear)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``; weight (D_out, D_in), bias (D_out,).

    Since iOS17 the weights may be of another type; then floats are computed, and the plan gives the result the type of x.
    Source: MIL iOS15 and iOS17 linear.linear.
    """
    dtype = torch.promote_types(x.dtype, weight.dtype)
    if dtype.is_floating_point:
        return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    product = torch.matmul(x, weight.transpose(0, 1))
    return product if bias is None else product + bias


@lowering("matmul", guard=_bounded_matmul)
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """numpy's matmul after swapping the last two axes of x or y, if there are two; of two types, the float's. Source: MIL iOS15 linear.

    Since iOS17 a constant may be of another type; then the plan gives the result the type of the other operand.
    """
    left = x.transpose(-1, -2) if transpose_x and x.dim() > 1 else x
    right = y.transpose(-1, -2) if transpose_y and y.dim() > 1 else y
    dtype = torch.promote_types(x.dtype, y.dtype)
    return torch.matmul(left.to(dtype), right.to(dtype))


@lowering("einsum", guard=_bounded_einsum)
def einsum(values: Sequence[Tensor], equation: str) -> Tensor:
    """Einstein's sum; axes of extent 1 are broadcast. Source: MIL iOS15 linear.einsum."""
    return torch.einsum(equation, *values)


@lowering("scaled_dot_product_attention", guard=_bounded_attention)
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(query key^T / sqrt(E) + mask) value; a boolean mask keeps what is true. Source: MIL iOS18 transformers."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask)
