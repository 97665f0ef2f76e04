"""A class of an installed or neighbouring module, with weights from a file."""

import importlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coreflow.export.capture.calls import arguments as arguments_of
from coreflow.export.capture.calls import fields_of, pick
from coreflow.export.capture.evaluation import evaluating, tensors
from coreflow.export.recipe import Recipe, Target
from coreflow.models.draws import draw_inputs
from coreflow.models.errors import ConfigError, first_line
from coreflow.models.spec import TensorSpec

_FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_FORBIDDEN = re.compile(r"GLOBAL (\S+) was not an allowed global")  # of torch.load


def is_class(source: str) -> bool:
    """Whether ``source`` has the form ``module.path:Class``."""
    return _FORM.fullmatch(source) is not None


def load_class(
    source: str, *, inputs: Mapping[str, TensorSpec], weights: Path | None, arguments: Mapping[str, Any], target: Target
) -> tuple[Recipe, ...]:
    """The recipe of ``module.path:Class``, made of ``arguments``, its ``weights`` from a .safetensors file or a checkpoint of tensors.

    Outputs have the names that forward gives them, or ``output``, ``output_0`` and on. ``ConfigError`` names what is missing.
    """
    path, _, name = source.partition(":")
    module = _make(path, name, arguments)
    if weights is not None:
        _load(module, weights)
    if not inputs:
        raise ConfigError(f"{source}: which inputs? Give each, as in --input x:1x3x224x224")
    return (Recipe(name=name, module=module, inputs=inputs, outputs=output_names(module, inputs, source), target=target),)


def output_names(module: nn.Module, inputs: Mapping[str, TensorSpec], source: str) -> tuple[str, ...]:
    """The names of the tensors that ``module`` returns: its own where it has some, else ``output``, or ``output_0`` and on."""
    values = tensors(draw_inputs(inputs, 0))
    ordered, named = arguments_of(module, values)
    try:
        with evaluating(module):
            result = module(*ordered, **named)
    except Exception as error:
        shapes = ", ".join(f"{name} {list(spec.shape)}" for name, spec in inputs.items())
        raise ConfigError(f"{source} does not run on {shapes}: {first_line(error)}") from error
    if fields := fields_of(result):
        return tuple(str(name) for name, value in fields.items() if isinstance(value, Tensor))
    return numbered_names(len(pick(result)))


def numbered_names(count: int) -> tuple[str, ...]:
    """Names of outputs that have none."""
    return ("output",) if count == 1 else tuple(f"output_{place}" for place in range(count))


def _make(path: str, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    sys.path.insert(0, str(Path.cwd()))  # a module beside the working folder, as `python -m` would find it
    try:
        definitions = vars(importlib.import_module(path))
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path} cannot be imported: {type(error).__name__}: {first_line(error)}") from error
    finally:
        sys.path.pop(0)
    if name not in definitions:
        classes = [key for key, value in definitions.items() if isinstance(value, type) and issubclass(value, nn.Module)]
        raise ConfigError(f"{path} has no {name}" + (f"; its modules are {', '.join(sorted(classes))}" if classes else ""))
    value = definitions[name]
    if not isinstance(value, type) or not issubclass(value, nn.Module):
        raise ConfigError(f"{path}:{name} is a {type(value).__name__}; a class of nn.Module is right")
    try:
        return value(**arguments)
    except Exception as error:
        made = f"{path}:{name} cannot be made of {json.dumps(dict(arguments))}: {first_line(error)}"
        raise ConfigError(f"{made}; --arguments gives them as a JSON object") from error


def _load(module: nn.Module, file: Path) -> None:
    """Weights of a .safetensors file, or of a checkpoint that holds tensors alone."""
    state = _read_weights(file)
    try:
        keys = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # of shapes; its first line is of all of them
        raise ConfigError(f"{file} does not fit {type(module).__name__}: {' '.join(str(error).split()[:80])}") from error
    own = module.state_dict()
    loaded = {own[name].data_ptr() for name in own.keys() & state.keys()}  # of a weight with two names, a file may have one
    differences = [
        f"{text} {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for text, names in (
            ("it has no", [name for name in keys.missing_keys if own[name].data_ptr() not in loaded]),
            ("the module has no", keys.unexpected_keys),
        )
        if names
    ]
    if differences:
        raise ConfigError(f"{file} does not fit {type(module).__name__}: {'; '.join(differences)}")


def _read_weights(file: Path) -> Mapping[str, Tensor]:
    if not file.is_file():
        raise ConfigError(f"{file} is not a file")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if forbidden := _FORBIDDEN.search(str(error)):
            what = f"{forbidden[1]}, and Python objects are not loaded; tensors alone are right"
            raise ConfigError(f"{file} holds {what}: torch.save(model.state_dict(), ...)") from error
        raise ConfigError(f"{file} is no file of weights; .safetensors, or torch.save(model.state_dict(), ...) is right") from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"{file} holds something else than tensors by name; torch.save(model.state_dict(), ...) is right")
    return state
