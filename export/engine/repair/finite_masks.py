"""Masks that stay finite in fp16, also where two of them add up."""

import numpy as np

from coreflow.export.engine.repair.facts import Facts
from coreflow.export.engine.repair.rewrite import Uses
from coreflow.export.package.graph import Graph, Value

FINITE = 3e4  # two of them, of a causal mask and one of padding, add up within fp16
_INFINITE = 5e4  # no score is as large, and with another mask it may add up to infinity
# What may lie between a constant and the softmax that it masks. Of attention the mask ends there.
_BETWEEN = {
    "add", "sub", "mul", "select", "maximum", "minimum", "cast", "fill", "tile", "reshape", "expand_dims", "squeeze", "transpose",
    "slice_by_index", "slice_by_size", "split", "concat", "gather", "identity", "band_part",
}  # fmt: skip
_ENDS = {"softmax", "scaled_dot_product_attention"}


def finite_masks(graph: Graph, facts: Facts) -> Graph:
    """Numbers that stand for minus infinity before a softmax, finite.

    Given::

        %y = softmax(x=%scores + (1 - %mask) * -inf)

    Result::

        %y = softmax(x=%scores + (1 - %mask) * -3e4)

    Zero times infinity is NaN, minus infinity is "not handled correctly" by softmax on the engine (coreai-models), and -65504 and another
    mask add up to it. A row of which everything is masked is NaN with infinite masks; with finite ones it is the softmax of the scores.
    """
    uses = Uses(graph)
    constants = {id(value): value for op in graph.walk() for value in op.reads() if _is_infinite(value)}
    others = {key: _finite(value) for key, value in constants.items() if _only_masks(value, uses)}
    return graph.with_values(others) if others else graph


def _is_infinite(value: Value) -> bool:
    data = value.data
    if not isinstance(data, np.ndarray) or data.dtype.kind != "f" or not data.size:
        return False
    return bool(max(abs(float(data.min())), abs(float(data.max()))) >= _INFINITE)  # false of NaN


def _finite(value: Value) -> Value:
    data = np.asarray(value.data)
    finite = np.where(np.abs(data) >= _INFINITE, np.copysign(data.dtype.type(FINITE), data), data)
    return Value(value.name, value.dtype, value.shape, data=finite.astype(data.dtype))


def _only_masks(value: Value, uses: Uses) -> bool:
    """Whether everything that is computed from ``value`` ends in a softmax."""
    open_values, seen = [value], {id(value)}
    while open_values:
        current = open_values.pop()
        if uses.is_output(current) or not uses.readers(current):
            return False
        for op in uses.readers(current):
            if op.type in _ENDS:
                continue
            if op.type not in _BETWEEN or op.blocks:
                return False
            fresh = [result for result in op.outputs if id(result) not in seen]
            seen |= {id(result) for result in fresh}
            open_values += fresh
    return True
