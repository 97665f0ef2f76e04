"""The backend that executes a saved program anywhere, with torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from coreflow.export.program import Program
from coreflow.models.errors import UnsupportedError
from coreflow.models.spec import TensorSpec
from coreflow.runtime.backend import Array, State
from coreflow.runtime.interface import checked_inputs, input_specs, output_specs, program_metadata, state_specs
from coreflow.runtime.lift.interpreter import Interpreter, Observer
from coreflow.runtime.lift.numerics import numerics_named

ENGINES = ("interpreter",)


class LiftedModel:
    """One function of a package, executed by the lowerings."""

    backend = "lifted"

    def __init__(
        self, program: Program, numerics: str = "fp16", device: str = "cpu", engine: str = "auto", function_name: str | None = None
    ) -> None:
        if engine not in ("auto", *ENGINES):
            raise UnsupportedError(f"engine {engine!r}; there are {', '.join(ENGINES)}, and auto takes the fastest")
        graph, self._interface = program.function(function_name)
        self.program = program
        self.engine = ENGINES[0]
        self.inputs: dict[str, TensorSpec] = input_specs(program, self._interface)
        self.outputs: dict[str, TensorSpec] = output_specs(program, graph, self._interface)
        self.states: dict[str, TensorSpec] = state_specs(program, self._interface)
        self.metadata: dict[str, Any] = program_metadata(program)
        self.interpreter = Interpreter(graph, numerics_named(numerics), _device(device, numerics), program.path.name)

    def predict(self, inputs: Mapping[str, Any], state: State | None = None, observe: Observer | None = None) -> dict[str, Any]:
        """The outputs by name, as ``coremltools.models.MLModel.predict`` returns them.

        Floats come back as float32 (float64 under fp64 numerics), integers as int32. ``observe`` sees every op and its results.
        """
        given = checked_inputs(inputs, self.inputs, self._interface)
        if state is not None or self.states:
            raise UnsupportedError(f"{self.program.path.name}: states are not executed yet")
        numerics, device = self.interpreter.numerics, self.interpreter.device
        tensors: dict[str, torch.Tensor] = {}
        for feature in self._interface.inputs:
            array = given.get(feature.name)
            if array is None:
                array = np.full(feature.shape, feature.default or 0.0, self.inputs[feature.name].dtype)
            tensor = torch.from_numpy(array).to(device)
            tensors[feature.name] = tensor.to(numerics.dtype) if tensor.is_floating_point() else tensor
        results = self.interpreter.run(tensors, observe)
        return {name: self._as_array(results[name], spec) for name, spec in self.outputs.items()}

    def make_state(self) -> State:
        """A fresh state, all zeros."""
        if not self.states:
            raise UnsupportedError(f"{self.program.path.name}: the program keeps no state")
        raise UnsupportedError(f"{self.program.path.name}: states are not executed yet")

    def _as_array(self, result: torch.Tensor, spec: TensorSpec) -> Array:
        """A fresh array: float32, float64 or int32."""
        wide = np.float64 if self.interpreter.numerics.dtype == torch.float64 else np.float32
        return np.array(result.cpu().numpy(), dtype=np.int32 if spec.dtype == "int32" else wide)


def _device(name: str, numerics: str) -> torch.device:
    """The device of that name, if this machine has it and it computes in what the numerics need."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UnsupportedError(f"device {name!r} is not available here") from error
    if device.type == "mps" and numerics == "fp64":
        raise UnsupportedError("numerics fp64 on mps: that device has no float64; use device='cpu'")
    return device
