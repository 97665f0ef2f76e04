"""How much a program may ask for. One that runs away ends in an error that says so, before memory or patience does."""

import math
from collections.abc import Sequence

MAX_ELEMENTS = 2**30  # of one tensor made from extents alone: 4 GiB of float32
MAX_AXIS = 2**20  # pixels along one axis of a resized image; lists of slots
MAX_ITERATIONS = 1_000_000


def bounded(shape: Sequence[int]) -> tuple[int, ...]:
    """``shape`` as a tuple, if a tensor of that shape can be made."""
    extents = tuple(shape)
    if any(extent < 0 for extent in extents):
        raise ValueError(f"a tensor of shape {list(extents)} cannot be")
    if math.prod(extents) > MAX_ELEMENTS:
        raise ValueError(f"a tensor of shape {list(extents)} has {math.prod(extents)} elements; {MAX_ELEMENTS} are the limit")
    return extents


def bounded_axis(count: int) -> int:
    """``count`` places along one axis, if they are not absurdly many."""
    if count > MAX_AXIS:
        raise ValueError(f"{count} places along one axis; {MAX_AXIS} are the limit")
    return count
