"""The multiply-accumulate core of the Neural Engine, shared by matmul, linear, convolution and attention.

Our own derivation from six relative errors of seeded products that ANEForge publishes (MIT; M1 to M6, equal on all) and 331 single probes
of 751K/Apple-Neural-Engine-Microarchitecture-Study-M6 (MIT; M6, the basic set also on M4), all of which it reproduces:

1. Operands are fp16; exponent field 31 is no special case.
2. A product is dropped where the exponents of its factors add up to less than -16.
3. Every other product is rounded to a multiple of 2**-16, ties away from zero; so is the bias.
4. The accumulator starts at the bias and adds exactly. Once its magnitude has reached 2**15 the result is that infinity for good.
5. The sum is rounded to fp16, ties away from zero.

Only rule 4 can see the order of the terms, which is assumed to be that of their indices.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from coreflow.runtime.lift.numerics.engine_fp16 import decode, exponents, half_away, round_to_fp16

STEP = 2.0**-16
LEAST_EXPONENT = -16
LIMIT = 2.0**15
_BLOCK = 1 << 22  # products at once: 32 MB for each of the few tensors of a block
_SAMPLE = 8, 16  # rows and columns of which the statistical form learns its error


def multiply_accumulate(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, is_exact: bool = True) -> Tensor:
    """``x @ weight.T + bias`` as the engine computes it; x (..., M, K), weight (..., N, K) or (N, K), bias (N,), all of one dtype.

    The result (..., M, N) holds fp16 numbers; in float64 they are exact. ``is_exact`` False multiplies in the dtype given and adds noise as
    large as the error of a sample of the results: much faster, and right in the size of the error alone.
    """
    if not is_exact:
        return _statistical(x, weight, bias)
    batch = torch.broadcast_shapes(x.shape[:-2], weight.shape[:-2])
    x, weight = decode(x), decode(weight)
    start = _start(weight, bias)
    if weight.dim() == 2:  # one matrix for all: a batch is more rows
        rows = x.reshape(-1, x.shape[-1])
        return _exact(rows, weight, start).reshape(*x.shape[:-1], weight.shape[0])
    left = x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:])
    right = weight.expand(*batch, *weight.shape[-2:]).reshape(-1, *weight.shape[-2:])
    results = [_exact(a, b, start) for a, b in zip(left, right, strict=True)]
    return torch.stack(results).reshape(*batch, x.shape[-2], weight.shape[-2]) if results else x.new_zeros((*batch, 0, 0))


def _start(weight: Tensor, bias: Tensor | None) -> Tensor:
    """The start value of every accumulator."""
    return weight.new_zeros(weight.shape[-2]) if bias is None else half_away(decode(bias) / STEP) * STEP


def _exact(x: Tensor, weight: Tensor, start: Tensor) -> Tensor:
    """x (M, K), weight (N, K), start (N,), decoded."""
    result = torch.empty(len(x), len(weight), dtype=x.dtype, device=x.device)
    columns = max(1, min(len(weight), _BLOCK // max(1, x.shape[-1])))
    rows = max(1, _BLOCK // max(1, columns * x.shape[-1]))
    factors = _Factors.of(x), _Factors.of(weight)
    for top in range(0, len(x), rows):
        for left in range(0, len(weight), columns):
            block = slice(top, top + rows), slice(left, left + columns)
            result[block] = _block(factors[0][block[0]], factors[1][block[1]], start[block[1]])
    return round_to_fp16(result)


@dataclass(frozen=True, slots=True)
class _Factors:
    """Rows of one operand, and the exponents of their numbers."""

    values: Tensor
    exponents: Tensor

    @classmethod
    def of(cls, values: Tensor) -> "_Factors":
        return cls(values, exponents(values))

    def __getitem__(self, rows: slice) -> "_Factors":
        return _Factors(self.values[rows], self.exponents[rows])


def _block(x: _Factors, weight: _Factors, start: Tensor) -> Tensor:
    """Sums (M, N), infinite where the accumulator ran over."""
    steps = half_away((x.values / STEP)[:, None] * weight.values[None])  # (M, N, K), whole numbers
    if int(x.exponents.min()) + int(weight.exponents.min()) < LEAST_EXPONENT:
        steps.masked_fill_(x.exponents[:, None] + weight.exponents[None] < LEAST_EXPONENT, 0.0)
    sums = steps.sum(-1) * STEP + start
    largest = steps.abs_().sum(-1) * STEP + start.abs() if _may_overflow(x.values, weight.values, start) else None
    if largest is None or not bool((over := largest >= LIMIT).any()):
        return sums
    for row, column in over.nonzero().tolist():  # steps hold magnitudes now
        terms = half_away(x.values[row] / STEP * weight.values[column])
        terms[x.exponents[row] + weight.exponents[column] < LEAST_EXPONENT] = 0.0
        run = torch.cumsum(torch.cat([start[column : column + 1] / STEP, terms]), 0) * STEP
        if bool((beyond := run.abs() >= LIMIT).any()):
            sums[row, column] = math.copysign(math.inf, float(run[beyond.nonzero()[0, 0]]))
    return sums


def _may_overflow(x: Tensor, weight: Tensor, start: Tensor) -> bool:
    """Whether magnitudes could add up to the limit, by the largest of each row."""
    bound = float(x.abs().sum(-1).max()) * float(weight.abs().max()) + float(start.abs().max())
    return bound + x.shape[-1] * STEP >= LIMIT


def _statistical(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x = decode(x)
    product = x @ weight.transpose(-1, -2)
    product = product if bias is None else product + bias
    if not product.numel():
        return product
    rows, columns = x.reshape(-1, x.shape[-1])[: _SAMPLE[0]].double(), weight[(0,) * (weight.dim() - 2)]
    places = torch.linspace(0, len(columns) - 1, min(len(columns), _SAMPLE[1])).long()
    columns = decode(columns[places].double())
    start = torch.zeros(len(columns), dtype=columns.dtype, device=x.device)
    error = _block(_Factors.of(rows), _Factors.of(columns), start) - rows @ columns.T
    finite = error[torch.isfinite(error)]
    spread = float(finite.pow(2).mean().sqrt()) if finite.numel() else 0.0
    generator = torch.Generator(device=x.device).manual_seed(product.numel())
    noise = torch.randn(product.shape, generator=generator, dtype=product.dtype, device=x.device)
    product = product + spread * noise
    return round_to_fp16(torch.where(product.abs() >= LIMIT, torch.copysign(torch.full_like(product, math.inf), product), product))
