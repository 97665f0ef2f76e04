"""A saved program as an ``nn.Module``: the interpreter's plan with parameters where the package has weights.

>>> program = read_program("encoder.mlpackage")
>>> module = LiftedModule(*program.function())
>>> surface, = module(ids, mask)

Nothing is rounded: floats are computed in the module's dtype. ``to(device)`` works as for every module; ``state_dict`` carries the
package's names; ``torch.export`` and ``torch.onnx`` take it as it is.
"""

import keyword
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from coreflow.export.package.graph import Graph, Interface
from coreflow.runtime.lift.numerics.named import NUMERICS
from coreflow.runtime.lift.numerics.plain import Numerics
from coreflow.runtime.lift.ops.state import StateBuffer
from coreflow.runtime.lift.plan.plan import Block
from coreflow.runtime.lift.plan.planner import Planner
from coreflow.runtime.lift.plan.policy import GeneralPolicy

STATE_SUFFIX = "_out"


class LiftedModule(nn.Module):
    """One function of a program as a torch module.

    >>> module = LiftedModule(*read_program("encoder.mlpackage").function())
    >>> dict(zip(module.output_names, module(ids, mask)))

    ``forward`` takes the inputs in the package's order (``input_names``) and then every state; it returns a tuple of the outputs
    (``output_names``) and then every state as the program leaves it, named after it with ``_out`` behind. Constants keep their names, with
    ``_`` for what Python does not allow: floats with an axis are parameters, other constants buffers. Arguments that an op reads as a
    number, an axis or a shape are no tensors and stay fixed.
    """

    def __init__(self, graph: Graph, interface: Interface, numerics: Numerics = NUMERICS["fp32"], package: str = "program") -> None:
        super().__init__()
        self.graph = graph
        features = interface.inputs, interface.outputs, interface.states
        inputs, outputs, states = (tuple(feature.name for feature in side) for side in features)
        self.states = states
        self.input_names = (*inputs, *states)
        self.output_names = (*outputs, *state_output_names(inputs, states, outputs).values())
        self.result_names = outputs
        self._package = package
        self.anchor = nn.Buffer(torch.zeros((), dtype=numerics.dtype), persistent=False)  # where the module is, and in what it computes
        planner = Planner(graph, GeneralPolicy(numerics, torch.device("cpu")), package)
        plan = planner.plan()
        self.plan: Block = plan
        self._environment = plan.constants
        self.surroundings = {"device": self._new_slot(), "float_dtype": self._new_slot()}
        self.constants: dict[int, str] = {}  # parameters and buffers by the slot that they are put into
        self.plain: dict[int, Any] = {}  # and strings and the like
        registered = self._register(planner.constants.named())
        self.plan = self._with_slots(plan, registered)
        for slot, value in enumerate(self._environment):
            if isinstance(value, Tensor):  # a constant that some op reads by its slot, or an output
                self.constants[slot] = registered[id(value)][0]
                self._environment[slot] = None
            elif value is not None:
                self.plain[slot] = value

    def forward(self, *inputs: Tensor) -> tuple[Any, ...]:
        """The outputs and then the states, as the class describes; floats may be of any dtype."""
        if len(inputs) != len(self.input_names):
            raise TypeError(f"{self._package} takes {', '.join(self.input_names)}; {len(inputs)} tensors were given")
        dtype = self.anchor.dtype
        tensors = {n: v.to(dtype) if v.is_floating_point() else v for n, v in zip(self.input_names, inputs, strict=True)}
        buffers = {name: StateBuffer(tensors[name]) for name in self.states}
        environment = self._environment.copy()
        environment[self.surroundings["device"]], environment[self.surroundings["float_dtype"]] = self.anchor.device, dtype
        for slot, name in self.constants.items():
            environment[slot] = getattr(self, name)
        values = [buffers.get(value.name, tensors.get(value.name)) for value in self.graph.inputs]
        results = self.plan.run(environment, values)
        named = {value.name: result for value, result in zip(self.graph.outputs, results, strict=True)}
        return (*(named[name] for name in self.result_names), *(buffers[name].tensor for name in self.states))

    def _new_slot(self) -> int:
        self._environment.append(None)
        return len(self._environment) - 1

    def _register(self, constants: Iterable[tuple[Tensor, str]]) -> dict[int, tuple[str, int]]:
        """Every constant tensor that a step reads as a parameter or buffer: id of the tensor -> its name and slot."""
        read = {id(value) for step in self.plan.walk() for value in step.fixed.values() if isinstance(value, Tensor)}
        read |= {id(value) for value in self._environment if isinstance(value, Tensor)}
        tensors = {id(tensor): (tensor, name) for tensor, name in constants if id(tensor) in read}
        names = unique_names((name for _, name in tensors.values()), taken=dir(self))
        registered = {}
        for name, (key, (tensor, _)) in zip(names, tensors.items(), strict=True):
            weight = tensor.is_floating_point() and tensor.dim() > 0
            setattr(self, name, nn.Parameter(tensor) if weight else nn.Buffer(tensor))
            registered[key] = name, self._new_slot()
            self._environment[registered[key][1]] = tensor
        return registered

    def _with_slots(self, block: Block, registered: Mapping[int, tuple[str, int]]) -> Block:
        """The block with every fixed tensor, device and dtype read from a slot instead."""
        steps = []
        for step in block.steps:
            moved = {name: registered[id(value)][1] for name, value in step.fixed.items() if isinstance(value, Tensor)}
            moved |= {name: self.surroundings[name] for name in self.surroundings if name in step.fixed}
            fixed = {name: value for name, value in step.fixed.items() if name not in moved}
            blocks = tuple(self._with_slots(inner, registered) for inner in step.blocks)
            steps.append(replace(step, fixed=fixed, reads=(*step.reads, *moved.items()), blocks=blocks))
        return Block(inputs=block.inputs, outputs=block.outputs, steps=tuple(steps))


class ModuleEngine:
    """Runs one function as ``LiftedModule``.

    >>> engine = ModuleEngine(graph, interface, numerics_named("fp16"), torch.device("cuda"), "encoder.mlpackage")
    >>> engine.run({"ids": ids, "mask": mask})["surface"]
    """

    name = "module"

    def __init__(self, graph: Graph, interface: Interface, numerics: Numerics, device: torch.device, package: str) -> None:
        self.module = LiftedModule(graph, interface, numerics, package).eval().requires_grad_(False).to(device)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name. States are replaced in their buffers."""
        buffers = [inputs[name] for name in self.module.states]
        arguments = (inputs[name] for name in self.module.input_names)
        with torch.inference_mode():
            results = self.module(*(value.tensor if isinstance(value, StateBuffer) else value for value in arguments))
        outputs = len(results) - len(buffers)
        for buffer, tensor in zip(buffers, results[outputs:], strict=True):
            buffer.tensor = tensor
        return dict(zip(self.module.output_names[:outputs], results, strict=False))


def state_output_names(inputs: Iterable[str], states: Iterable[str], outputs: Iterable[str]) -> dict[str, str]:
    """Name of the output that a state leaves as, per state; none clashes with another input or output."""
    names = tuple(states)
    return dict(zip(names, unique_names((f"{name}{STATE_SUFFIX}" for name in names), taken=(*inputs, *names, *outputs)), strict=True))


def unique_names(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Every name as a Python identifier, none twice, none in ``taken`` and no keyword; a clash is numbered."""
    used, unique = {*taken, *keyword.kwlist}, []
    for name in names:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
        if plain[0].isdigit() or plain.startswith("__"):
            plain = "_" + plain.lstrip("_")  # Python changes names in a class that begin with two
        chosen, number = plain, 1
        while chosen in used:
            chosen, number = f"{plain}_{number}", number + 1
        used.add(chosen)
        unique.append(chosen)
    return unique
