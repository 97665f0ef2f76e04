"""The engine for every program: it runs the lowerings op by op, and shows each to an observer."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from coreflow.export.package.graph import Graph
from coreflow.runtime.lift.numerics.engine import EngineNumerics
from coreflow.runtime.lift.numerics.half import Fp16Storage
from coreflow.runtime.lift.numerics.plain import Numerics
from coreflow.runtime.lift.plan.compiled import CompiledPlan
from coreflow.runtime.lift.plan.cpu import CpuPolicy
from coreflow.runtime.lift.plan.plan import Environment, Observer, Plan
from coreflow.runtime.lift.plan.planner import Planner
from coreflow.runtime.lift.plan.policy import GeneralPolicy


class Interpreter:
    """Executes one function of a program op by op, by a plan that is made before the first prediction.

    >>> interpreter = Interpreter(graph, numerics_named("fp16"), package="encoder.mlpackage")
    >>> interpreter.run({"ids": ids, "mask": mask})["surface"]
    >>> interpreter.run({"ids": ids, "mask": mask}, observe=lambda op, results: print(op.name))

    fp16 on a CPU has a plan for observed runs and another for unobserved ones. They round alike; a product of one row is summed in another
    order and may differ in a last bit.
    """

    name = "interpreter"

    def __init__(self, graph: Graph, numerics: Numerics, device: str | torch.device = "cpu", package: str = "program") -> None:
        self.graph = graph
        self.numerics = numerics
        self.device = torch.device(device)
        self._package = package
        # The policy of the CPU has functions of its own, for numbers that are rounded as on a CPU.
        self._on_cpu = self.device.type == "cpu" and numerics.dtype == torch.float32 and not isinstance(numerics, EngineNumerics)
        self._unobserved_plan  # noqa: B018 (what cannot be executed is to be refused now)

    def rest(self) -> None:
        """Frees the plans and their weights; the next run plans again."""
        for name in ("plan", "_unobserved_plan", "_compiled_plan"):
            vars(self).pop(name, None)

    def run(self, inputs: Mapping[str, Any], observe: Observer | None = None) -> dict[str, Any]:
        """The outputs by name, floats in fp16 or the numerics' dtype. ``inputs`` holds a tensor or a state for every input of the graph.

        ``observe`` sees every op right after it ran, with its rounded results in the numerics' dtype, in execution order.
        """
        plan = self._unobserved_plan if observe is None else self.plan
        values = plan.stored([inputs[value.name] for value in self.graph.inputs])
        with torch.inference_mode():
            if observe is None and self._compiled_plan is not None:
                results = self._compiled_plan(values)
            else:
                results = plan.run(plan.constants.copy(), values, observe)
        return {value.name: result for value, result in zip(self.graph.outputs, results, strict=True)}

    def environment(self, inputs: Mapping[str, Any]) -> Environment:
        """The environment that a run of ``plan`` starts from: every constant and every input in its slot."""
        environment = self.plan.constants.copy()
        for slot, value in zip(self.plan.inputs, self.plan.stored([inputs[value.name] for value in self.graph.inputs]), strict=True):
            environment[slot] = value
        return environment

    @cached_property
    def plan(self) -> Plan:
        """Plan for observed runs: every result before and after rounding."""
        policy = CpuPolicy(self.graph, self.numerics) if self._on_cpu else GeneralPolicy(self.numerics, self.device)
        return Planner(self.graph, policy, self._package).plan()

    @cached_property
    def _unobserved_plan(self) -> Plan:
        """Plan for unobserved runs: fp16 in memory, fewer casts."""
        if not self._on_cpu or not isinstance(self.numerics, Fp16Storage):
            return self.plan
        return Planner(self.graph, CpuPolicy(self.graph, self.numerics, fp16_storage=True), self._package).plan()

    @cached_property
    def _compiled_plan(self) -> CompiledPlan | None:
        """The plan for unobserved runs as one function; None for one with control flow."""
        plan = self._unobserved_plan
        return None if any(step.blocks for step in plan.steps) else CompiledPlan(plan)
