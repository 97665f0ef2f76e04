"""Small whole numbers in fp16: the same function, with one cast on the CPU."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coreflow.export.engine.features import features_of
from coreflow.export.engine.repair.integers import integers_as_fp16
from coreflow.export.engine.repair.rewrite import Builder
from coreflow.export.engine.support import support
from coreflow.export.package.graph import Graph, Value
from tests.export.engine.repair.law import drawn, facts, graph_of, repaired, types

OPS = ("add", "sub", "mul", "maximum", "minimum")


def mask_of(chain: list[tuple[str, int]], comparison: str) -> Graph:
    def body(new: Builder, ids: Value) -> Value:
        for op_type, number in chain:
            ids = new(op_type, x=ids, y=number)
        kept = new(comparison, x=new("expand_dims", x=ids, axes=(1,), shape=(2, 1, 3)), y=1, as_dtype="bool")
        return new("cast", x=kept, dtype="fp16", as_dtype="float16")

    return graph_of(body, ids=("int32", (2, 3)))


def on_cpu(graph: Graph) -> list[str]:
    return [op.type for op, features in features_of(graph) if not support(features, facts().target).engine]


@drawn
@given(
    st.lists(st.tuples(st.sampled_from(OPS), st.integers(-3, 3)), max_size=4),
    st.sampled_from(["equal", "not_equal", "greater", "greater_equal", "less", "less_equal"]),
    st.integers(0, 20),
)
def test_masks_of_small_numbers_are_made_on_the_engine(chain: list[tuple[str, int]], comparison: str, highest: int) -> None:
    inputs: dict[str, Any] = {"ids": np.random.default_rng(0).integers(0, highest + 1, (2, 3)).astype(np.int32)}
    after = repaired(mask_of(chain, comparison), integers_as_fp16, inputs, facts(bounds={"ids": (0, highest)}))
    assert on_cpu(after) == ["cast"]


def test_numbers_that_fp16_rounds_stay_whole() -> None:
    graph = mask_of([("add", 1)], "equal")
    assert integers_as_fp16(graph, facts(bounds={"ids": (0, 2048)})) is graph
    assert integers_as_fp16(graph, facts()) is graph


def test_numbers_that_a_look_up_needs_stay_whole() -> None:
    table = np.ones((9, 2), np.float16)

    def body(new: Builder, ids: Value) -> Value:
        return new("gather", x=table, indices=new("add", x=ids, y=1), axis=0, shape=(2, 3, 2), as_dtype="float16")

    graph = graph_of(body, ids=("int32", (2, 3)))
    assert integers_as_fp16(graph, facts(bounds={"ids": (0, 5)})) is graph


def test_a_result_that_is_read_as_fp16_needs_no_cast_of_its_own() -> None:
    def body(new: Builder, ids: Value) -> Value:
        return new("cast", x=new("mul", x=ids, y=2), dtype="fp16", as_dtype="float16")

    inputs: dict[str, Any] = {"ids": np.arange(6, dtype=np.int32).reshape(2, 3)}
    after = repaired(graph_of(body, ids=("int32", (2, 3))), integers_as_fp16, inputs, facts(bounds={"ids": (0, 5)}))
    assert types(after) == ["cast", "mul", "identity"]
