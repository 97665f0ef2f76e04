"""Limits on what a program may ask for: a clear error before memory runs out or a loop never ends.

When a graph is planned, ``refuse_absurd`` looks at every shape that it declares. A declaration may be open or false: so a lowering whose
result can be larger than what it reads asks ``bounded``, in its guard or itself.
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from coreflow.export.package.graph import Graph
from coreflow.models.errors import UnsupportedError

MAX_ELEMENTS = 2**30  # of one tensor that an op makes: 4 GiB of float32
MAX_AXIS = 2**20  # pixels along one axis of a resized image; lists of slots
MAX_ITERATIONS = 1_000_000


def refuse_absurd(graph: Graph, package: str) -> None:
    """``UnsupportedError`` for an op that declares a result too large to be made; open extents count as 1.

    Constant expressions are exempt: their results are as large as the weights on disk.
    """
    for op in graph.walk():
        for value in () if op.type.startswith("constexpr_") else op.outputs:
            known = [extent for extent in value.shape or () if extent is not None]
            if math.prod(known) > MAX_ELEMENTS:
                shape = ", ".join("?" if extent is None else str(extent) for extent in value.shape or ())
                raise UnsupportedError(
                    f"{package}: {op.type} {op.name!r} gives {value.name!r} of shape [{shape}], "
                    f"{math.prod(known)} elements; {MAX_ELEMENTS} are the limit"
                )


def bounded(shape: Sequence[int]) -> tuple[int, ...]:
    """``shape`` as a tuple, if a tensor of that shape can be made."""
    extents = tuple(shape)
    if any(extent < 0 for extent in extents):
        raise ValueError(f"a tensor of shape {list(extents)} cannot be")
    if math.prod(extents) > MAX_ELEMENTS:
        raise ValueError(f"a tensor of shape {list(extents)} has {math.prod(extents)} elements; {MAX_ELEMENTS} are the limit")
    return extents


def bounded_together(**tensors: Tensor) -> None:
    """Guard of an op that gives its tensors broadcast against each other."""
    if math.prod(tensor.numel() for tensor in tensors.values()) > MAX_ELEMENTS:
        bounded(np.broadcast_shapes(*(tensor.shape for tensor in tensors.values())))


def bounded_axis(count: int) -> int:
    """``count``, if one axis can have that many elements."""
    if count > MAX_AXIS:
        raise ValueError(f"{count} places along one axis; {MAX_AXIS} are the limit")
    return count
