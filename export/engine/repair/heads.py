"""Wide layers in parts that the engine takes."""

import math
from typing import Any

import numpy as np

from coreflow.export.engine.repair.facts import Facts
from coreflow.export.engine.repair.rewrite import Builder, argument, known_shape, number, rewrite
from coreflow.export.package.graph import Graph, Op


def split_heads(graph: Graph, facts: Facts) -> Graph:
    """Linear layers, convolutions and products of matrices whose results are longer than an axis of the engine, in parts.

    Given::

        %y = linear(x=%x, weight=W, bias=b)          # 32128 outputs, where an axis has 16384 at most

    Result::

        %y = concat(values=(linear(x=%x, weight=W[:16064], bias=b[:16064]), linear(x=%x, weight=W[16064:], bias=b[16064:])), axis=-1)

    The parts are products that the engine takes; the result is still as long as it was, and joined on the CPU.
    """

    def rule(op: Op, new: Builder) -> bool:
        x, (result,) = argument(op, "x"), op.outputs[:1] or (None,)
        shape = known_shape(result)
        if op.type not in ("linear", "conv", "matmul") or x is None or result is None or shape is None or len(shape) < 2:
            return False
        axis = 1 if op.type == "conv" else len(shape) - 1
        limit = facts.target.limits.outer_extent if axis <= len(shape) - 3 else facts.target.limits.extent
        parts = _parts(op, math.ceil(shape[axis] / limit)) if shape[axis] > limit else []
        if not parts:
            return False
        values = []
        for constants in parts:
            extents = (*shape[:axis], _extent(op, constants), *shape[axis + 1 :])
            values.append(new.again(op, x=x, shape=extents, **constants))
        new("concat", values=tuple(values), axis=axis, interleave=False, gives=result)
        return True

    return rewrite(graph, rule)


def _parts(op: Op, count: int) -> list[dict[str, Any]]:
    """The constants of every part; none where the weight is no plain constant, or where channels are in groups."""
    weight, bias = argument(op, "y" if op.type == "matmul" else "weight"), argument(op, "bias")
    if weight is None or not isinstance(weight.data, np.ndarray) or (number(op.inputs.get("groups")) or 1) != 1:
        return []
    if op.type == "matmul":
        return [{"y": part} for part in np.array_split(weight.data, count, _axis_of_matmul(op))]
    pieces = [{"weight": part} for part in np.array_split(weight.data, count)]
    if bias is None:
        return pieces
    if not isinstance(bias.data, np.ndarray):
        return []
    return [{**piece, "bias": part} for piece, part in zip(pieces, np.array_split(bias.data, count), strict=True)]


def _extent(op: Op, constants: dict[str, Any]) -> int:
    return int(constants["y"].shape[_axis_of_matmul(op)]) if op.type == "matmul" else len(constants["weight"])


def _axis_of_matmul(op: Op) -> int:
    return -2 if number(op.inputs.get("transpose_y")) else -1
