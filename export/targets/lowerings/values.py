"""Questions about variables of a program that several lowerings ask."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.frontend.torch.utils import NUM_TO_NUMPY_DTYPE
from coremltools.converters.mil.mil import Var, types
from coremltools.converters.mil.mil.ops.defs._utils import promote_input_dtypes

from coreflow.models.errors import ExportError

__all__ = ["Var", "axis_of", "broadcast", "filled", "fixed_size", "is_bool", "is_float", "numpy_dtype", "promote", "shape_value"]


def is_float(x: Var) -> bool:
    """Whether ``x`` holds floats."""
    return bool(types.is_float(x.dtype))


def is_bool(x: Var) -> bool:
    """Whether ``x`` holds truth values."""
    return bool(types.is_bool(x.dtype))


def numpy_dtype(x: Var, dtype: int | None = None) -> Any:
    """The numpy type of torch's ``dtype`` number as a program holds it (64 bits as 32), or that of ``x`` without one."""
    return NUM_TO_NUMPY_DTYPE[dtype] if dtype is not None else types.nptype_from_builtin(x.dtype)


def axis_of(x: Var, dim: int, operation: str) -> int:
    """``dim`` counted from the front; ``ExportError`` when ``x`` has no such one."""
    if not -x.rank <= dim < x.rank:
        raise ExportError(f"{operation}: dim {dim} of a tensor of rank {x.rank}")
    return dim % x.rank


def fixed_size(x: Var, axis: int, operation: str) -> int:
    """Size of ``x`` along ``axis``; ``ExportError`` where it is open."""
    size = x.shape[axis]
    if not isinstance(size, int | np.integer):
        raise ExportError(f"{operation} needs a fixed size of dimension {axis}; enumerate the shapes or fix this one")
    return int(size)


def promote(*values: Any) -> list[Var]:
    """The values as variables of one dtype, by torch's rules for a number beside a tensor."""
    return list(promote_input_dtypes(list(values)))


def shape_value(size: Any) -> tuple[int, ...] | Var:
    """A shape as numbers, or as one variable where sizes are computed."""
    parts = size if isinstance(size, Sequence) else [size]
    plain: list[Any] = [getattr(part, "val", part) for part in parts]
    if any(value is None for value in plain):
        return mb.concat(values=list(parts), axis=0) if isinstance(size, Sequence) else size
    return tuple(int(number) for value in plain for number in np.atleast_1d(value))


def broadcast(*, but: int | None = None, **variables: Var) -> dict[str, Var]:
    """The variables in one shape, by torch's rules; the axis ``but``, counted from the front in variables of one rank, stays as it is."""
    rank = max(variable.rank for variable in variables.values())
    sizes = {name: [1] * (rank - x.rank) + [fixed_size(x, axis, "broadcasting") for axis in range(x.rank)] for name, x in variables.items()}
    shape = [max(sizes[name][axis] for name in sizes) for axis in range(rank)]
    result = {}
    for name, x in variables.items():
        repeats = [1 if axis == but else size // own for axis, (size, own) in enumerate(zip(shape, sizes[name], strict=True))]
        same_rank = x if x.rank == rank else mb.reshape(x=x, shape=sizes[name])
        result[name] = mb.tile(x=same_rank, reps=repeats) if any(count != 1 for count in repeats) else same_rank
    return result


def filled(x: Var, value: float) -> Var:
    """A tensor of the shape and dtype of ``x`` that holds ``value`` everywhere."""
    shape = [fixed_size(x, axis, "filling") for axis in range(x.rank)]
    return mb.fill(shape=shape, value=numpy_dtype(x)(value)) if shape else mb.const(val=numpy_dtype(x)(value))
