"""Repairs of shapes: wide heads in parts, prefix sums as products."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreflow.export.engine.placement import place
from coreflow.export.engine.repair.heads import split_heads
from coreflow.export.engine.repair.prefix_sums import prefix_sums_as_products
from coreflow.export.engine.repair.rewrite import Builder
from coreflow.export.engine.support import support
from coreflow.export.package.graph import Graph, Value
from coreflow.models.arrays import Array
from tests.export.engine.repair.law import drawn, facts, graph_of, repaired, types

M1 = facts(target="M1/macOS14")


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def on_engine(graph: Graph, op_type: str) -> list[bool]:
    return [support(op.features, M1.target).engine for op in place(graph, M1.target).ops if op.type == op_type]


@pytest.mark.parametrize("kind", ["linear", "conv", "matmul", "matmul of a transpose"])
def test_heads_beyond_an_axis_are_split(kind: str) -> None:
    axis_limit = M1.target.limits.outer_extent if kind == "conv" else M1.target.limits.extent
    count = 2 * axis_limit + 7

    def body(new: Builder, x: Value) -> Value:
        if kind == "linear":
            return new("linear", x=x, weight=normal(count, 4), bias=normal(count, seed=1), shape=(3, count))
        if kind == "conv":
            return new("conv", x=x, weight=normal(count, 4, 1, 1), bias=normal(count, seed=1), shape=(1, count, 1, 2))
        if kind == "matmul":
            return new("matmul", x=x, y=normal(4, count), transpose_x=False, transpose_y=False, shape=(3, count))
        return new("matmul", x=x, y=normal(count, 4), transpose_x=False, transpose_y=True, shape=(3, count))

    shape = (1, 4, 1, 2) if kind == "conv" else (3, 4)
    op_type = kind.partition(" ")[0]
    graph = graph_of(body, x=shape)
    assert not any(on_engine(graph, op_type))
    after = repaired(graph, split_heads, {"x": normal(*shape)}, M1)
    assert types(after) == [op_type] * 3 + ["concat"]
    assert all(on_engine(after, op_type))


@drawn
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple), st.data(), st.booleans(), st.booleans())
def test_prefix_sums_are_the_same_functions(shape: tuple[int, ...], data: st.DataObject, exclusive: bool, reverse: bool) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    graph = graph_of(lambda new, x: new("cumsum", x=x, axis=axis, exclusive=exclusive, reverse=reverse), x=shape)
    after = repaired(graph, prefix_sums_as_products, {"x": normal(*shape)})
    assert "matmul" in types(after) and all(on_engine(after, "matmul")) and not any(on_engine(graph, "cumsum"))


def test_a_prefix_sum_that_is_too_long_or_whole_is_left() -> None:
    for shape in ((1, 1025), ("int32", (1, 8))):
        graph = graph_of(lambda new, x: new("cumsum", x=x, axis=-1, exclusive=False, reverse=False), x=shape)
        assert prefix_sums_as_products(graph, facts()) is graph
