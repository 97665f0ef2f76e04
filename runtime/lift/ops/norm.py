"""Normalisations. Source of every formula: MIL iOS15 normalization (iOS17 only lets the parameters have another dtype)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from coreflow.runtime.lift.limits import bounded
from coreflow.runtime.lift.registry import lowering


@lowering("layer_norm")
def layer_norm(
    x: Tensor, *, axes: Sequence[int] | None = None, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta over ``axes``; gamma and beta have the shape of those axes, in x's order."""
    chosen = sorted(axis % x.dim() for axis in (range(x.dim()) if axes is None else axes))
    if chosen == list(range(x.dim() - len(chosen), x.dim())):
        return F.layer_norm(x, x.shape[-len(chosen) :], gamma, beta, epsilon)
    # F.layer_norm takes trailing axes only, and stages normalise C of (B, C, 1, S).
    centred = x - x.mean(chosen, keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean(chosen, keepdim=True) + epsilon)
    shape = [extent if axis in chosen else 1 for axis, extent in enumerate(x.shape)]
    if gamma is not None:
        normal = normal * gamma.reshape(shape)
    return normal if beta is None else normal + beta.reshape(shape)


@lowering("batch_norm")
def batch_norm(
    x: Tensor, *, mean: Tensor, variance: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta; x (B, C, ...), the others (C,)."""
    return F.batch_norm(x, mean, variance, gamma, beta, training=False, eps=epsilon)


@lowering("instance_norm")
def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """Every channel of every sample over its own mean and variance; x (B, C, ...), gamma and beta (C,)."""
    axes = list(range(2, x.dim()))
    centred = x - x.mean(axes, keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + epsilon)
    shape = (x.shape[1], *(1,) * len(axes))
    if gamma is not None:
        normal = normal * gamma.reshape(shape)
    return normal if beta is None else normal + beta.reshape(shape)


@lowering("l2_norm")
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """``x`` over the length of its last three axes taken as one vector: x / sqrt(sum(x^2) + epsilon)."""
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


@lowering("local_response_norm")
def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """``x / (k + alpha / size * s) ^ beta``, s the sum of x^2 over ``size`` neighbouring channels.

    x: (B, C, H, W), (B, C, D, H, W) or (C, H, W).

    Three axes are an image without a batch: the values that coremltools' own test expects, whatever its documentation says of (n, C, *D).
    """
    batch = x.unsqueeze(0) if x.dim() == 3 else x
    bounded((batch.shape[0], batch.shape[1] + size, *batch.shape[2:]))
    return F.local_response_norm(batch, size, alpha, beta, k).reshape(x.shape)
