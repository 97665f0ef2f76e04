"""Weights on disk: safetensors files, written atomically."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from coreflow.models.errors import BundleError
from coreflow.models.storage import write_atomically

_Module = TypeVar("_Module", bound=nn.Module)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, atomically."""
    write_atomically(path, lambda temporary: save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ``BundleError`` when it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise BundleError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} is not a readable safetensors file: {error}") from error


def load_weights(model: _Module, path: Path) -> _Module:
    """``model``, filled from a safetensors file and in eval mode; every parameter must be there with its shape, and nothing else."""
    tensors = load_tensors(path)
    state = model.state_dict()
    problems = [f"{name} is missing" for name in state.keys() - tensors.keys()]
    problems += [f"{name} is unknown" for name in tensors.keys() - state.keys()]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(state[name].shape)}"
        for name in state.keys() & tensors.keys()
        if state[name].shape != tensors[name].shape
    ]
    if problems:
        raise BundleError(f"{path} does not fit the model: {'; '.join(sorted(problems)[:5])}{' ...' if len(problems) > 5 else ''}")
    model.load_state_dict(tensors)
    return model.eval()
