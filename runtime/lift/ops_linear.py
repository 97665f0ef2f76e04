"""Linear algebra."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from coreflow.runtime.lift.registry import lowering


@lowering("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X @ weight.T + bias; weight (D_out, D_in), bias (D_out,). Source: MIL iOS15 linear.linear."""
    if x.is_floating_point():
        # Since iOS17 the weights may be of another type.
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    product = torch.matmul(x, weight.transpose(0, 1))
    return product if bias is None else product + bias


@lowering("matmul")
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """numpy's matmul after swapping the last two axes of x or y; of two types, the float's. Source: MIL iOS15 linear.matmul."""
    left, right = x.transpose(-1, -2) if transpose_x else x, y.transpose(-1, -2) if transpose_y else y
    dtype = torch.promote_types(x.dtype, y.dtype)
    return torch.matmul(left.to(dtype), right.to(dtype))


@lowering("einsum")
def einsum(values: Sequence[Tensor], equation: str) -> Tensor:
    """Einstein's sum; axes of extent 1 are broadcast. Source: MIL iOS15 linear.einsum."""
    return torch.einsum(equation, *values)


@lowering("scaled_dot_product_attention")
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(query key^T / sqrt(E) + mask) value; a boolean mask keeps what is true. Source: MIL iOS18 transformers."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask)
