"""Activations. Source of every formula: MIL iOS15 activation (iOS17 only lets the parameters have another dtype)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from coreflow.runtime.lift.registry import lowering


@lowering("relu")
def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.relu(x)


@lowering("relu6")
def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6)."""
    return torch.clamp(x, 0.0, 6.0)


@lowering("clamped_relu")
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(x, beta) for x >= 0, else min(alpha * x, beta)."""
    return torch.clamp(torch.where(x >= 0, x, alpha * x), max=beta)


@lowering("leaky_relu")
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """``x`` for x >= 0, else alpha * x."""
    return torch.where(x >= 0, x, alpha * x)


@lowering("thresholded_relu")
def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """``x`` for x >= alpha, else 0; NaN stays."""
    return torch.where(x < alpha, torch.zeros_like(x), x)


@lowering("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """``x`` for x > 0, else alpha of its channel times x; x (B, C, ...), alpha (C,)."""
    return torch.clamp(x, min=0) + torch.clamp(x, max=0) * _per_channel(alpha, x)


@lowering("elu")
def elu(x: Tensor, alpha: float) -> Tensor:
    """``x`` for x > 0, else alpha * (e^x - 1)."""
    return torch.where(x > 0, x, alpha * torch.expm1(x))


_ROOT_OF_2 = math.sqrt(2)
# With AVX-512, torch's fp32 kernel takes an approximation of erf that is up to 1e-6 off and turns inf into NaN (seen in torch 2.13): ten
# times as fast as erf itself, and wrong where an overflow is to be told from a NaN.
_KERNEL_HOLDS = bool(F.gelu(torch.full((64,), torch.inf)).isinf().all())


@lowering("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """``x`` times the normal distribution function of x, exact or by one of MIL's two approximations."""
    if mode == "EXACT":
        if x.dtype == torch.float32 and not _KERNEL_HOLDS:
            return torch.erf(x / _ROOT_OF_2).add_(1).mul_(x).mul_(0.5)
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"gelu mode {mode!r}")


@lowering("silu")
def silu(x: Tensor) -> Tensor:
    """``x * sigmoid(x)``."""
    return F.silu(x)


@lowering("sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return torch.sigmoid(x)


@lowering("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(max(alpha * x + beta, 0), 1)."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@lowering("linear_activation")
def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    """``alpha * x + beta``."""
    return alpha * x + beta


@lowering("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    """``alpha * tanh(beta * x)``."""
    return alpha * torch.tanh(beta * x)


@lowering("softplus")
def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), without overflow. Not F.softplus: it returns x itself above 20, which fp64 can tell apart."""
    return torch.clamp(x, min=0) + torch.log1p(torch.exp(-torch.abs(x)))


@lowering("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``alpha * log(1 + e^(beta * x))`` with alpha and beta (C,) of x (B, C, ...)."""
    return _per_channel(alpha, x) * softplus(_per_channel(beta, x) * x)


@lowering("softsign")
def softsign(x: Tensor) -> Tensor:
    """``x / (1 + |x|)``."""
    return x / (1 + torch.abs(x))


@lowering("softmax")
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """``e^x`` over its sum along ``axis``."""
    return torch.softmax(x, axis)


def _per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """(C,) shaped to be broadcast against x (B, C, ...)."""
    return parameter.reshape(x.shape[1], *(1,) * (x.dim() - 2))
