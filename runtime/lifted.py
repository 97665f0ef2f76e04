"""The backend that executes a saved program anywhere, with torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from coreflow.export.program import Feature, Program
from coreflow.models.errors import InputError, UnsupportedError
from coreflow.models.spec import TensorSpec
from coreflow.runtime.backend import Array, State
from coreflow.runtime.interface import as_picture, checked_inputs, checked_state, input_specs, output_specs, program_metadata, state_specs
from coreflow.runtime.lift.interpreter import Interpreter, Observer
from coreflow.runtime.lift.numerics import numerics_named
from coreflow.runtime.lift.ops_state import StateBuffer

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
        self.inputs: dict[str, TensorSpec] = input_specs(program, graph, self._interface)
        self.outputs: dict[str, TensorSpec] = output_specs(program, graph, self._interface)
        self.states: dict[str, TensorSpec] = state_specs(program, self._interface)
        self.metadata: dict[str, Any] = program_metadata(program)
        self.interpreter = Interpreter(graph, numerics_named(numerics), _device(device, numerics), program.path.name)

    def predict(self, inputs: Mapping[str, Any], state: State | None = None, observe: Observer | None = None) -> dict[str, Any]:
        """The outputs by name, as ``coremltools.models.MLModel.predict`` returns them.

        Floats come back as float32 (float64 under fp64 numerics), integers as int32. ``observe`` sees every op and its results.
        """
        given = checked_inputs(inputs, self.inputs, self._interface)
        numerics, device = self.interpreter.numerics, self.interpreter.device
        tensors: dict[str, torch.Tensor | StateBuffer] = {}
        for feature in self._interface.inputs:
            array = given.get(feature.name)
            if array is None:
                array = np.full(feature.shape, feature.default or 0.0, self.inputs[feature.name].dtype)
            tensor = torch.from_numpy(array).to(device)
            tensors[feature.name] = tensor.to(numerics.dtype) if tensor.is_floating_point() else tensor
        held = self._state_of(state)
        # The program writes to copies: a prediction that fails leaves the state as it was.
        written = {name: StateBuffer(tensor) for name, tensor in held.items()}
        tensors.update(written)
        results = self.interpreter.run(tensors, observe)
        held.update((name, buffer.tensor) for name, buffer in written.items())
        return {feature.name: self._as_caller_sees(results[feature.name], feature) for feature in self._interface.outputs}

    def make_state(self) -> State:
        """A fresh state, all zeros."""
        if not self.states:
            raise UnsupportedError(f"{self.program.path.name}: the program keeps no state")
        return LiftedState(self.states, self.interpreter.numerics.dtype, self.interpreter.device)

    def _state_of(self, state: State | None) -> dict[str, torch.Tensor]:
        """The tensors of a state that fits this program; empty for a program that keeps none."""
        label = self.program.path.name
        if not self.states:
            if state is not None:
                raise InputError(f"{label}: the program keeps no state, and one was passed")
            return {}
        if state is None:
            raise InputError(f"{label}: keeps {', '.join(self.states)}; pass state=model.make_state()")
        if not isinstance(state, LiftedState) or state.specs != self.states:
            raise InputError(f"{label}: the state belongs to another program or backend; make it with this model's make_state()")
        return state.tensors

    def _as_caller_sees(self, result: Any, feature: Feature) -> Any:
        """A fresh array (float32, float64 or int32), a picture, or a classifier's label and probabilities as they are."""
        if not isinstance(result, torch.Tensor):
            return result
        if feature.kind == "image":
            return as_picture(result.cpu().numpy(), feature)
        wide = np.float64 if self.interpreter.numerics.dtype == torch.float64 else np.float32
        return np.array(result.cpu().numpy(), dtype=np.int32 if self.outputs[feature.name].dtype == "int32" else wide)


class LiftedState:
    """The states of one program as tensors, zeros at first."""

    def __init__(self, specs: Mapping[str, TensorSpec], dtype: torch.dtype, device: torch.device) -> None:
        self.specs = dict(specs)
        self.tensors = {name: torch.zeros(spec.shape, dtype=dtype, device=device) for name, spec in specs.items()}

    def read(self, name: str) -> Array:
        """A copy of the state ``name``, in its declared dtype."""
        if name not in self.specs:
            raise InputError(f"no state {name!r}; there are {', '.join(self.specs)}")
        return np.array(self.tensors[name].cpu().numpy(), dtype=self.specs[name].dtype)

    def write(self, name: str, value: npt.ArrayLike) -> None:
        """Replaces the state ``name``."""
        array = checked_state(name, value, self.specs)
        self.tensors[name] = torch.from_numpy(array).to(self.tensors[name])


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
