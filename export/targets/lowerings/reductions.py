"""Reductions: ``prod``, ``count_nonzero``, extremes and moments of one call, and distances between rows."""

import math
from collections.abc import Callable
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
    return _reduced(mb.reduce_sum, x, dim, keepdim=False)


@torch_lowering("any")
def any_of(x: Var, dim: Ints | int | None = None, keepdim: bool = False) -> Var:
    """reduce_max of truth values"""
    # coremltools casts numbers to whole numbers first: 0.5 is none of any, and -1 less than 0.
    return mb.cast(x=_reduced(mb.reduce_max, x, dim, keepdim), dtype="bool")


@torch_lowering("all")
def all_of(x: Var, dim: Ints | int | None = None, keepdim: bool = False) -> Var:
    """reduce_min of truth values"""
    return mb.cast(x=_reduced(mb.reduce_min, x, dim, keepdim), dtype="bool")


def _reduced(reduce: Callable[..., Var], x: Var, dim: Ints | int | None, keepdim: bool) -> Var:
    """``reduce`` of 1 where ``x`` is true or not 0, and of 0 elsewhere."""
    flags = mb.cast(x=_true(x), dtype="int32")
    return reduce(x=flags, axes=_axes(x, dim), keep_dims=keepdim) if x.rank else flags


def _true(x: Var) -> Var:
    return x if is_bool(x) else mb.not_equal(x=x, y=0.0 if is_float(x) else 0)


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


def _variance(x: Var, dim: Any, correction: float | None, keepdim: bool) -> list[Var]:
    axes = _axes(x, dim)
    mean = mb.reduce_mean(x=x, axes=axes, keep_dims=True)
    squares = mb.square(x=mb.sub(x=x, y=mean))
    correction = 1 if correction is None else correction
    if correction == 0:
        variance = mb.reduce_mean(x=squares, axes=axes, keep_dims=keepdim)
    else:
        count = math.prod(fixed_size(x, axis, "a variance") for axis in axes) - correction
        variance = mb.mul(x=mb.reduce_sum(x=squares, axes=axes, keep_dims=keepdim), y=np.float32(1 / count if count > 0 else math.nan))
    return [variance, mean if keepdim else mb.squeeze(x=mean, axes=axes)]


# A trace does not tell the forms apart, an exported program does. Of the one with a correction coremltools takes any other than 0 for 1.
@torch_lowering("var_mean")
def var_mean(x: Var, *arguments: Any, **keywords: Any) -> list[Var]:
    """reduce_mean of squared differences from the reduce_mean"""
    return _variance(x, *_moments(arguments, keywords))


@torch_lowering("var_mean.correction")
def var_mean_with_correction(x: Var, dim: Ints | int | None = None, correction: float | None = None, keepdim: bool = False) -> list[Var]:
    """reduce_mean of squared differences from the reduce_mean"""
    return _variance(x, dim, correction, keepdim)


@torch_lowering("std_mean")
def std_mean(x: Var, *arguments: Any, **keywords: Any) -> list[Var]:
    """the root of var_mean"""
    variance, mean = var_mean(x, *arguments, **keywords)
    return [mb.sqrt(x=variance), mean]


@torch_lowering("std_mean.correction")
def std_mean_with_correction(x: Var, dim: Ints | int | None = None, correction: float | None = None, keepdim: bool = False) -> list[Var]:
    """the root of var_mean"""
    variance, mean = _variance(x, dim, correction, keepdim)
    return [mb.sqrt(x=variance), mean]


@torch_lowering("var")
def var(x: Var, *arguments: Any, **keywords: Any) -> Var:
    """the first of var_mean"""
    return var_mean(x, *arguments, **keywords)[0]


@torch_lowering("var.correction")
def var_with_correction(x: Var, dim: Ints | int | None = None, correction: float | None = None, keepdim: bool = False) -> Var:
    """the first of var_mean"""
    return _variance(x, dim, correction, keepdim)[0]


@torch_lowering("std")
def std(x: Var, *arguments: Any, **keywords: Any) -> Var:
    """the root of var"""
    return mb.sqrt(x=var(x, *arguments, **keywords))


@torch_lowering("std.correction")
def std_with_correction(x: Var, dim: Ints | int | None = None, correction: float | None = None, keepdim: bool = False) -> Var:
    """the root of var"""
    return mb.sqrt(x=_variance(x, dim, correction, keepdim)[0])


def _moments(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, float | None, bool]:
    """(dim, correction, keepdim) of (unbiased,), or of (dim, unbiased or correction, keepdim) without some of the last."""
    plain: tuple[Any, ...] = known((*arguments, *keywords.values()), "moments")
    if len(plain) == 1 and not isinstance(plain[0], tuple):
        plain = (None, *plain)
    dim, correction, keepdim = plain + (None, None, False)[len(plain) :]
    return dim, None if correction is None else float(correction), bool(keepdim)


@torch_lowering("cosine_similarity")
def cosine_similarity(x: Var, other: Var, dim: int = 1, eps: float = 1e-8) -> Var:
    """product of the unit vectors, norms below eps as eps"""
    # coremltools adds eps under the root, which is then another one.
    x, other = promote(x, other)
    norms = [mb.maximum(x=mb.reduce_l2_norm(x=side, axes=[dim], keep_dims=True), y=np.float32(eps)) for side in (x, other)]
    left, right = (mb.real_div(x=side, y=norm) for side, norm in zip((x, other), norms, strict=True))
    return mb.reduce_sum(x=mb.mul(x=left, y=right), axes=[dim])


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
