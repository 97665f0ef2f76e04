"""``&``, ``|`` and ``^`` of truth values, and what a float is: finite, infinite or no number."""

from collections.abc import Callable
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb

from coreflow.export.targets.lowerings.registry import torch_lowering
from coreflow.export.targets.lowerings.values import Var, is_bool, is_float
from coreflow.models.errors import ExportError


@torch_lowering("bitwise_and", "__and__", "__iand__")
def bitwise_and(x: Var, other: Var) -> Var:
    """logical_and of truth values"""
    return _combine(mb.logical_and, x, other, "&")


@torch_lowering("bitwise_or", "__or__", "__ior__")
def bitwise_or(x: Var, other: Var) -> Var:
    """logical_or of truth values"""
    return _combine(mb.logical_or, x, other, "|")


@torch_lowering("bitwise_xor", "__xor__", "__ixor__")
def bitwise_xor(x: Var, other: Var) -> Var:
    """logical_xor of truth values"""
    return _combine(mb.logical_xor, x, other, "^")


def _combine(operation: Callable[..., Var], x: Var, other: Any, sign: str) -> Var:
    other = np.bool_(other) if isinstance(other, bool) else other
    if not is_bool(x) or not (isinstance(other, np.bool_) or is_bool(other)):
        raise ExportError(f"{sign} of whole numbers has no counterpart in Core ML; compare first, as in (x > 0) {sign} (y > 0)")
    return operation(x=x, y=other)


@torch_lowering("isfinite")
def isfinite(x: Var) -> Var:
    """equal(x - x, 0): a difference of infinities is no number"""
    if not is_float(x):
        return mb.equal(x=x, y=x)
    return mb.equal(x=mb.sub(x=x, y=x), y=0.0)


@torch_lowering("isnan")
def isnan(x: Var) -> Var:
    """not_equal(x, x)"""
    return mb.not_equal(x=x, y=x)


@torch_lowering("isinf")
def isinf(x: Var) -> Var:
    """x is a number that isfinite refuses"""
    if not is_float(x):
        return mb.not_equal(x=x, y=x)
    return mb.logical_and(x=mb.logical_not(x=isfinite(x)), y=mb.equal(x=x, y=x))


@torch_lowering("isposinf")
def isposinf(x: Var) -> Var:
    """isinf and greater than 0"""
    return mb.logical_and(x=isinf(x), y=mb.greater(x=x, y=_zero(x)))


@torch_lowering("isneginf")
def isneginf(x: Var) -> Var:
    """isinf and less than 0"""
    return mb.logical_and(x=isinf(x), y=mb.less(x=x, y=_zero(x)))


def _zero(x: Var) -> Any:
    return 0.0 if is_float(x) else 0
