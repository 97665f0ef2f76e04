"""Elementwise arithmetic, comparison and logic. Source of every formula: MIL iOS15 elementwise_unary and elementwise_binary."""

from collections.abc import Callable

import torch
from torch import Tensor

from coreflow.runtime.lift.limits import bounded_together
from coreflow.runtime.lift.registry import lowering


def _unary(op: str, function: Callable[[Tensor], Tensor]) -> None:
    """Registers an op that is one torch function of ``x``."""

    @lowering(op)
    def lowered(x: Tensor) -> Tensor:
        return function(x)


def _binary(op: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Registers an op that is one torch function of ``x`` and ``y``, broadcast against each other."""

    @lowering(op, guard=bounded_together)
    def lowered(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)


_unary("abs", torch.abs)
_unary("acos", torch.acos)
_unary("asin", torch.asin)
_unary("atan", torch.atan)
_unary("atanh", torch.atanh)
_unary("ceil", torch.ceil)
_unary("cos", torch.cos)
_unary("cosh", torch.cosh)
_unary("erf", torch.erf)
_unary("exp", torch.exp)
_unary("floor", torch.floor)
_unary("logical_not", torch.logical_not)
_unary("round", torch.round)  # half to even, as numpy and MIL do
_unary("sin", torch.sin)
_unary("sinh", torch.sinh)
_unary("sqrt", torch.sqrt)
_unary("square", torch.square)
_unary("tan", torch.tan)
_unary("tanh", torch.tanh)

_binary("add", torch.add)
_binary("sub", torch.sub)
_binary("mul", torch.mul)
_binary("pow", torch.pow)
_binary("mod", torch.remainder)  # the sign of y, as Python's %
_binary("maximum", torch.maximum)
_binary("minimum", torch.minimum)
_binary("equal", torch.eq)
_binary("not_equal", torch.ne)
_binary("greater", torch.gt)
_binary("greater_equal", torch.ge)
_binary("less", torch.lt)
_binary("less_equal", torch.le)
_binary("logical_and", torch.logical_and)
_binary("logical_or", torch.logical_or)
_binary("logical_xor", torch.logical_xor)


@lowering("sign")
def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1; NaN stays, which torch would make 0 and so hide."""
    return torch.where(torch.isnan(x), x, torch.sign(x)) if x.is_floating_point() else torch.sign(x)


@lowering("exp2")
def exp2(x: Tensor) -> Tensor:
    """2 ** x; of integers, the integer below."""
    return torch.exp2(x) if x.is_floating_point() else torch.exp2(x.double()).to(x.dtype)


@lowering("floor_div", guard=bounded_together)
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """``x / y`` rounded down."""
    return torch.div(x, y, rounding_mode="floor")


@lowering("real_div", guard=bounded_together)
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """``x / y``; integers give the integer towards zero, because the result has their type."""
    return torch.div(x, y) if x.is_floating_point() or y.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


@lowering("clip")
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(max(x, alpha), beta). Its result is rounded: since iOS17 the limits may be finer than x."""
    return torch.clamp(x, alpha, beta)


@lowering("inverse")
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """1 / (x + epsilon)."""
    return torch.reciprocal(x + epsilon)


@lowering("log")
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """log(x + epsilon)."""
    return torch.log(x + epsilon) if epsilon else torch.log(x)


@lowering("rsqrt")
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return torch.rsqrt(x + epsilon)


@lowering("threshold")
def threshold(x: Tensor, alpha: float) -> Tensor:
    """max(x, alpha)."""
    return torch.clamp(x, min=alpha)


# MIL's dtype names; smaller integers are carried as int32 and wrapped where they are made.
_WRAPS = {"int8": (8, True), "uint8": (8, False), "int16": (16, True), "uint16": (16, False)}


@lowering("cast")
def cast(x: Tensor, dtype: str, *, float_dtype: torch.dtype) -> Tensor:
    """``x`` as MIL's ``dtype``: floats go to integers towards zero, everything but 0 is true, smaller integers wrap around."""
    if dtype in ("fp16", "fp32", "fp64"):
        return x.to(float_dtype)
    if dtype == "bool":
        return x != 0
    whole = x.to(torch.int32)
    if dtype not in _WRAPS:
        return whole
    bits, signed = _WRAPS[dtype]
    half = 1 << (bits - 1) if signed else 0
    return torch.bitwise_and(whole + half, (1 << bits) - 1) - half


@lowering("select", guard=bounded_together)
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``a`` where ``cond`` holds, else ``b``."""
    return torch.where(cond, a, b)
