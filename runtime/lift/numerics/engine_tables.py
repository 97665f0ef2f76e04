"""Activations of the Neural Engine: tables of fp16 samples with straight lines between them.

Grids were read from compiled artifacts of an M6 by 751K/Apple-Neural-Engine-Microarchitecture-Study-M6 (MIT). Where roundings fall is our
finding: with them the worst errors that were measured on an M6 come out in every digit printed there. ``BAND`` has the tables whose
entries are not known; the function itself stands for them.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from coreflow.runtime.lift.numerics.engine_fp16 import round_to_fp16

# By op: the worst absolute error measured on an M6 of a fitted table, whose entries nobody has published.
BAND = {"gelu": 6.16e-3, "silu": 1.49e-2}


def sigmoid(x: Tensor) -> Tensor:
    """Samples from -8 to 8, 1 above, below a tail that reaches 0 at -9.938 (the slope of the tail is ours)."""
    inside = _interpolated(torch.sigmoid, -8.0, 0.5, x.clamp(-8, 8))
    tail = round_to_fp16(torch.sigmoid(x.new_tensor(-8.0))) * ((x + 9.938) / 1.938).clamp_min(0)
    return round_to_fp16(torch.where(x > 8, 1.0, torch.where(x < -8, tail, inside)))


def tanh(x: Tensor) -> Tensor:
    """Samples from 0 to 4, odd; a jump to 1 at 4."""
    size = x.abs()
    return torch.sign(x) * round_to_fp16(torch.where(size >= 4, 1.0, _interpolated(torch.tanh, 0.0, 0.125, size.clamp_max(4))))


def erf(x: Tensor) -> Tensor:
    """Samples from 0 to 2, odd; beyond the function itself, which is 1 of infinity (M1) and never farther off than 8.6e-4 (M6)."""
    size = x.abs()
    return torch.sign(x) * round_to_fp16(torch.where(size > 2, torch.erf(size), _interpolated(torch.erf, 0.0, 1 / 16, size.clamp_max(2))))


def sin(x: Tensor) -> Tensor:
    """Samples of a quarter period; the reduction near multiples of pi is assumed exact, where 45 units were measured."""
    quarters = x.abs() / (math.pi / 2)
    whole = torch.floor(quarters)
    rest = quarters - whole
    angle = torch.where(whole % 2 == 1, 1 - rest, rest) * (math.pi / 2)
    y = round_to_fp16(_interpolated(torch.sin, 0.0, math.pi / 64, angle))
    return y * torch.where(whole % 4 >= 2, -1.0, 1.0) * torch.sign(x)


def exp(x: Tensor) -> Tensor:
    """2 to x log2(e): whole part into the exponent, the rest by samples of 2**t."""
    power = round_to_fp16(x * 1.4423828125).clamp(-64, 64)  # log2(e) in fp16; far beyond what fp16 holds either way
    whole = torch.floor(power)
    samples = round_to_fp16(_interpolated(torch.exp2, 0.0, 1 / 32, power - whole))
    return round_to_fp16(samples * torch.exp2(whole))


def log(x: Tensor) -> Tensor:
    """log2 of the significand by samples, and the exponent, times ln 2; -45440 of 0 (M1), 0 of negative numbers."""
    significand, exponent = torch.frexp(x)
    power = round_to_fp16(round_to_fp16(_interpolated(torch.log2, 0.5, 1 / 64, significand)) + exponent)
    y = round_to_fp16(power * 0.693359375)  # ln 2 in fp16
    return torch.where(x > 0, y, torch.where(x == 0, -45440.0, 0.0))


def sqrt(x: Tensor) -> Tensor:
    """Samples of significands from 0.5 to 2, the exponent halved; 0 of negative numbers."""
    return torch.where(x > 0, _root(x, torch.sqrt, 1), 0.0)


def rsqrt(x: Tensor) -> Tensor:
    """As ``sqrt``; infinite of 0, 0 of negative numbers."""
    return torch.where(x > 0, _root(x, torch.rsqrt, -1), torch.where(x == 0, math.inf, 0.0))


def reciprocal(x: Tensor) -> Tensor:
    """Samples of significands from 0.5 to 1, the exponent negated; infinite of 0."""
    significand, exponent = torch.frexp(x.abs())
    y = _interpolated(torch.reciprocal, 0.5, 1 / 64, significand) * torch.exp2(-exponent.to(x.dtype))
    return torch.where(x == 0, math.inf, torch.copysign(round_to_fp16(y), x))


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), and 0 above 10.39 (coremltools issue 2687; measured through Core ML on an M4)."""
    return torch.where(x > 10.39, 0.0, round_to_fp16(torch.nn.functional.softplus(x)))


def _root(x: Tensor, function: Callable[[Tensor], Tensor], sign: int) -> Tensor:
    significand, exponent = torch.frexp(x)
    odd = exponent % 2
    scale = torch.exp2((sign * (exponent - odd) / 2).to(x.dtype))
    return round_to_fp16(_interpolated(function, 0.5, 1 / 16, significand * (1 + odd), count=25) * scale)


def _interpolated(function: Callable[[Tensor], Tensor], low: float, step: float, x: Tensor, count: int = 33) -> Tensor:
    """entry + fp16(difference * fraction), of ``count`` samples in fp16 from ``low`` on."""
    samples = round_to_fp16(function(low + step * torch.arange(count, dtype=x.dtype, device=x.device)))
    place = (x - low) / step
    index = torch.floor(place).clamp(0, count - 2).long()
    return samples[index] + round_to_fp16((samples[index + 1] - samples[index]) * (place - index))
