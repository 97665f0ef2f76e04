"""Multiply-adds of one call of an op, and terms of one sum, from the shapes that the package declares."""

import math

import numpy as np

from coreflow.export.package.graph import Op, Shape, Value


def count_elements(shape: Shape | None) -> int | None:
    """Elements of a shape; None where an extent is open."""
    if shape is None:
        return None
    known = [extent for extent in shape if extent is not None]
    return math.prod(known) if len(known) == len(shape) else None


def _product(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return math.prod(known) if len(known) == len(counts) else None


def _shape_of(op: Op, name: str) -> Shape | None:
    value = op.inputs.get(name)
    return value.shape if isinstance(value, Value) else None


def _result_elements(op: Op) -> int | None:
    """Elements of the first result; None for an op that declares none."""
    return count_elements(op.outputs[0].shape) if op.outputs else None


def _is_set(op: Op, name: str) -> bool:
    value = op.inputs.get(name)
    return isinstance(value, Value) and isinstance(value.data, np.ndarray) and bool(value.data.reshape(-1)[0])


def linear_multiply_adds(op: Op) -> int | None:
    """Elements of the result times the length of a row of the weight."""
    weight = _shape_of(op, "weight")
    return _product(_result_elements(op), weight[-1] if weight else None)


def matmul_multiply_adds(op: Op) -> int | None:
    """Elements of the result times the extent that is summed over."""
    x = _shape_of(op, "x")
    summed = None if not x else x[-2] if len(x) > 1 and _is_set(op, "transpose_x") else x[-1]
    return _product(_result_elements(op), summed)


def conv_multiply_adds(op: Op) -> int | None:
    """Elements of the result times those of one filter: C_in / groups x kernel."""
    weight = _shape_of(op, "weight")
    return _product(_result_elements(op), count_elements(weight[1:]) if weight else None)


def conv_transpose_multiply_adds(op: Op) -> int | None:
    """Elements of x times C_out / groups x kernel: before anything is cut off the result."""
    weight = _shape_of(op, "weight")
    return _product(count_elements(_shape_of(op, "x")), count_elements(weight[1:]) if weight else None)


def einsum_multiply_adds(op: Op) -> int | None:
    """The product of the extents of all labels."""
    values, equation = op.inputs.get("values"), op.inputs.get("equation")
    if not isinstance(values, tuple) or not isinstance(equation, Value) or not isinstance(equation.data, str):
        return None
    extents: dict[str, int] = {}
    for labels, value in zip(equation.data.split("->")[0].replace(" ", "").split(","), values, strict=False):
        if value.shape is None or len(labels) != len(value.shape):
            return None
        for label, extent in zip(labels, value.shape, strict=True):
            if extent is None:
                return None
            extents[label] = max(extent, extents.get(label, 1))  # an extent of 1 is broadcast
    return math.prod(extents.values())


def attention_multiply_adds(op: Op) -> int | None:
    """query x key and weights x value; the softmax has none."""
    query, value = _shape_of(op, "query"), _shape_of(op, "value")
    if not query or not value or len(value) < 2 or value[-1] is None or query[-1] is None:
        return None
    return _product(count_elements(query[:-1]), value[-2], query[-1] + value[-1])


def recurrent_multiply_adds(op: Op) -> int | None:
    """Every step of every sample meets every weight once."""
    x = _shape_of(op, "x")
    weights = [count_elements(_shape_of(op, name)) for name in op.inputs if name.startswith(("weight_ih", "weight_hh"))]
    total = None if None in weights else sum(weight for weight in weights if weight is not None)
    return _product(count_elements(x[:2]) if x else None, total)


def one_term(op: Op) -> int:
    """1: the op computes element by element."""
    return 1


def weight_terms(op: Op) -> int:
    """Elements of the weight for one extent of its first axis: a row of a matrix, a filter of a convolution."""
    weight = _shape_of(op, "weight")
    return _closed_product(weight) // max(weight[0] or 1, 1) if weight is not None and len(weight) > 1 else 1


def row_terms(op: Op) -> int:
    """The last extent of the first operand."""
    first = _shape_of(op, "x") or _shape_of(op, "query") or next((value.shape for value in op.input_values()), None)
    return (first[-1] or 1) if first else 1


def reduced_terms(op: Op) -> int:
    """The extents of ``x`` along ``axes`` or ``axis``; of all axes where the op names none."""
    x = _shape_of(op, "x")
    if not x:
        return 1
    axes = op.inputs.get("axes") or op.inputs.get("axis")
    places = axes.data if isinstance(axes, Value) and axes.data is not None else range(len(x))
    reduced = [int(place) for place in np.reshape(places, -1)]  # type: ignore[arg-type]
    return _closed_product(tuple(x[place] for place in reduced if -len(x) <= place < len(x)))


def _closed_product(shape: Shape) -> int:
    """The product of the extents, of open ones as 1."""
    return math.prod(extent or 1 for extent in shape)
