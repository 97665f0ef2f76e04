"""Prefix sums as products with a triangle of ones."""

import numpy as np

from coreflow.export.engine.repair.facts import Facts
from coreflow.export.engine.repair.rewrite import Builder, argument, known_shape, number, rewrite
from coreflow.export.package.graph import Graph, Op
from coreflow.models.arrays import Array

_LONGEST = 1024  # a triangle of 2 MB; a longer sum is left


def prefix_sums_as_products(graph: Graph, facts: Facts) -> Graph:
    """Sums along an axis, which the engine does not take, as products, which it does.

    Given::

        %y = cumsum(x=%x, axis=-1, exclusive=False, reverse=False)

    Result::

        %y = matmul(x=%x, y=triangle)

    The triangle has a one where an element counts; an axis other than the last two is brought there and back. Floats only, of at most 1024
    elements.
    """

    def rule(op: Op, new: Builder) -> bool:
        x = argument(op, "x")
        shape = known_shape(x)
        if op.type != "cumsum" or x is None or shape is None or not shape or not x.dtype.startswith("float"):
            return False
        axis = int(number(op.inputs.get("axis")) or 0) % len(shape)
        if shape[axis] > _LONGEST:
            return False
        triangle = _triangle(shape[axis], bool(number(op.inputs.get("exclusive"))), bool(number(op.inputs.get("reverse"))))
        ones = new.constant("triangle", triangle.astype(x.dtype), x.dtype)
        (result,) = op.outputs
        if len(shape) == 1:
            row = new("expand_dims", x=x, axes=(0,), shape=(1, *shape))
            total = new("matmul", x=row, y=ones, transpose_x=False, transpose_y=False, shape=(1, *shape))
            new("squeeze", x=total, axes=(0,), gives=result)
        elif axis == len(shape) - 1:
            new("matmul", x=x, y=ones, transpose_x=False, transpose_y=False, gives=result)
        elif axis == len(shape) - 2:
            new("matmul", x=ones, y=x, transpose_x=True, transpose_y=False, gives=result)
        else:
            order = [*range(len(shape))]
            order[axis], order[-1] = order[-1], order[axis]
            moved = tuple(shape[place] for place in order)
            turned = new("transpose", x=x, perm=tuple(order), shape=moved)
            total = new("matmul", x=turned, y=ones, transpose_x=False, transpose_y=False, shape=moved)
            new("transpose", x=total, perm=tuple(order), gives=result)
        return True

    return rewrite(graph, rule)


def _triangle(count: int, exclusive: bool, reverse: bool) -> Array:
    """A one where element i counts for sum j."""
    counted = np.tri(count, k=-1 if exclusive else 0).T  # i before j, or at it
    return counted.T if reverse else counted
