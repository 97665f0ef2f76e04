"""Programs that were captured by somebody else: an exported program (``.pt2``), or a TorchScript file."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from coreflow.export.recipe import Recipe, Target
from coreflow.export.sources.classes import numbered_names
from coreflow.export.sources.names import package_name
from coreflow.models.errors import ConfigError, first_line
from coreflow.models.spec import Dtype, TensorSpec

_DTYPES: dict[torch.dtype, Dtype] = {
    torch.float32: "float16",
    torch.float16: "float16",
    torch.bfloat16: "float16",
    torch.int32: "int32",
    torch.int64: "int32",
}


def is_program(source: str) -> bool:
    """Whether ``source`` ends in ``.pt2``, ``.pt``, ``.pth`` or ``.ts``."""
    return Path(source).suffix in (".pt2", ".pt", ".pth", ".ts")


def load_program(source: str, *, inputs: Mapping[str, TensorSpec], target: Target) -> tuple[Recipe, ...]:
    """The recipe of the program in the file ``source``.

    An exported program knows its inputs and outputs, whose whole numbers need bounds (``inputs``); of a TorchScript file ``inputs`` gives
    all, in order. ``ConfigError`` for files that are neither: checkpoints hold weights alone, and are read by ``--weights``.
    """
    file = Path(source)
    if not file.is_file():
        raise ConfigError(f"{file} is not a file")
    return (_exported(file, inputs, target) if file.suffix == ".pt2" else _scripted(file, inputs, target),)


def _exported(file: Path, given: Mapping[str, TensorSpec], target: Target) -> Recipe:
    log = logging.getLogger("torch.export")  # which prints the stack of what it raises
    log.disabled, was_disabled = True, log.disabled
    try:
        program = torch.export.load(file)
    except Exception as error:
        raise ConfigError(f"{file} is no exported program of torch: {first_line(error)}") from error
    finally:
        log.disabled = was_disabled
    module = program.module()
    for method in ("eval", "train"):  # it refuses both, although it is in the mode in which it was exported for good
        vars(module).pop(method, None)
    specs = {name: given.get(name) or _spec(file, name, value) for name, value in _inputs_of(program).items()}
    if unknown := set(given) - set(specs):
        raise ConfigError(f"{file} has no input {', '.join(sorted(unknown))}; its inputs are {', '.join(specs)}")
    outputs = numbered_names(len(program.graph_signature.user_outputs))
    return Recipe(name=package_name(file.stem), module=module, inputs=specs, outputs=outputs, target=target)


def _inputs_of(program: ExportedProgram) -> dict[str, Any]:
    """The example of every input, by name."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return {name: nodes[name].meta["val"] for name in program.graph_signature.user_inputs if isinstance(name, str)}


def _spec(file: Path, name: str, value: Any) -> TensorSpec:
    if not isinstance(value, torch.Tensor) or value.dtype not in _DTYPES:
        kind = getattr(value, "dtype", type(value).__name__)
        raise ConfigError(f"{file}: input {name!r} is {kind}; floats and whole numbers can be passed")
    if not all(isinstance(extent, int) for extent in value.shape):
        raise ConfigError(f"{file}: input {name!r} has the shape {tuple(value.shape)}; give its spec, --input {name}:SHAPE")
    dtype = _DTYPES[value.dtype]
    if dtype == "int32":
        form = f"{name}:{'x'.join(map(str, value.shape))}:int32:0..HIGHEST"
        raise ConfigError(f"{file}: input {name!r} holds whole numbers, whose bounds the program does not say; --input {form}")
    return TensorSpec(tuple(value.shape), dtype)


def _scripted(file: Path, given: Mapping[str, TensorSpec], target: Target) -> Recipe:
    if not zipfile.is_zipfile(file) or not any(name.endswith("constants.pkl") for name in zipfile.ZipFile(file).namelist()):
        raise ConfigError(f"{file} is no TorchScript file; a file of weights goes with its class: module.path:Class --weights {file.name}")
    try:
        module: nn.Module = torch.jit.load(file, map_location="cpu")
    except Exception as error:
        raise ConfigError(f"{file} is no TorchScript file: {first_line(error)}") from error
    schema: Any = module.forward.schema  # type: ignore[attr-defined]
    names = [argument.name for argument in schema.arguments[1:]]
    if not names:
        raise ConfigError(f"{file} takes no input; a forward of tensors is right")
    if list(given) != names:
        raise ConfigError(f"{file} takes {', '.join(names)}; give each, as in --input {names[0]}:1x128")
    (returned,) = schema.returns
    count = len(returned.type.elements()) if returned.type.kind() == "TupleType" else 1
    return Recipe(name=package_name(file.stem), module=module.eval(), inputs=given, outputs=numbered_names(count), target=target)
