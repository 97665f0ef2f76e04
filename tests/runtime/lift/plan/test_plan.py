"""A plan: what a step leaves where, which steps a walk gives, and what a policy decides."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from coreflow.export.package.graph import Graph, Op, Value
from coreflow.models.errors import BundleError, UnsupportedError
from coreflow.runtime.lift.numerics.named import numerics_named
from coreflow.runtime.lift.plan.arguments import Constants
from coreflow.runtime.lift.plan.plan import Plan, Step
from coreflow.runtime.lift.plan.planner import Planner
from coreflow.runtime.lift.plan.policy import GeneralPolicy

CPU = torch.device("cpu")
X, Y, Z = (Value(name, "float16", (2,)) for name in "xyz")
ONE = Value("one", "float16", (), data=np.asarray(1, np.float16))
PRED = Value("pred", "bool", ())


def planned(graph: Graph, numerics: str = "fp16") -> Plan:
    return Planner(graph, GeneralPolicy(numerics_named(numerics), CPU), "package").plan()  # type: ignore[arg-type]


def increments() -> Graph:
    ops = Op("add", "first", {"x": X, "y": ONE}, (Y,)), Op("add", "second", {"x": Y, "y": ONE}, (Z,))
    return Graph("main", "CoreML8", (X,), (Z,), ops, ())


def branches() -> Graph:
    """``x`` + 1 or ``x`` * 1, as blocks of a condition."""
    blocks = []
    for kind in ("add", "mul"):
        result = Value(kind, "float16", (2,))
        blocks.append(Graph(kind, "CoreML8", (), (result,), (Op(kind, f"the {kind}", {"x": X, "y": ONE}, (result,)),), ()))
    return Graph("main", "CoreML8", (X, PRED), (Y,), (Op("cond", "choice", {"pred": PRED}, (Y,), tuple(blocks)),), ())


class TestStep:
    def test_a_call_returns_results_before_rounding_and_leaves_them_rounded(self) -> None:
        plan = planned(increments())
        step, environment = plan.steps[0], plan.constants.copy()
        (slot,) = step.sources()
        environment[slot] = torch.tensor([2048.0, 0.5])  # 2049 lies between two numbers of fp16, and goes to the even one
        (raw,) = step.call(environment)
        (rounded,) = step.results(environment)
        assert raw.tolist() == [2049.0, 1.5] and rounded.tolist() == [2048.0, 1.5]

    def test_values_are_freed_after_their_last_read(self) -> None:
        plan = planned(increments())
        environment = plan.constants.copy()
        environment[plan.inputs[0]] = torch.zeros(2)
        plan.steps[0].call(environment)
        plan.steps[0].free(environment)
        assert environment[plan.inputs[0]] is None
        assert plan.steps[0].results(environment)[0] is not None

    @pytest.mark.parametrize("pred", [True, False])
    def test_a_failure_names_the_op_that_failed_and_not_the_one_around_it(self, pred: bool) -> None:
        plan = planned(branches())
        with pytest.raises(UnsupportedError, match=f"package: {'add' if pred else 'mul'} 'the {'add' if pred else 'mul'}' cannot be exec"):
            plan.run(plan.constants.copy(), ["no tensor", torch.tensor(pred)])


class TestPlan:
    @pytest.mark.parametrize(("pred", "result"), [(True, [3.0, 4.0]), (False, [2.0, 3.0])])
    def test_a_run_takes_one_branch_and_a_walk_gives_both(self, pred: bool, result: list[float]) -> None:
        plan = planned(branches())
        seen: list[str] = []
        (actual,) = plan.run(
            plan.constants.copy(), plan.stored([torch.tensor([2, 3.0]), torch.tensor(pred)]), lambda op, _: seen.append(op.name)
        )
        assert actual.tolist() == result
        assert seen == ["the add" if pred else "the mul", "choice"]
        assert [step.op.name for step in plan.walk()] == ["choice", "the add", "the mul"]

    def test_the_reads_of_an_op_include_those_of_its_blocks(self) -> None:
        graph = branches()
        (op,) = graph.ops
        assert [value.name for value in op.input_values()] == ["pred"]
        assert [value.name for value in op.reads()] == ["pred", "add", "x", "one", "mul", "x", "one"]

    def test_inputs_are_stored_in_the_dtype_of_the_plan_and_others_stay(self) -> None:
        buffer = object()
        plan = planned(branches(), "fp64")
        stored = plan.stored([torch.zeros(2), buffer])
        assert stored[0].dtype == torch.float64 and stored[1] is buffer


class TestPolicy:
    def test_decides_storage_and_the_function_of_a_step(self) -> None:
        class Doubling(GeneralPolicy):
            def storage(self, op: Op | None, value: Value) -> torch.dtype:
                return torch.float64 if op is not None and op.name == "second" else torch.float32

            def finish(self, step: Step) -> Step:
                return replace(step, function=lambda x, y: 2 * step.function(x=x, y=y))

        plan = Planner(increments(), Doubling(numerics_named("fp32"), CPU)).plan()
        assert [step.fixed["y"].dtype for step in plan.steps] == [torch.float32, torch.float64]
        assert plan.run(plan.constants.copy(), [torch.zeros(2)])[0].tolist() == [6.0, 6.0]


class TestConstants:
    def test_are_made_once_for_every_dtype(self) -> None:
        constants = Constants(CPU, "package", copies=False)
        first = constants.tensor(ONE, torch.float32)
        assert constants.tensor(ONE, torch.float32) is first
        assert constants.tensor(ONE, torch.float64) is not first
        assert [(tensor.dtype, name) for tensor, name in constants.named()] == [(torch.float32, "one"), (torch.float64, "one")]

    @pytest.mark.parametrize("copies", [False, True])
    def test_share_the_memory_of_the_file_unless_they_are_copies(self, copies: bool) -> None:
        data = np.ones(2, np.float32)
        constants = Constants(CPU, "package", copies=copies)
        value = Value("w", "float32", (2,), data=data)
        assert np.shares_memory(constants.tensor(value, torch.float32).numpy(), data) is not copies
        assert np.shares_memory(constants.tensor(value, None).numpy(), data)

    def test_results_of_constant_expressions_are_constants(self) -> None:
        constants = Constants(CPU, "package", copies=False)
        assert Y not in constants
        constants.add(Y, torch.ones(2))
        assert Y in constants and constants.tensor(Y, torch.float16).dtype == torch.float16

    def test_a_string_is_no_tensor(self) -> None:
        mode = Value("", "string", (), data="same")
        with pytest.raises(BundleError, match="package: conv 'c', argument 'pad' needs a tensor and is 'same'"):
            Constants(CPU, "package", copies=False).tensor(mode, torch.float32, Op("conv", "c", {}, ()), "pad")
