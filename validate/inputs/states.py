"""Programs that keep states, seen as functions: a state before a prediction is an input, and the state after it is an output.

One prediction from any state is then all that there is to compare, and every rung, gate and picture works as it does without states.
Outputs that stand for states end in ``_out``, as in ``LiftedModule`` and in the ONNX file of ``coreflow lift``.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coreflow.export.capture.calls import call
from coreflow.export.package.graph import Program
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Arrays, Draw
from coreflow.models.errors import ConfigError
from coreflow.models.spec import TensorSpec
from coreflow.runtime.backend import LoadOptions, Model, NumericsName, State
from coreflow.runtime.interface import check_state
from coreflow.runtime.lift.engines.module import state_output_names
from coreflow.runtime.lift.ops.state import StateBuffer
from coreflow.runtime.lifted import LiftedModel


class StatelessLifted(LiftedModel):
    """A lifted program whose states are inputs and outputs; a program without any stays as it is.

    >>> model = StatelessLifted(read_program(path), "fp64")
    >>> model.predict({"x": x, "cache": cache})["cache_out"]
    """

    def __init__(self, program: Program, numerics: NumericsName = "fp16") -> None:
        super().__init__(program, LoadOptions(numerics=numerics, engine="interpreter"))
        self._state_specs, self.states = self.states, {}
        self._names = state_output_names(self.inputs, self._state_specs, self.outputs)
        self.inputs |= self._state_specs
        self.outputs |= {self._names[name]: spec for name, spec in self._state_specs.items()}
        self._buffers: dict[str, StateBuffer] = {}  # of the latest prediction

    def prepare_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs as the interpreter takes them, and a buffer for every state."""
        arguments: dict[str, Any] = dict(
            super().prepare_inputs({name: array for name, array in inputs.items() if name not in self._state_specs})
        )
        self._buffers = {
            name: StateBuffer(self._tensor(check_state(name, inputs[name], self._state_specs).copy()).to(self.numerics.dtype))
            if name in inputs
            else StateBuffer(torch.zeros(spec.shape, dtype=self.numerics.dtype))
            for name, spec in self._state_specs.items()
        }
        return arguments | self._buffers

    def to_outputs(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs of a prediction, and the states after it."""
        dtype = np.float64 if self.numerics.dtype == torch.float64 else np.float32
        states = {self._names[name]: np.array(buffer.tensor.numpy(), dtype=dtype) for name, buffer in self._buffers.items()}
        return super().to_outputs(results) | states


class StatelessModel:
    """A model of any backend whose states are inputs and outputs, through its ``make_state``.

    >>> StatelessModel(model).predict({"x": x, "cache": cache})["cache_out"]
    """

    def __init__(self, model: Model) -> None:
        self.states: dict[str, TensorSpec] = {}
        self._model, self._state_specs = model, model.states
        self._names = state_output_names(model.inputs, model.states, model.outputs)
        self.inputs = model.inputs | model.states
        self.outputs = model.outputs | {self._names[name]: spec for name, spec in model.states.items()}
        self.backend, self.metadata = model.backend, model.metadata

    def predict(self, inputs: Mapping[str, Any], state: State | None = None) -> dict[str, Any]:
        """One prediction from the states among ``inputs``; ``state`` is ignored."""
        written = self._model.make_state()
        for name in self._state_specs.keys() & inputs.keys():
            written.write(name, inputs[name])
        outputs = self._model.predict({name: array for name, array in inputs.items() if name not in self._state_specs}, written)
        return outputs | {self._names[name]: written.read(name).astype(np.float32) for name in self._state_specs}

    def make_state(self) -> State:
        """A fresh state of the model itself."""
        return self._model.make_state()


class StatelessModule(nn.Module):
    """A module that takes the buffers ``states`` after its ``inputs``, and returns them after its ``outputs``.

    ``ConfigError`` names the buffers that there are where one is missing.

    >>> y, cache_after = StatelessModule(module, ("x",), ("y",), model.states)(x, cache)
    """

    def __init__(self, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str], states: Collection[str]) -> None:
        super().__init__()
        self.module = module
        buffers = {name.replace(".", "_"): name for name, _ in module.named_buffers()}
        if missing := [name for name in states if name.replace(".", "_") not in buffers]:
            known = ", ".join(buffers.values()) or "none"
            raise ConfigError(
                f"the package keeps {', '.join(missing)}; {type(module).__name__} has no such buffer, its buffers are: {known}"
            )
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._places = tuple(buffers[name.replace(".", "_")].rpartition(".") for name in states)
        self.training = module.training

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """(*inputs, *states) -> (*outputs, *states)."""
        count = len(self._inputs)
        owners = [(self.module.get_submodule(path)._buffers, leaf) for path, _, leaf in self._places]
        before = [buffers[leaf] for buffers, leaf in owners]
        try:
            for (buffers, leaf), state in zip(owners, inputs[count:], strict=True):
                buffers[leaf] = state.clone()  # a module may write into it
            outputs = call(self.module, dict(zip(self._inputs, inputs[:count], strict=True)), self._outputs)
            states = [buffers[leaf] for buffers, leaf in owners]
        finally:
            for (buffers, leaf), tensor in zip(owners, before, strict=True):
                buffers[leaf] = tensor
        return (*outputs, *(state for state in states if state is not None))


def stateless(source: nn.Module | Recipe, model: Model, states: Mapping[str, TensorSpec]) -> nn.Module | Recipe:
    """``source`` as a function of its states, as ``model`` is: ``StatelessModule``, in a recipe that names them too."""
    names = tuple(name for name in model.inputs if name not in states)
    if isinstance(source, nn.Module):
        return StatelessModule(source, names, tuple(model.outputs)[: -len(states)], states)
    return replace(
        source,
        module=StatelessModule(source.module, names, source.outputs, states),
        inputs={**source.inputs, **states},
        outputs=(*source.outputs, *state_output_names(source.inputs, states, source.outputs).values()),
        draw=None if source.draw is None else with_states(source.draw, states),
        states=(),
    )


def with_states(draw: Draw, states: Mapping[str, TensorSpec]) -> Draw:
    """``draw`` and states with it, unless it draws them itself.

    The first seed starts from zeros, as every use does, the others from standard normal numbers: a state that has been written to.
    """

    def draw_with_states(seed: int) -> Arrays:
        inputs = dict(draw(seed))
        random = np.random.default_rng((seed, len(inputs)))
        for name, spec in states.items():
            if name not in inputs:
                inputs[name] = (random.standard_normal(spec.shape) * (seed != 0)).astype(spec.dtype)
        return inputs

    return draw_with_states


def from_fresh(inputs: Arrays, states: Mapping[str, TensorSpec]) -> Arrays:
    """``inputs`` with states of zeros where they give none."""
    return {**inputs, **{name: np.zeros(spec.shape, spec.dtype) for name, spec in states.items() if name not in inputs}}
