"""Bicubic resampling as two products with fixed matrices."""

from typing import Any

import numpy as np
import torch
from coremltools.converters.mil import Builder as mb

from coreflow.export.targets.lowerings.registry import torch_lowering
from coreflow.export.targets.lowerings.values import Var, fixed_size

_Floats = tuple[float, ...] | None


@torch_lowering("upsample_bicubic2d")
def upsample_bicubic2d(x: Var, output_size: tuple[int, ...] | None, align_corners: bool, *scales: Any) -> Var:
    """two matmul with fixed matrices, for the height and for the width"""
    return _resample(torch.ops.aten.upsample_bicubic2d, x, output_size, align_corners, scales)


@torch_lowering("_upsample_bicubic2d_aa")
def upsample_bicubic2d_aa(x: Var, output_size: tuple[int, ...] | None, align_corners: bool, *scales: Any) -> Var:
    """two matmul with fixed matrices, which smooth where they make smaller"""
    return _resample(torch.ops.aten._upsample_bicubic2d_aa, x, output_size, align_corners, scales)


def _resample(operation: Any, x: Var, size: tuple[int, ...] | None, align_corners: bool, scales: tuple[Any, ...]) -> Var:
    # One overload gives the scales as two numbers, the other as one list; neither need say any.
    numbers = [getattr(number, "val", number) for part in scales for number in (part if isinstance(part, list) else [part])]
    factors = [float(number) for value in numbers if value is not None for number in np.atleast_1d(value)]
    sides = [fixed_size(x, axis, "bicubic resampling") for axis in (2, 3)]
    sizes = size or tuple(int(side * factor) for side, factor in zip(sides, factors, strict=True))
    height, width = (
        _matrix(operation, side, target, align_corners, factors[place] if factors else None)
        for place, (side, target) in enumerate(zip(sides, sizes, strict=True))
    )
    rows = mb.matmul(x=height[None, None], y=x)
    return mb.matmul(x=rows, y=width[None, None], transpose_y=True)


def _matrix(operation: Any, size: int, target: int, align_corners: bool, scale: float | None) -> Any:
    """The matrix (target, size) of a resampling along one side: torch's own result for every unit vector."""
    # Along the width, of rows that stay: torch 2.13 smooths a picture of width 1 as if its rows were all the first.
    units = torch.eye(size, dtype=torch.float64)[None, None]
    return operation(units, [size, target], align_corners, None, scale)[0, 0].T.float().numpy()
