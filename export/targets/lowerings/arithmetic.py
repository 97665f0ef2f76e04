"""Arithmetic that torch names and MIL does not: ``lerp``, ``addcmul``, ``trunc``, ``nan_to_num`` and others, element by element."""

from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb

from coreflow.export.targets.lowerings.logic import isinf
from coreflow.export.targets.lowerings.registry import torch_lowering
from coreflow.export.targets.lowerings.values import Var, broadcast, is_bool, is_float, promote


def multiply(x: Any, y: Any) -> Var:
    """x * y in their common dtype."""
    x, y = promote(x, y)
    return mb.mul(x=x, y=y)


def add(x: Any, y: Any) -> Var:
    """x + y in their common dtype."""
    x, y = promote(x, y)
    return mb.add(x=x, y=y)


def subtract(x: Any, y: Any) -> Var:
    """x - y in their common dtype."""
    x, y = promote(x, y)
    return mb.sub(x=x, y=y)


def choose(condition: Var, x: Any, y: Any) -> Var:
    """x where ``condition`` holds, else y."""
    x, y = promote(x, y)
    return mb.select(**broadcast(cond=condition, a=x, b=y))


@torch_lowering("lerp")
def lerp(x: Var, end: Var, weight: Var) -> Var:
    """x + (end - x) * weight"""
    return add(x, multiply(subtract(end, x), weight))


@torch_lowering("addcmul")
def addcmul(x: Var, tensor1: Var, tensor2: Var, value: float = 1) -> Var:
    """x + value * tensor1 * tensor2"""
    product = multiply(tensor1, tensor2)
    return add(x, product if value == 1 else multiply(product, value))


@torch_lowering("addcdiv")
def addcdiv(x: Var, tensor1: Var, tensor2: Var, value: float = 1) -> Var:
    """x + value * tensor1 / tensor2"""
    above, below = promote(tensor1, tensor2)
    quotient = mb.real_div(x=above, y=below)
    return add(x, quotient if value == 1 else multiply(quotient, value))


@torch_lowering("heaviside")
def heaviside(x: Var, values: Var) -> Var:
    """1 above 0, values at 0, else 0"""
    zero = 0.0 if is_float(x) else 0
    above = mb.cast(x=mb.greater(x=x, y=zero), dtype="fp32" if is_float(x) else "int32")
    return choose(mb.equal(x=x, y=zero), values, above)


@torch_lowering("outer", "ger")
def outer(x: Var, other: Var) -> Var:
    """mul of a column and a row"""
    return multiply(mb.expand_dims(x=x, axes=[1]), mb.expand_dims(x=other, axes=[0]))


@torch_lowering("nan_to_num")
def nan_to_num(x: Var, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Var:
    """select, thrice"""
    if not is_float(x):
        return x
    # fp32's limits become those of fp16 in the rounding of constants, as far as that is the precision.
    limits = np.finfo(np.float32)
    high, low = (limit if value is None else value for value, limit in ((posinf, limits.max), (neginf, limits.min)))
    infinite = isinf(x)
    x_or_high = choose(mb.logical_and(x=infinite, y=mb.greater(x=x, y=0.0)), np.float32(high), x)
    finite = choose(mb.logical_and(x=infinite, y=mb.less(x=x, y=0.0)), np.float32(low), x_or_high)
    return choose(mb.not_equal(x=x, y=x), np.float32(nan or 0.0), finite)


@torch_lowering("trunc", "fix")
def trunc(x: Var) -> Var:
    """floor of the magnitude, with the sign"""
    return mb.mul(x=mb.sign(x=x), y=mb.floor(x=mb.abs(x=x))) if is_float(x) else x


@torch_lowering("fmod")
def fmod(x: Var, other: Var) -> Var:
    """mod of the magnitudes, with the sign of x"""
    x, other = promote(x, other)
    return mb.mul(x=mb.sign(x=x), y=mb.mod(x=mb.abs(x=x), y=mb.abs(x=other)))


@torch_lowering("sgn")
def sgn(x: Var) -> Var:
    """sign"""
    return x if is_bool(x) else mb.sign(x=x)


@torch_lowering("hypot")
def hypot(x: Var, other: Var) -> Var:
    """the larger magnitude times the root of 1 + ratio², which does not overflow"""
    x, other = promote(x, other)
    a, b = mb.abs(x=x), mb.abs(x=other)
    large, small = mb.maximum(x=a, y=b), mb.minimum(x=a, y=b)
    ratio = mb.real_div(x=small, y=choose(mb.equal(x=large, y=0.0), np.float32(1), large))
    return mb.mul(x=large, y=mb.sqrt(x=mb.add(x=mb.square(x=ratio), y=1.0)))


@torch_lowering("logaddexp")
def logaddexp(x: Var, other: Var) -> Var:
    """the larger plus log(1 + exp(-difference))"""
    x, other = promote(x, other)
    distance = mb.abs(x=mb.sub(x=x, y=other))
    return mb.add(x=mb.maximum(x=x, y=other), y=log_of_one_plus_exp_of_minus(distance))


def log_of_one_plus_exp_of_minus(distance: Var) -> Var:
    """log(1 + exp(-distance)) for distances from 0 on, where nothing overflows."""
    return mb.log(x=mb.add(x=mb.exp(x=mb.mul(x=distance, y=-1.0)), y=1.0))
