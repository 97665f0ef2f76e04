"""Tensors made beside another one: ``new_ones`` and its kin, whose dtype coremltools leaves out."""

from typing import Any

from coremltools.converters.mil import Builder as mb

from coreflow.export.targets.lowerings.registry import torch_lowering
from coreflow.export.targets.lowerings.values import Var, numpy_dtype, shape_value


@torch_lowering("new_full")
def new_full(x: Var, size: Any, fill_value: float, dtype: int | None = None, *_: Any, **__: Any) -> Var:
    """fill, in the dtype that was asked for or that of x"""
    shape, value = shape_value(size), numpy_dtype(x, dtype)(fill_value)
    # A fill of rank 0 does not exist.
    return mb.const(val=value) if shape == () else mb.fill(shape=shape, value=value)


@torch_lowering("new_ones")
def new_ones(x: Var, size: Any, dtype: int | None = None, *_: Any, **__: Any) -> Var:
    """fill with 1, in the dtype that was asked for or that of x"""
    return new_full(x, size, 1, dtype)


@torch_lowering("new_zeros")
def new_zeros(x: Var, size: Any, dtype: int | None = None, *_: Any, **__: Any) -> Var:
    """fill with 0, in the dtype that was asked for or that of x"""
    return new_full(x, size, 0, dtype)
