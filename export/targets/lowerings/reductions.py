"""Reductions: ``prod``, ``count_nonzero``, extremes and moments of one call, and distances between rows."""

import math
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.frontend.torch.utils import NUM_TO_DTYPE_STRING

from coreflow.export.targets.lowerings.registry import Ints, known, torch_lowering
from coreflow.export.targets.lowerings.values import Var, fixed_size, is_bool, is_float, promote


def _axes(x: Var, dim: Ints | int | None) -> list[int]:
    dims = () if dim is None else dim if isinstance(dim, tuple) else (dim,)
    return [int(axis) for axis in dims] or list(range(x.rank))


@torch_lowering("count_nonzero")
def count_nonzero(x: Var, dim: Ints | int | None = None) -> Var:
    """reduce_sum of a comparison with 0"""
    true = x if is_bool(x) else mb.not_equal(x=x, y=0.0 if is_float(x) else 0)
    return mb.reduce_sum(x=mb.cast(x=true, dtype="int32"), axes=_axes(x, dim)) if x.rank else mb.cast(x=true, dtype="int32")


@torch_lowering("prod")
def prod(x: Var, *arguments: Any, dtype: Any = None) -> Var:
    """reduce_prod"""
    # A trace gives (dtype,) for the product of everything, or (dim, keepdim, dtype).
    dim, keepdim, dtype = arguments if len(arguments) == 3 else (None, None, arguments[0] if arguments else dtype)
    dim, keepdim, dtype = known((dim, keepdim, dtype), "aten::prod")
    return _prod(x, dim, bool(keepdim), dtype)


@torch_lowering("prod.dim_int")
def prod_of_dim(x: Var, dim: int, keepdim: bool = False, dtype: int | None = None) -> Var:
    """reduce_prod"""
    return _prod(x, dim, keepdim, dtype)


def _prod(x: Var, dim: int | None, keepdim: bool, dtype: int | None) -> Var:
    if dtype is not None or is_bool(x):
        x = mb.cast(x=x, dtype="int32" if dtype is None else NUM_TO_DTYPE_STRING[dtype])
    return mb.reduce_prod(x=x, axes=_axes(x, dim), keep_dims=keepdim) if x.rank else x


@torch_lowering("aminmax")
def aminmax(x: Var, dim: int | None = None, keepdim: bool = False) -> list[Var]:
    """reduce_min and reduce_max"""
    axes = _axes(x, dim)
    return [mb.reduce_min(x=x, axes=axes, keep_dims=keepdim), mb.reduce_max(x=x, axes=axes, keep_dims=keepdim)]


@torch_lowering("var_mean")
def var_mean_of_trace(x: Var, *arguments: Any, **keywords: Any) -> list[Var]:
    """var_mean.correction"""
    return var_mean(x, *_moments(arguments), **keywords)


@torch_lowering("std_mean")
def std_mean_of_trace(x: Var, *arguments: Any, **keywords: Any) -> list[Var]:
    """std_mean.correction"""
    return std_mean(x, *_moments(arguments), **keywords)


@torch_lowering("var_mean.correction")
def var_mean(x: Var, dim: Ints | int | None = None, correction: float | None = None, keepdim: bool = False) -> list[Var]:
    """reduce_mean of squared differences from the reduce_mean"""
    axes = _axes(x, dim)
    mean = mb.reduce_mean(x=x, axes=axes, keep_dims=True)
    squares = mb.reduce_sum(x=mb.square(x=mb.sub(x=x, y=mean)), axes=axes, keep_dims=keepdim)
    count = math.prod(fixed_size(x, axis, "a variance") for axis in axes) - (1 if correction is None else correction)
    variance = mb.mul(x=squares, y=np.float32(1 / count))
    return [variance, mean if keepdim else mb.squeeze(x=mean, axes=axes)]


@torch_lowering("std_mean.correction")
def std_mean(x: Var, dim: Ints | int | None = None, correction: float | None = None, keepdim: bool = False) -> list[Var]:
    """the root of var_mean"""
    variance, mean = var_mean(x, dim, correction, keepdim)
    return [mb.sqrt(x=variance), mean]


def _moments(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """(dim, correction, keepdim) of (unbiased,), or of (dim, unbiased or correction, keepdim) without some of the last."""
    plain: tuple[Any, ...] = known(arguments, "moments")
    if len(plain) == 1 and not isinstance(plain[0], tuple):
        plain = (None, *plain)
    dim, correction, keepdim = plain + (None, None, False)[len(plain) :]
    return dim, None if correction is None else float(correction), bool(keepdim)


@torch_lowering("cdist", "_cdist_forward", "_euclidean_dist")
def cdist(x: Var, other: Var, p: float = 2.0, compute_mode: int | None = None) -> Var:
    """a norm of all differences of rows, without products that cancel"""
    x, other = promote(x, other)
    difference = mb.sub(x=mb.expand_dims(x=x, axes=[-2]), y=mb.expand_dims(x=other, axes=[-3]))
    if p == 2:
        return mb.reduce_l2_norm(x=difference, axes=[-1])
    distance = mb.abs(x=difference)
    if p == 1:
        return mb.reduce_sum(x=distance, axes=[-1])
    if p == 0:
        return mb.reduce_sum(x=mb.cast(x=mb.not_equal(x=difference, y=0.0), dtype="fp32"), axes=[-1])
    if p > 1e37:  # the converter's infinity is 1e38
        return mb.reduce_max(x=distance, axes=[-1])
    powers = mb.reduce_sum(x=mb.pow(x=distance, y=np.float32(p)), axes=[-1])
    return mb.pow(x=powers, y=np.float32(1 / p))
