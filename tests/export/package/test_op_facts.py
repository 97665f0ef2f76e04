"""The table of facts is whole, says everything once, and is true where that can be tried."""

import ast
import inspect
from collections import Counter

import numpy as np
import pytest
import torch

from coreflow.export.package import op_facts
from coreflow.export.package.graph import Op, Value
from coreflow.export.package.op_facts import FACTS, OpFacts, facts_of
from coreflow.runtime.lift.registry import Lowering, load_lowerings, supported_ops

load_lowerings()
NEWEST: dict[str, Lowering] = {op: versions[-1] for op, versions in supported_ops().items()}


def test_every_entry_is_of_an_op_with_a_lowering_and_says_something() -> None:
    assert FACTS.keys() <= NEWEST.keys()
    assert [op for op, facts in FACTS.items() if facts == OpFacts()] == []


def test_an_op_that_is_not_listed_is_rounded() -> None:
    """Which is right of every op; an entry that is forgotten costs time or an explanation, never a result."""
    assert "tanh" in NEWEST and "tanh" not in FACTS
    assert not facts_of("tanh").rounds_nothing


def test_no_op_is_listed_twice() -> None:
    (table,) = (
        node.value
        for node in ast.parse(inspect.getsource(op_facts)).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "FACTS"
    )
    assert isinstance(table, ast.Dict)
    listed = Counter(
        op
        for key, value in zip(table.keys, table.values, strict=True)
        for op in ast.literal_eval(key if key is not None else value.args[0]).split()  # type: ignore[attr-defined]
    )
    assert listed.total() == len(FACTS) and set(listed.values()) == {1}


def test_nothing_is_said_of_an_op_that_is_not_listed() -> None:
    assert facts_of("wonder") == OpFacts()


NOTHING_ROUNDED = {op: entry for op, entry in NEWEST.items() if facts_of(op).rounds_nothing}
ONE_TENSOR = [op for op, entry in NOTHING_ROUNDED.items() if entry.required == {"x"} and entry.forms["x"] == "tensor"]
TWO_TENSORS = [op for op, entry in NOTHING_ROUNDED.items() if entry.required == {"x", "y"}]
EVERY = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
FINITE = EVERY[torch.isfinite(EVERY)].float()


@pytest.mark.parametrize("op", [*ONE_TENSOR, *TWO_TENSORS])
def test_ops_that_round_nothing_give_fp16_numbers(op: str) -> None:
    x = FINITE[: len(FINITE) // 16 * 16].reshape(-1, 1, 4, 4)
    arguments = {"x": x} if op in ONE_TENSOR else {"x": x, "y": x.flip(0)}
    results = NEWEST[op].function(**arguments)
    for result in results if isinstance(results, tuple) else (results,):
        if result.is_floating_point():
            assert torch.equal(result, result.half().float())


def test_the_ops_that_are_tried_are_some_of_every_kind() -> None:
    assert {"abs", "floor", "relu", "reduce_max", "identity", "flatten2d"} <= {*ONE_TENSOR}
    assert {"maximum", "minimum"} <= {*TWO_TENSORS}


def value(name: str, *shape: int, data: object = None) -> Value:
    return Value(name, "float16", shape, data=None if data is None else np.array(data))


TERMS: list[tuple[str, dict[str, Value], int]] = [
    ("linear", {"x": value("x", 3, 8), "weight": value("w", 5, 8)}, 8),
    ("conv", {"x": value("x", 1, 6, 9, 9), "weight": value("w", 4, 6, 3, 3)}, 54),
    ("matmul", {"x": value("x", 2, 7), "y": value("y", 7, 3)}, 7),
    ("scaled_dot_product_attention", {"query": value("q", 1, 4, 16)}, 16),
    ("reduce_mean", {"x": value("x", 2, 3, 4), "axes": value("axes", 2, data=[1, -1])}, 12),
    ("softmax", {"x": value("x", 2, 3, 4), "axis": value("axis", data=-1)}, 4),
    ("avg_pool", {"x": value("x", 2, 3, 4)}, 24),
    ("reduce_sum", {"x": value("x")}, 1),
    ("add", {"x": value("x", 2, 3), "y": value("y", 2, 3)}, 1),
]


@pytest.mark.parametrize(("op", "inputs", "terms"), TERMS, ids=[case[0] for case in TERMS])
def test_terms_are_those_of_one_sum(op: str, inputs: dict[str, Value], terms: int) -> None:
    assert facts_of(op).terms(Op(op, "op", inputs, ())) == terms
