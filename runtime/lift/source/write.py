"""A saved program as a Python package: a torch module with one line per op, named as in the program, and weights as safetensors."""

import inspect
import keyword
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coreflow.export.package.graph import Graph, Program, Value
from coreflow.models.errors import ConfigError
from coreflow.models.storage import write_folder_atomically
from coreflow.models.versions import version
from coreflow.runtime.interface import input_specs
from coreflow.runtime.lift.engines.module import LiftedModule, unique_names
from coreflow.runtime.lift.numerics.named import numerics_named
from coreflow.runtime.lift.plan.plan import Block, Step
from coreflow.runtime.lift.registry import find

WEIGHTS, MODEL = "weights.safetensors", "model.py"
_RESERVED = ("self", "ops", "torch", "nn", "device", "float_dtype", "Tensor", "StateBuffer", "as_number", "as_numbers", "Path", "float")

_TEMPLATE = '''"""{title}

{contents}

Written by coreflow {version}. ``ops`` are coreflow's lowerings of the operations of {opset}; floats are computed in the
module's dtype.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from coreflow.runtime.lift.opset import StateBuffer, as_number, as_numbers, opset

ops = opset("{opset}")


class {name}(nn.Module):
    """``forward`` takes {inputs} and returns {outputs}."""

    def __init__(self) -> None:
        super().__init__()
{members}

    def forward(self, {parameters}) -> tuple[Tensor, ...]:
{body}


def load(weights: str | Path = Path(__file__).with_name("{weights}")) -> {name}:
    """The module with its weights, ready to predict."""
    module = {name}()
    module.load_state_dict(load_file(weights))
    return module.eval()
'''


def write_source(program: Program, path: Path, function_name: str | None = None) -> None:
    """Writes the folder ``path`` with ``model.py`` and ``weights.safetensors``; ``from NAME.model import load`` gives the module.

    Weights are stored as fp16 where that loses nothing, else as fp32. ``path`` must not exist, and Python must be able to import its name.
    """
    from safetensors.torch import save_file

    if not path.name.isidentifier() or keyword.iskeyword(path.name):
        raise ConfigError(f"{path.name!r} cannot be imported; letters, digits and _ only, no digit first")
    if path.exists():
        raise ConfigError(f"{path} is there already; choose another folder, or remove it")
    graph, interface = program.function(function_name)
    input_specs(program, graph, interface)  # refuses what is no tensor
    module = LiftedModule(graph, interface, numerics_named("fp32"), program.path.name)
    text = _Writer(module, graph, program.path.name).text()
    tensors = {name: _smallest_storage(tensor) for name, tensor in module.state_dict().items()}

    def write(folder: Path) -> None:
        save_file(tensors, folder / WEIGHTS)
        (folder / MODEL).write_text(text, encoding="utf-8")
        (folder / "__init__.py").write_text("", encoding="utf-8")

    write_folder_atomically(path, write)


class _Writer:
    """Writes the source of one module from its plan: slots become variables, parameters become ``self.name``."""

    def __init__(self, module: LiftedModule, graph: Graph, package: str) -> None:
        self._module, self._graph, self._package = module, graph, package
        values = list(_values(graph, module.plan))
        self._values = dict(values)
        self._taken = list(_RESERVED)
        self._names = {slot: _literal(value) for slot, value in module.plain.items()}
        self._names |= {slot: f"self.{name}" for slot, name in module.constants.items()}
        self._names |= {slot: name for name, slot in module.surroundings.items()}
        self._names |= zip((slot for slot, _ in values), self._new_names(value.name for _, value in values), strict=True)
        slots = {value.name: slot for slot, value in zip(module.plan.inputs, graph.inputs, strict=True)}
        self._inputs = [(name, self._values[slots[name]], self._names[slots[name]]) for name in module.input_names]

    def _new_names(self, names: Iterable[str]) -> list[str]:
        """Names like these that nothing else in the function has."""
        unique = unique_names(names, self._taken)
        self._taken += unique
        return unique

    def text(self) -> str:
        """The whole file."""
        variables = [variable for _, _, variable in self._inputs]
        name = self._class_name()
        return _TEMPLATE.format(
            title=f"The function {_harmless(self._graph.name)} of {_harmless(self._package)}, lifted.",
            contents="\n".join(self._contents()),
            version=version("coreflow"),
            opset=self._graph.opset,
            name=name,
            weights=WEIGHTS,
            inputs=", ".join(variables),
            outputs=", ".join(_harmless(output) for output in self._module.output_names),
            members="\n".join(f"        {line}" for line in self._members()),
            parameters=", ".join(f"{variable}: Tensor" for variable in variables),
            body="\n".join(f"        {line}" for line in self._body()),
        )

    def _class_name(self) -> str:
        title = "".join(part.capitalize() for part in re.split(r"\W|_", Path(self._package).stem, flags=re.ASCII)) or "Model"
        return unique_names([title], taken=("Tensor", "StateBuffer", "Path"))[0]

    def _contents(self) -> Iterator[str]:
        """The lines of the docstring that name inputs, outputs and states."""
        outputs = {value.name: value for value in self._graph.outputs}
        yield "Inputs: " + "; ".join(_described(name, value) for name, value, _ in self._inputs)
        yield "Outputs: " + "; ".join(_described(name, outputs[name]) for name in self._module.result_names)
        if self._module.states:
            yield f"States come last among inputs and outputs: {_harmless(', '.join(self._module.states))}"

    def _members(self) -> Iterator[str]:
        for name, tensor in self._module.state_dict(keep_vars=True).items():
            empty = f"torch.empty({tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else f", dtype={tensor.dtype}") + ")"
            yield f"self.{name} = nn.{'Parameter' if isinstance(tensor, nn.Parameter) else 'Buffer'}({empty})"
        yield "self.anchor = nn.Buffer(torch.zeros(()), persistent=False)  # where the module is, and in what it computes"

    def _body(self) -> Iterator[str]:
        """The lines of ``forward``."""
        module = self._module
        states = [variable for name, _, variable in self._inputs if name in module.states]
        floats = [variable for _, value, variable in self._inputs if value.dtype.startswith("float")]
        if {slot for step in module.plan.walk() for _, slot in step.reads} & set(module.surroundings.values()):
            yield "device, float_dtype = self.anchor.device, self.anchor.dtype"
        yield from (f"{variable} = {variable}.to(self.anchor.dtype)" for variable in floats)
        yield from (f"{variable} = StateBuffer({variable})" for variable in states)
        yield from self._block(module.plan, self._graph)
        results = {value.name: self._names[slot] for slot, value in zip(module.plan.outputs, self._graph.outputs, strict=True)}
        yield f"return {', '.join([*(results[name] for name in module.result_names), *(f'{variable}.tensor' for variable in states)])},"

    def _block(self, block: Block, graph: Graph) -> list[str]:
        return [line for step in block.steps for line in self._step(step, graph)]

    def _step(self, step: Step, graph: Graph) -> Iterator[str]:
        """The lines of one operation; the blocks of control flow are functions in front of it."""
        arguments = self._arguments(step)
        if step.blocks:
            names = self._new_names(block.name for block in step.op.blocks)
            for name, block, inner in zip(names, step.blocks, step.op.blocks, strict=True):
                parameters = ", ".join(f"{self._names[slot]}: Tensor" for slot in block.inputs)
                yield f"def {name}({parameters}) -> tuple[Tensor, ...]:"
                yield from (f"    {line}" for line in self._block(block, inner))
                yield f"    return {_tuple([self._names[slot] for slot in block.outputs])}"
            arguments["blocks"] = _tuple(names)
        order = list(inspect.signature(step.function).parameters)
        call = ", ".join(f"{name}={arguments[name]}" for name in sorted(arguments, key=order.index))
        line = f"ops.{step.op.type}({call})"
        targets = [self._names[slot] for slot, _ in step.writes]
        if targets:
            line = f"{', '.join(targets)}{',' if len(targets) == 1 and _gives_tuple(step, graph) else ''} = {line}"
            line += f"  # {'; '.join(f'{value.dtype} {_shape(value)}' for value in step.op.outputs)}"
        yield line

    def _arguments(self, step: Step) -> dict[str, str]:
        """The arguments of one operation as source code."""
        arguments = {name: _literal(value) for name, value in step.fixed.items()}
        arguments |= {name: self._names[slot] for name, slot in step.reads}
        for name, form, source in step.converts:
            parts = [self._names[slot] for slot in (source if isinstance(source, tuple) else (source,))]
            if form in ("tensors", "raw", "tensor"):
                arguments[name] = _tuple(parts)
            else:
                arguments[name] = f"{'as_number' if form == 'scalar' else 'as_numbers'}({', '.join(parts)})"
        return arguments


def _gives_tuple(step: Step, graph: Graph) -> bool:
    """Whether the lowering of the step gives a tuple, however many results it has."""
    lowering = find(step.op.type, graph.opset)
    assert lowering is not None
    return typing.get_origin(typing.get_type_hints(lowering.function).get("return")) is tuple


def _described(name: str, value: Value) -> str:
    """A line's part about one input or output: its name, dtype and shape."""
    return _harmless(f"{name} {value.dtype} {_shape(value)}")


def _values(graph: Graph, block: Block) -> Iterator[tuple[int, Value]]:
    """Every slot that is a variable, with its value: inputs and results, those of nested blocks included."""
    yield from zip(block.inputs, graph.inputs, strict=True)
    for step in block.steps:
        for inner_graph, inner in zip(step.op.blocks, step.blocks, strict=True):
            yield from _values(inner_graph, inner)
        yield from ((slot, value) for (slot, _), value in zip(step.writes, step.op.outputs, strict=True))


def _literal(value: Any) -> str:
    """``value`` as source code."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return repr(value) if np.isfinite(value) else f"float({str(value)!r})"
    if isinstance(value, list | tuple):
        return _tuple([_literal(item) for item in value])
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    assert value is None or isinstance(value, bool | int | str), type(value)
    return repr(value)


def _tuple(parts: list[str]) -> str:
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"


def _shape(value: Value) -> str:
    return "" if value.shape is None else str(["?" if extent is None else extent for extent in value.shape]).replace("'", "")


def _harmless(text: str) -> str:
    """A name out of a package, fit for a docstring."""
    return re.sub(r"[^\w .,;:/\[\]-]", "_", text, flags=re.ASCII)


def _smallest_storage(tensor: Tensor) -> Tensor:
    """The tensor in fp16 if nothing is lost by it."""
    if not tensor.is_floating_point():
        return tensor.contiguous()
    as_fp16 = tensor.to(torch.float16)
    return as_fp16.contiguous() if torch.equal(as_fp16.to(tensor.dtype), tensor) else tensor.contiguous()
