"""A run on disk: weights and what is needed to use them or to train on.

RUN_DIR/
  config.json            EnergyConfig
  weights.safetensors    parameters of EnergyFlow, fp32
  wordpiece.json         tokenizer of the encoder
  unigram.json           tokenizer of the decoder
  held_out.txt           sentences that were never trained on
  training.json          options, versions, loss curve, accuracies
  loss.png               the loss curve as a picture
  resume.safetensors     optimizer state, until training is finished
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from coreflow.models.data.tokenizers import TextTokenizer
from coreflow.models.energy.config import EnergyConfig
from coreflow.models.energy.model import EnergyFlow
from coreflow.models.errors import BundleError, ConfigError
from coreflow.models.storage import write_atomically, write_json

WEIGHTS, CONFIG, WORDPIECE, UNIGRAM, HELD_OUT = "weights.safetensors", "config.json", "wordpiece.json", "unigram.json", "held_out.txt"
TRAINING, CURVE, RESUME = "training.json", "loss.png", "resume.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A trained model with its tokenizers."""

    model: EnergyFlow
    wordpiece: TextTokenizer
    unigram: TextTokenizer
    held_out: tuple[str, ...]


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


def load_weights(model: EnergyFlow, path: Path) -> EnergyFlow:
    """Fill ``model`` from a safetensors file; every parameter must be there with its shape, and nothing else."""
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


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Write everything but the training record; weights last, so that their presence means the rest is there."""
    write_json(directory / CONFIG, checkpoint.model.config.to_json())
    write_atomically(directory / WORDPIECE, checkpoint.wordpiece.save)
    write_atomically(directory / UNIGRAM, checkpoint.unigram.save)
    lines = "".join(f"{line}\n" for line in checkpoint.held_out)
    write_atomically(directory / HELD_OUT, lambda temporary: temporary.write_text(lines, encoding="utf-8"))
    save_tensors(directory / WEIGHTS, checkpoint.model.state_dict())


def load_config(path: Path) -> EnergyConfig:
    """Settings of a run; ``BundleError`` when they cannot be read."""
    try:
        return EnergyConfig.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise BundleError(f"{path} is missing") from None
    except (OSError, ValueError, ConfigError) as error:
        raise BundleError(f"{path} does not hold the settings of an energy-flow model: {error}") from error


def load_checkpoint(directory: Path) -> Checkpoint:
    """The model of a run, in eval mode on the CPU."""
    if not directory.is_dir():
        raise BundleError(f"{directory} is not a run; `coreflow train --out {directory}` makes one")
    model = load_weights(EnergyFlow(load_config(directory / CONFIG)), directory / WEIGHTS)
    held_out = directory / HELD_OUT
    return Checkpoint(
        model=model,
        wordpiece=TextTokenizer.load(directory / WORDPIECE),
        unigram=TextTokenizer.load(directory / UNIGRAM),
        held_out=tuple(held_out.read_text(encoding="utf-8").splitlines()) if held_out.exists() else (),
    )
