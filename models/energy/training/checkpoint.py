"""A run of the energy flow on disk: weights, tokenizers, settings, and the state to resume training.

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
from typing import Any

from coreflow.models.data.tokenizers import TextTokenizer
from coreflow.models.energy.config import EnergyConfig
from coreflow.models.energy.model import EnergyFlow
from coreflow.models.energy.stages import energy_stages
from coreflow.models.errors import BundleError, ConfigError
from coreflow.models.stage import Stage
from coreflow.models.storage import write_atomically, write_json
from coreflow.models.training.checkpoint import load_weights, save_tensors

WEIGHTS, CONFIG, WORDPIECE, UNIGRAM, HELD_OUT = "weights.safetensors", "config.json", "wordpiece.json", "unigram.json", "held_out.txt"
TRAINING, CURVE, RESUME = "training.json", "loss.png", "resume.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A trained model with its tokenizers.

    >>> load_checkpoint(Path("artifacts/runs/demo")).model.config.preset
    'demo'
    """

    model: EnergyFlow
    wordpiece: TextTokenizer
    unigram: TextTokenizer
    held_out: tuple[str, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Plain data for the manifest of a bundle."""
        return {"preset": self.model.config.preset}

    def stages(self) -> tuple[Stage, ...]:
        """The stages of the model, in the order a sentence meets them."""
        return energy_stages(self.model)

    def write_companions(self, folder: Path) -> None:
        """Settings, reference weights, tokenizers and golden samples."""
        from coreflow.models.energy.chain.golden import write_golden

        write_json(folder / CONFIG, self.model.config.to_json())
        save_tensors(folder / WEIGHTS, self.model.state_dict())
        self.wordpiece.save(folder / WORDPIECE)
        self.unigram.save(folder / UNIGRAM)
        write_golden(folder, self)


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


def load_model(directory: Path) -> EnergyFlow:
    """The model whose settings and weights are in ``directory``, a run or the companions of a bundle; in eval mode on the CPU."""
    return load_weights(EnergyFlow(load_config(directory / CONFIG)), directory / WEIGHTS)


def load_checkpoint(directory: Path) -> Checkpoint:
    """The model of a run, in eval mode on the CPU."""
    if not directory.is_dir():
        raise BundleError(f"{directory} is not a run; `coreflow train --out {directory}` makes one")
    held_out = directory / HELD_OUT
    return Checkpoint(
        model=load_model(directory),
        wordpiece=TextTokenizer.load(directory / WORDPIECE),
        unigram=TextTokenizer.load(directory / UNIGRAM),
        held_out=tuple(held_out.read_text(encoding="utf-8").splitlines()) if held_out.exists() else (),
    )
