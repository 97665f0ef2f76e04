"""Walks a graph, calls the lowerings, rounds what the numerics say, and lets dead values go."""

from collections.abc import Mapping
from typing import Any

import torch

from coreflow.export.program import Graph
from coreflow.runtime.lift.numerics import Numerics
from coreflow.runtime.lift.plan import Observer, Plan, Planner, load_lowerings, walk

__all__ = ["Interpreter", "Observer", "load_lowerings"]


class Interpreter:
    """Executes one function of a program; everything that can be decided before a prediction is decided when it is made."""

    name = "interpreter"

    def __init__(self, graph: Graph, numerics: Numerics, device: str | torch.device = "cpu", package: str = "program") -> None:
        self.graph = graph
        self.numerics = numerics
        self.device = torch.device(device)
        self._package = package
        planner = Planner(graph, numerics, self.device, package)
        self.plan: Plan = planner.plan
        self._environment = planner.environment

    def run(self, inputs: Mapping[str, Any], observe: Observer | None = None) -> dict[str, Any]:
        """The outputs by name. ``inputs`` holds a tensor (floats in the numerics' dtype) or a state for every input of the graph.

        ``observe`` sees every op right after it ran, with its rounded results, in execution order.
        """
        values = [inputs[value.name] for value in self.graph.inputs]
        with torch.inference_mode():
            results = walk(self.plan, self._environment.copy(), values, self._package, observe)
        return {value.name: result for value, result in zip(self.graph.outputs, results, strict=True)}

    def environment(self, inputs: Mapping[str, Any]) -> list[Any]:
        """What a walk over ``plan`` starts from: every constant and every input in its slot."""
        environment = self._environment.copy()
        for slot, value in zip(self.plan.inputs, self.graph.inputs, strict=True):
            environment[slot] = inputs[value.name]
        return environment
