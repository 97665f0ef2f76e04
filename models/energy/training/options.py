"""Options of a training run of the energy flow."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from coreflow.models.errors import ConfigError

# Options that do not decide the result: a run may go on with others.
FREE_OPTIONS = ("save_every",)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """All that decides the result of a run, beside the corpus.

    >>> TrainingOptions(preset="demo", corpus=Path("sentences.txt"), steps=500)
    """

    preset: str = "demo"
    corpus: Path | None = None  # None: the built-in grammar
    teacher: Path | None = None  # None: hashed n-grams
    t5: Path | None = None  # a Hugging Face T5 directory whose decoder to start from
    device: Literal["auto", "cpu", "mps", "cuda"] = "auto"
    steps: int | None = None  # None: the preset's
    batch_size: int | None = None
    learning_rate: float | None = None
    accumulate: int = 1  # batches per step of the optimizer
    mixed_precision: bool = True  # fp16 autocast where the device gains from it; never on a CPU
    sentences: int = 60_000  # drawn from the grammar
    text_weight: float = 1.0
    energy_weight: float = 0.2
    save_every: int = 500  # steps between checkpoints
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "sentences", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}; at least 1 is needed")
        if self.device not in ("auto", "cpu", "mps", "cuda"):
            raise ConfigError(f"device {self.device!r}; choose auto, cpu, mps or cuda")

    def to_json(self) -> dict[str, Any]:
        """Plain data for the training record."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    def refuse_others(self, saved: Mapping[str, Any], directory: Path) -> None:
        """Raise ``ConfigError`` where the run in ``directory`` was begun with other options than these."""
        differences = [
            f"{name}={value!r}, not {saved.get(name)!r}"
            for name, value in self.to_json().items()
            if name not in FREE_OPTIONS and value != saved.get(name)
        ]
        if differences:
            raise ConfigError(f"{directory} was begun with other options: {'; '.join(differences)}. Give the same, or another directory")
