"""Walks a graph, calls the lowerings, rounds what the numerics say, and lets dead values go."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from coreflow.export.program import Graph, Value
from coreflow.runtime.lift.cpu import CpuPlanner
from coreflow.runtime.lift.numerics import Numerics
from coreflow.runtime.lift.plan import Observer, Plan, Planner, load_lowerings, walk

__all__ = ["Interpreter", "Observer", "load_lowerings"]


class Interpreter:
    """Executes one function of a program; everything that can be decided before a prediction is decided before the first one.

    It has two plans: the plain one, whose ops can be looked at one by one, and on a CPU the one of ``CpuPlanner`` for everybody else. They
    round alike; what the second sums in another order may differ in a last bit.
    """

    name = "interpreter"

    def __init__(self, graph: Graph, numerics: Numerics, device: str | torch.device = "cpu", package: str = "program") -> None:
        self.graph = graph
        self.numerics = numerics
        self.device = torch.device(device)
        self._package = package
        fast = self.device.type == "cpu" and numerics.dtype == torch.float32
        self._planner: Planner = CpuPlanner(graph, numerics, package) if fast else self._plain

    @property
    def plan(self) -> Plan:
        """The plain plan."""
        return self._plain.plan

    def run(self, inputs: Mapping[str, Any], observe: Observer | None = None) -> dict[str, Any]:
        """The outputs by name, floats in fp16 or the numerics' dtype. ``inputs`` holds a tensor or a state for every input of the graph.

        ``observe`` sees every op of the plain plan right after it ran, with its rounded results, in execution order.
        """
        planner = self._planner if observe is None else self._plain
        values = [self._stored(inputs[value.name], value, planner) for value in self.graph.inputs]
        with torch.inference_mode():
            results = walk(planner.plan, planner.environment.copy(), values, self._package, observe)
        return {value.name: result for value, result in zip(self.graph.outputs, results, strict=True)}

    def environment(self, inputs: Mapping[str, Any]) -> list[Any]:
        """What a walk over ``plan`` starts from: every constant and every input in its slot."""
        environment = self._plain.environment.copy()
        for slot, value in zip(self.plan.inputs, self.graph.inputs, strict=True):
            environment[slot] = self._stored(inputs[value.name], value, self._plain)
        return environment

    @cached_property
    def _plain(self) -> Planner:
        return Planner(self.graph, self.numerics, self.device, self._package)

    def _stored(self, given: Any, value: Value, planner: Planner) -> Any:
        """An input as the plan has values of its type."""
        return given.to(planner.stored_as(value)) if isinstance(given, Tensor) and given.is_floating_point() else given
