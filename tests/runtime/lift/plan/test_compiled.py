"""A plan as one function: the walk's results, the walk's errors, and nothing kept longer than the walk keeps it."""

import weakref
from typing import Any

import numpy as np
import pytest
import torch

from coreflow.export.package.graph import Graph, Op, Value
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.lift.numerics.named import numerics_named
from coreflow.runtime.lift.plan.compiled import CompiledPlan
from coreflow.runtime.lift.plan.plan import Plan
from coreflow.runtime.lift.plan.planner import Planner
from coreflow.runtime.lift.plan.policy import GeneralPolicy


def floats(name: str, *shape: int | None) -> Value:
    return Value(name, "float32", shape)


def known(name: str, data: Any) -> Value:
    array = np.asarray(data)
    return Value(name, str(array.dtype), array.shape, data=array)


def planned(inputs: tuple[Value, ...], outputs: tuple[Value, ...], *ops: Op) -> Plan:
    graph = Graph("main", "CoreML8", inputs, outputs, ops, ())
    return Planner(graph, GeneralPolicy(numerics_named("fp32"), torch.device("cpu")), "package").plan()


def test_several_results_computed_shapes_and_constants_give_the_results_of_the_walk() -> None:
    x, first, second, joined, extent, again = (
        floats("x", 2, 6),
        *(floats(n, 2, 3) for n in "ab"),
        floats("c", 2, 6),
        Value("s", "int32", (2,)),
        floats("r", None, None),
    )
    plan = planned(
        (x,),
        (again, first, x),
        Op("split", "halves", {"x": x, "num_splits": known("n", np.int32(2)), "axis": known("axis", np.int32(1))}, (first, second)),
        Op("concat", "join", {"values": (second, first), "axis": known("axis", np.int32(1))}, (joined,)),
        Op("shape", "extents", {"x": joined}, (extent,)),
        Op("reshape", "same", {"x": joined, "shape": extent}, (again,)),
    )
    given = torch.randn(2, 6)
    results, references = CompiledPlan(plan)([given]), plan.run(plan.constants.copy(), [given])
    assert [r.tolist() for r in results] == [reference.tolist() for reference in references] and len(results) == 3
    assert results[2] is given
    np.testing.assert_array_equal(results[0].numpy(), np.roll(given.numpy(), 3, axis=1))


def test_a_split_into_one_is_no_tuple() -> None:
    x, y = floats("x", 2, 6), floats("y", 2, 6)
    op = Op("split", "whole", {"x": x, "num_splits": known("n", np.int32(1)), "axis": known("axis", np.int32(1))}, (y,))
    given = torch.randn(2, 6)
    assert torch.equal(CompiledPlan(planned((x,), (y,), op))([given])[0], given)


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_an_error_names_the_op_on_whose_line_it_arose(fails: int) -> None:
    values = [floats(name, None, None) for name in "abcd"]
    ops = [Op("add", f"op{i}", {"x": values[i], "y": values[i]}, (values[i + 1],)) for i in range(3)]
    other = floats("other", None, None)
    ops[fails] = Op("add", "wrong", {"x": values[fails], "y": other}, (values[fails + 1],))
    run = CompiledPlan(planned((values[0], other), (values[3],), *ops))
    assert run([torch.ones(2, 3), torch.ones(2, 3)])[0].shape == (2, 3)
    with pytest.raises(UnsupportedError, match="package: add 'wrong' cannot be executed: The size of tensor a"):
        run([torch.ones(2, 3), torch.ones(2, 5)])


def test_a_value_dies_with_the_last_op_that_reads_it() -> None:
    values = [floats(name, 4) for name in "abcd"]
    plan = planned((values[0],), (values[3],), *(Op("square", f"op{i}", {"x": values[i]}, (values[i + 1],)) for i in range(3)))
    alive: list[list[bool]] = []
    made: list[weakref.ref[torch.Tensor]] = []

    def seen(x: torch.Tensor) -> torch.Tensor:
        result = x * x
        alive.append([ref() is not None for ref in made])
        made.append(weakref.ref(result))
        return result

    for step in plan.steps:
        object.__setattr__(step, "function", seen)
    CompiledPlan(plan)([torch.ones(4)])
    assert alive == [[], [True], [False, True]]


def test_values_computed_from_constants_are_there_at_every_call() -> None:
    x, weight, y = floats("x", 2), floats("w", 2), floats("y", 4)
    parts = {"quantized_data": known("q", np.array([3, 5], np.int8)), "scale": known("scale", np.float32(0.5))}
    parts |= {"zero_point": known("zero", np.int8(1)), "axis": known("axis", np.int32(0))}
    ops = (
        Op("constexpr_affine_dequantize", "weight", parts, (weight,)),
        Op("concat", "join", {"values": (x, weight), "axis": known("axis", np.int32(0))}, (y,)),
    )
    run = CompiledPlan(planned((x,), (y,), *ops))
    for _ in range(2):
        assert run([torch.ones(2)])[0].tolist() == [1.0, 1.0, 1.0, 2.0]


def test_names_in_a_package_are_no_code() -> None:
    x, y = floats("x): import os #", 2), floats("y\n raise SystemExit", 2)
    run = CompiledPlan(planned((x,), (y,), Op("square", "'); raise SystemExit", {"x": x}, (y,))))
    assert run([torch.full((2,), 3.0)])[0].tolist() == [9.0, 9.0]
