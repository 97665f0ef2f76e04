"""The backend that executes a saved program anywhere, by one of three engines that share their lowerings.

================  =======================  ==============  =====================================================
engine            numerics                 device          for
``interpreter``   all                      all             every program; lets an observer see every op
``module``        all                      all             what ``coreflow lift`` gives, run as it is
``onnxruntime``   fp16, fp32               cpu             many small ops; of fixed shapes, without control flow
================  =======================  ==============  =====================================================

fp16 rounds where the interpreter rounds, in all three. ``auto`` starts with the interpreter and changes to onnxruntime once that is
expected to be faster. The two sum in different orders, so a last bit may differ: name an engine where every bit matters.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from coreflow.export.package.graph import Feature, Program
from coreflow.models.arrays import Array
from coreflow.models.errors import InputError, UnsupportedError
from coreflow.models.spec import TensorSpec
from coreflow.runtime.backend import DEFAULT, ENGINES, LoadOptions, NumericsName, State
from coreflow.runtime.interface import (
    as_picture,
    check_inputs,
    check_state,
    input_specs,
    output_specs,
    program_metadata,
    state_specs,
)
from coreflow.runtime.lift.engines.auto import AutoEngine
from coreflow.runtime.lift.engines.base import Engine
from coreflow.runtime.lift.engines.interpreter import Interpreter
from coreflow.runtime.lift.engines.module import ModuleEngine
from coreflow.runtime.lift.engines.onnxruntime import OnnxEngine
from coreflow.runtime.lift.numerics.named import numerics_named
from coreflow.runtime.lift.numerics.plain import without_tf32
from coreflow.runtime.lift.ops.state import StateBuffer
from coreflow.runtime.lift.plan.plan import Observer


class LiftedModel:
    """One function of a package, executed by the lowerings; ``engine`` names the engine that runs them.

    >>> model = LiftedModel(read_program("encoder.mlpackage"), LoadOptions(numerics="fp64", engine="interpreter"))
    >>> model.predict({"ids": ids, "mask": mask}, observe=lambda op, results: print(op.name))
    """

    backend = "lifted"

    def __init__(self, program: Program, options: LoadOptions = DEFAULT) -> None:
        if options.engine not in ENGINES:
            raise UnsupportedError(
                f"engine {options.engine!r}; choose one of {', '.join(ENGINES)}, of which auto takes the fastest that is sure to work",
                expected=ENGINES,
            )
        self.numerics = numerics_named(options.numerics)
        self.device = _device(options.device, options.numerics)
        self.program = program
        self._graph, self._interface = program.function(options.function_name)
        self.inputs: dict[str, TensorSpec] = input_specs(program, self._graph, self._interface)
        self.outputs: dict[str, TensorSpec] = output_specs(program, self._graph, self._interface)
        self.states: dict[str, TensorSpec] = state_specs(program, self._interface)
        self.metadata: dict[str, Any] = program_metadata(program)
        self._runs = self._engine(options)

    @property
    def engine(self) -> str:
        """The engine of the next prediction; under ``auto`` it may change from interpreter to onnxruntime, once."""
        return self._runs.name

    @cached_property
    def interpreter(self) -> Interpreter:
        """The interpreter of the same function and numerics, whatever the engine; made when it is first needed."""
        return Interpreter(self._graph, self.numerics, self.device, self.program.path.name)

    def predict(self, inputs: Mapping[str, Any], state: State | None = None, observe: Observer | None = None) -> dict[str, Any]:
        """The outputs by name, as ``coremltools.models.MLModel.predict`` returns them.

        Floats come back as float32 (float64 under fp64 numerics), integers as int32. ``observe`` sees every op and its results; the
        interpreter makes that prediction, since no other engine has ops to show.
        """
        tensors: dict[str, torch.Tensor | StateBuffer] = dict(self.prepare_inputs(inputs))
        buffers = self._state_of(state)
        # The program writes to copies: a prediction that fails leaves the state as it was.
        written = {name: StateBuffer(tensor) for name, tensor in buffers.items()}
        tensors.update(written)
        with without_tf32(self.device):
            results = self._runs.run(tensors) if observe is None else self.interpreter.run(tensors, observe)
        buffers.update((name, buffer.tensor) for name, buffer in written.items())
        return self.to_outputs(results)

    def prepare_inputs(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The checked inputs in the dtypes that they are declared in; optional ones that were left out have their default."""
        specs = {feature.name: self.inputs[feature.name] for feature in self._interface.inputs}
        arrays = check_inputs(inputs, specs, self._interface)
        tensors = {}
        for feature in self._interface.inputs:
            array = arrays.get(feature.name)
            if array is None:
                array = np.full(feature.shape, feature.default or 0.0, self.inputs[feature.name].dtype)
            tensors[feature.name] = self._tensor(array)
        return tensors

    def to_outputs(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """The results of an engine as ``predict`` returns them."""
        return {feature.name: self._as_caller_sees(results[feature.name], feature) for feature in self._interface.outputs}

    def _tensor(self, array: Array) -> torch.Tensor:
        """``array`` where the numerics compute. It may share the caller's memory, which no lowering writes to."""
        # Not shared: what torch takes with a warning or not at all, and what might stay in a state.
        if self.states or not array.flags.writeable or min(array.strides, default=0) < 0:
            array = array.copy()
        tensor = torch.from_numpy(array)
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    def _engine(self, options: LoadOptions) -> Engine:
        """The engine that was asked for."""
        if options.engine == "interpreter":
            return self.interpreter
        if options.engine == "auto":
            return AutoEngine(self.program, options, lambda: self.interpreter)
        if options.engine == "module":
            return ModuleEngine(self._graph, self._interface, self.numerics, self.device, self.program.path.name)
        return OnnxEngine(self.program, options)

    def make_state(self) -> State:
        """A fresh state, all zeros."""
        if not self.states:
            raise UnsupportedError(f"{self.program.path.name}: the program keeps no state")
        return LiftedState(self.states, self.numerics.dtype, self.device)

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
        if result.dtype == torch.float16:
            return result.to("cpu", self.numerics.dtype, memory_format=torch.contiguous_format).numpy()
        floats = np.float64 if self.numerics.dtype == torch.float64 else np.float32
        return np.array(result.cpu().numpy(), dtype=np.int32 if self.outputs[feature.name].dtype == "int32" else floats, order="C")


class LiftedState:
    """The states of one program as tensors, zeros at first.

    >>> state = model.make_state()
    >>> model.predict({"x": x}, state)
    >>> state.write("cache", state.read("cache") * 2)
    """

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
        array = check_state(name, value, self.specs)
        self.tensors[name] = torch.from_numpy(array.copy()).to(self.tensors[name])


def _device(name: str, numerics: NumericsName) -> torch.device:
    """The device of that name, if this machine has it and it computes in what the numerics need."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UnsupportedError(f"device {name!r} is not available here") from error
    if device.type == "mps" and numerics_named(numerics).dtype == torch.float64:
        raise UnsupportedError(f"numerics {numerics} on mps: that device has no float64; use device='cpu'")
    return device
