"""Resampling that MIL does not have: by products with fixed matrices, and by fixed places."""

from typing import Any

import torch
from coremltools.converters.mil import Builder as mb

from coreflow.export.targets.lowerings.registry import known, torch_lowering
from coreflow.export.targets.lowerings.values import Var, fixed_size


@torch_lowering("upsample_bicubic2d")
def upsample_bicubic2d(x: Var, output_size: tuple[int, ...] | None, align_corners: bool, *scales: Any) -> Var:
    """two matmul with fixed matrices, for the height and for the width"""
    return _resample(torch.ops.aten.upsample_bicubic2d, x, output_size, align_corners, scales)


@torch_lowering("_upsample_bicubic2d_aa")
def upsample_bicubic2d_aa(x: Var, output_size: tuple[int, ...] | None, align_corners: bool, *scales: Any) -> Var:
    """two matmul with fixed matrices, which smooth where they make smaller"""
    return _resample(torch.ops.aten._upsample_bicubic2d_aa, x, output_size, align_corners, scales)


@torch_lowering("_upsample_bilinear2d_aa")
def upsample_bilinear2d_aa(x: Var, output_size: tuple[int, ...] | None, align_corners: bool, *scales: Any) -> Var:
    """two matmul with fixed matrices, which smooth where they make smaller"""
    return _resample(torch.ops.aten._upsample_bilinear2d_aa, x, output_size, align_corners, scales)


@torch_lowering("upsample_nearest2d")
def upsample_nearest2d(x: Var, output_size: tuple[int, ...] | None, *scales: Any) -> Var:
    """upsample_nearest_neighbor by whole numbers, else two gather of fixed places"""
    return _pick(torch.ops.aten.upsample_nearest2d, x, output_size, scales)


@torch_lowering("_upsample_nearest_exact2d")
def upsample_nearest_exact2d(x: Var, output_size: tuple[int, ...] | None, *scales: Any) -> Var:
    """upsample_nearest_neighbor by whole numbers, else two gather of fixed places"""
    return _pick(torch.ops.aten._upsample_nearest_exact2d, x, output_size, scales)


def _pick(operation: Any, x: Var, size: tuple[int, ...] | None, scales: tuple[Any, ...]) -> Var:
    # coremltools computes the places from the sizes alone, not from a scale that it does not divide.
    sides, sizes, factors = _geometry(x, size, scales, "nearest resampling")
    if all(target % side == 0 and factor in (None, target // side) for side, target, factor in zip(sides, sizes, factors, strict=True)):
        height, width = (target // side for side, target in zip(sides, sizes, strict=True))
        return mb.upsample_nearest_neighbor(x=x, scale_factor_height=height, scale_factor_width=width)
    for axis, side, target, factor in zip((2, 3), sides, sizes, factors, strict=True):
        places = operation(torch.arange(side, dtype=torch.float64)[None, None, None], [1, target], None, factor)
        x = mb.gather(x=x, indices=places.flatten().int().numpy(), axis=axis)
    return x


def _resample(operation: Any, x: Var, size: tuple[int, ...] | None, align_corners: bool, scales: tuple[Any, ...]) -> Var:
    sides, sizes, factors = _geometry(x, size, scales, "resampling")
    height, width = (_matrix(operation, *side, align_corners) for side in zip(sides, sizes, factors, strict=True))
    rows = mb.matmul(x=height[None, None], y=x)
    return mb.matmul(x=rows, y=width[None, None], transpose_y=True)


def _geometry(
    x: Var, size: tuple[int, ...] | None, scales: tuple[Any, ...], operation: str
) -> tuple[list[int], tuple[int, ...], list[float | None]]:
    """Height and width of ``x``, those of the result, and the scales, if any are given."""
    # One overload gives the scales as two numbers, the other as one list; neither need say any.
    plain = [number for part in known(scales, operation) for number in (part if isinstance(part, tuple) else (part,)) if number is not None]
    sides = [fixed_size(x, axis, operation) for axis in (2, 3)]
    sizes = tuple(size or (int(side * factor) for side, factor in zip(sides, plain, strict=True)))
    return sides, sizes, plain or [None, None]


def _matrix(operation: Any, size: int, target: int, scale: float | None, align_corners: bool) -> Any:
    """The matrix (target, size) of a resampling along one side: torch's own result for every unit vector."""
    # Along the width, of rows that stay: torch 2.13 smooths a picture of width 1 as if its rows were all the first.
    units = torch.eye(size, dtype=torch.float64)[None, None]
    return operation(units, [size, target], align_corners, None, scale)[0, 0].T.float().numpy()
