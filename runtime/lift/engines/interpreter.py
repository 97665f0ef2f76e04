"""Walks a graph, calls the lowerings, rounds what the numerics say, and lets dead values go."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from coreflow.export.package.graph import Graph, Value
from coreflow.runtime.lift.numerics.plain import HalfStorage, Numerics
from coreflow.runtime.lift.plan.compiled import StraightPlan
from coreflow.runtime.lift.plan.cpu import CpuPlanner
from coreflow.runtime.lift.plan.planner import Observer, Plan, Planner, load_lowerings, walk

__all__ = ["Interpreter", "Observer", "load_lowerings"]


class Interpreter:
    """Executes one function of a program; everything that can be decided before a prediction is decided before the first one.

    fp16 on a CPU has two plans: one whose ops can be looked at one by one, before and after their rounding, and one with less work for
    everybody else. They round alike; a product of one row is summed in another order and may differ in a last bit.
    """

    name = "interpreter"

    def __init__(self, graph: Graph, numerics: Numerics, device: str | torch.device = "cpu", package: str = "program") -> None:
        self.graph = graph
        self.numerics = numerics
        self.device = torch.device(device)
        self._package = package
        self._on_cpu = self.device.type == "cpu" and numerics.dtype == torch.float32
        self._closed  # noqa: B018 (what cannot be executed is to be refused now)

    @property
    def plan(self) -> Plan:
        """The plan whose ops can be looked at."""
        return self._open.plan

    def rest(self) -> None:
        """Lets the plans go, and the weights with them, until they are needed again."""
        for name in ("_open", "_closed", "_straight"):
            vars(self).pop(name, None)

    def run(self, inputs: Mapping[str, Any], observe: Observer | None = None) -> dict[str, Any]:
        """The outputs by name, floats in fp16 or the numerics' dtype. ``inputs`` holds a tensor or a state for every input of the graph.

        ``observe`` sees every op right after it ran, with its rounded results in the numerics' dtype, in execution order.
        """
        planner = self._closed if observe is None else self._open
        values = [_stored(inputs[value.name], value, planner) for value in self.graph.inputs]
        with torch.inference_mode():
            if observe is None and self._straight is not None:
                results = self._straight(values)
            else:
                results = walk(planner.plan, planner.environment.copy(), values, self._package, observe)
        return {value.name: result for value, result in zip(self.graph.outputs, results, strict=True)}

    def environment(self, inputs: Mapping[str, Any]) -> list[Any]:
        """What a walk over ``plan`` starts from: every constant and every input in its slot."""
        environment = self._open.environment.copy()
        for slot, value in zip(self.plan.inputs, self.graph.inputs, strict=True):
            environment[slot] = _stored(inputs[value.name], value, self._open)
        return environment

    @cached_property
    def _open(self) -> Planner:
        """For who looks at ops."""
        if self._on_cpu:
            return CpuPlanner(self.graph, self.numerics, self._package)
        return Planner(self.graph, self.numerics, self.device, self._package)

    @cached_property
    def _closed(self) -> Planner:
        """For everybody else."""
        if self._on_cpu and isinstance(self.numerics, HalfStorage):
            return CpuPlanner(self.graph, self.numerics, self._package, halves=True)
        return self._open

    @cached_property
    def _straight(self) -> StraightPlan | None:
        """The closed plan as one function; None for one with control flow."""
        plan = self._closed.plan
        if any(step.blocks for step in plan.steps):
            return None
        return StraightPlan(plan, self._closed.environment, self._package)


def _stored(given: Any, value: Value, planner: Planner) -> Any:
    """An input as the plan has values of its type."""
    if not isinstance(given, Tensor) or not given.is_floating_point():
        return given
    dtype = planner.stored_as(value)
    return given if given.dtype == dtype else given.to(dtype)
