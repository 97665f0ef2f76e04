"""The energy flow as a registered family. Loads no torch until it is used."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreflow.models.arrays import Arrays
from coreflow.models.energy.config import PRESETS, EnergyConfig
from coreflow.models.family import Predict, Progress, TextEntry, Trained, Trial, options_from
from coreflow.models.stage import Stage

if TYPE_CHECKING:
    from coreflow.models.data.tokenizers import TextTokenizer
    from coreflow.models.energy.chain.pipeline import EnergyPipeline
    from coreflow.models.energy.training.checkpoint import Checkpoint
    from coreflow.models.energy.training.options import TrainingOptions


class EnergyFamily:
    """Text and embeddings through a lattice of flows and back.

    >>> for event in ENERGY.train(ENERGY.training_options({"preset": "demo"}), Path("artifacts/runs/demo")): ...
    >>> ENERGY.open_run(Path("artifacts/runs/demo")).stages()
    """

    kind = "energy-flow"

    @property
    def presets(self) -> Mapping[str, str]:
        """Name and summary of every size."""
        return {name: preset.summary for name, preset in PRESETS.items()}

    def training_options(self, flags: Mapping[str, Any]) -> "TrainingOptions":
        """The options of a training run from the flags of ``coreflow train``."""
        from coreflow.models.energy.training.options import TrainingOptions

        return options_from(TrainingOptions, flags, self.kind)

    def train(self, options: "TrainingOptions", directory: Path, resume: bool = False) -> Iterator[Progress | Trained]:
        """Train and save to ``directory``; see ``trainer.train``."""
        from coreflow.models.energy.training.trainer import train

        return train(options, directory, resume)

    def has_run(self, directory: Path) -> bool:
        """Whether the settings and a tokenizer of an energy flow are in ``directory``."""
        return all((directory / name).is_file() for name in ("config.json", "wordpiece.json", "unigram.json"))

    def is_finished(self, directory: Path) -> bool:
        """Whether the record that ends a run is in ``directory``."""
        return (directory / "training.json").is_file()

    def open_run(self, directory: Path) -> "Checkpoint":
        """The run in ``directory``."""
        from coreflow.models.energy.training.checkpoint import load_checkpoint

        return load_checkpoint(directory)

    def open_companions(self, folder: Path) -> "EnergyCompanions":
        """The companions of a bundle."""
        return EnergyCompanions(folder)


class EnergyCompanions:
    """Settings, reference weights, tokenizers and golden samples, read when they are asked for.

    >>> companions = ENERGY.open_companions(Path("artifacts/demo/companions"))
    >>> companions.config.preset, companions.text_entry().stage
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def config(self) -> EnergyConfig:
        """Settings of the model."""
        from coreflow.models.energy.training.checkpoint import CONFIG, load_config

        return load_config(self._folder / CONFIG)

    @cached_property
    def _wordpiece(self) -> "TextTokenizer":
        from coreflow.models.data.tokenizers import TextTokenizer
        from coreflow.models.energy.training.checkpoint import WORDPIECE

        return TextTokenizer.load(self._folder / WORDPIECE)

    def stages(self) -> tuple[Stage, ...]:
        """The stages of the reference."""
        from coreflow.models.energy.stages import energy_stages
        from coreflow.models.energy.training.checkpoint import load_model

        return energy_stages(load_model(self._folder))

    def golden(self, stage: str) -> list[tuple[Arrays, Arrays]]:
        """Recorded inputs of a stage and the outputs that torch gave for them."""
        from coreflow.models.golden import read_samples

        return read_samples(self._folder, stage)

    def text_entry(self) -> TextEntry:
        """Texts enter at the encoder."""
        return TextEntry(stage="encoder", tokenizer=self._wordpiece)

    def pipeline(self, predict: Predict) -> "EnergyPipeline":
        """The stages wired for use."""
        from coreflow.models.data.tokenizers import TextTokenizer
        from coreflow.models.energy.chain.pipeline import EnergyPipeline
        from coreflow.models.energy.training.checkpoint import UNIGRAM

        return EnergyPipeline(self.config, self._wordpiece, TextTokenizer.load(self._folder / UNIGRAM), predict)

    def trial(self, stages: Mapping[str, Stage], seeds: range, texts: Sequence[tuple[str, Arrays]]) -> Trial:
        """The stages wired for validation, on the golden sentences, ``texts``, and embeddings and surfaces of ``seeds``."""
        from coreflow.models.energy.chain.golden import read_sentences
        from coreflow.models.energy.chain.trial import energy_trial

        return energy_trial(self.config, self._wordpiece, stages, read_sentences(self._folder), seeds, texts)


ENERGY = EnergyFamily()
