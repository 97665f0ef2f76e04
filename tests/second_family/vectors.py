"""A second model family, as small as one can be: eight numbers squeezed into three and back. No text, no tokens, no decisions.

Nothing of coreflow knows it; the test registers it and goes through the commands.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from coreflow.models.arrays import Array, Arrays
from coreflow.models.errors import BundleError, ConfigError, InputError
from coreflow.models.family import ChainOutput, ChainResult, Passage, Predict, Progress, TextEntry, Trained, Trial, options_from
from coreflow.models.spec import TensorSpec
from coreflow.models.stage import Stage
from coreflow.models.storage import write_json
from coreflow.models.training.checkpoint import load_weights, save_tensors

SIZE, CODE = 8, 3
WEIGHTS, RECORD = "vectors.safetensors", "vectors.json"
PRESETS = {"small": "8 -> 3 -> 8"}


class Squeeze(nn.Module):
    """Encoder and decoder of the autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.narrowing = nn.Linear(SIZE, CODE)
        self.widening = nn.Linear(CODE, SIZE)


@dataclass(frozen=True, kw_only=True)
class Options:
    preset: str = "small"
    steps: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(f"preset {self.preset!r} does not exist; choose one of {', '.join(PRESETS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Progress):
    error: float

    @property
    def losses(self) -> Mapping[str, float]:
        return {"squared": self.error}


def draw(seed: int, size: int) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, (1, size)).astype(np.float16)


def stages_of(model: Squeeze) -> tuple[Stage, ...]:
    return (
        Stage(
            name="squeeze",
            module=model.narrowing,
            inputs={"vector": TensorSpec((1, SIZE))},
            outputs=("code",),
            description="",
            draw=lambda seed: {"vector": draw(seed, SIZE)},
        ),
        Stage(
            name="unfold",
            module=model.widening,
            inputs={"code": TensorSpec((1, CODE))},
            outputs=("vector",),
            description="",
            draw=lambda seed: {"code": draw(seed, CODE)},
        ),
    )


def wire(predict: Predict, vector: Array) -> tuple[Array, Array]:
    """The code, and the vector that comes back."""
    code = predict("squeeze", {"vector": vector})["code"]
    return code, predict("unfold", {"code": code})["vector"]


@dataclass(frozen=True)
class VectorsRun:
    model: Squeeze
    held_out: tuple[str, ...] = ("1 0 0 0 0 0 0 -1",)
    settings: Mapping[str, Any] = field(default_factory=lambda: {"size": SIZE})

    def stages(self) -> tuple[Stage, ...]:
        return stages_of(self.model)

    def write_companions(self, folder: Path) -> None:
        save_tensors(folder / WEIGHTS, self.model.state_dict())


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorsResult(ChainResult):
    code: Array

    def to_json(self, backend: str) -> dict[str, Any]:
        return {**ChainResult.to_json(self, backend), "code": self.code.tolist()}

    def details(self) -> list[str]:
        return [f"code of {self.code.size} numbers"]


class VectorsPipeline:
    config = PRESETS

    def __init__(self, predict: Predict) -> None:
        self._predict = predict

    def options(self, flags: Mapping[str, Any]) -> None:
        if flags:
            raise ConfigError(f"vectors are not decoded: {', '.join(flags)} mean nothing here")

    def run(self, text: str, options: None = None, *, corrections: int = 0) -> VectorsResult:
        numbers = [float(word) for word in text.split()]
        if len(numbers) != SIZE:
            raise InputError(f"{len(numbers)} numbers; {SIZE} are right")
        code, vector = wire(self._predict, np.array([numbers], np.float32))
        return VectorsResult(text=" ".join(f"{value:.1f}" for value in vector[0]), code=code)

    def plot(self, result: VectorsResult, path: Path) -> None:
        raise ConfigError("vectors have no picture")


@dataclass(frozen=True, kw_only=True)
class VectorSample:
    seed: int
    text: str = ""

    @property
    def label(self) -> str:
        return f"vector {self.seed}"

    def run(self, predict: Predict, dtype: type, reference: Passage | None = None) -> Passage:
        code, vector = wire(predict, draw(self.seed, SIZE).astype(dtype))
        return Passage(outputs={"code": code, "vector": vector})

    def tokens(self, predict: Predict, passage: Passage) -> tuple[int, ...]:
        return ()


class VectorsCompanions:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def stages(self) -> tuple[Stage, ...]:
        return stages_of(load_weights(Squeeze(), self._folder / WEIGHTS))

    def golden(self, stage: str) -> list[tuple[Arrays, Arrays]]:
        return []

    def text_entry(self) -> TextEntry | None:
        return None

    def pipeline(self, predict: Predict) -> VectorsPipeline:
        return VectorsPipeline(predict)

    def trial(self, stages: Mapping[str, Stage], seeds: range, texts: Sequence[tuple[str, Arrays]]) -> Trial:
        outputs = (
            ChainOutput(name="code", stages=("squeeze",), decided=False),
            ChainOutput(name="vector", stages=("unfold",), decided=False),
        )
        return Trial(outputs=outputs, samples=[VectorSample(seed=seed) for seed in seeds])


class VectorsFamily:
    kind = "vectors"
    presets: Mapping[str, str] = PRESETS

    def training_options(self, flags: Mapping[str, Any]) -> Options:
        return options_from(Options, flags, self.kind)

    def train(self, options: Options, directory: Path, resume: bool = False) -> Iterator[Progress | Trained]:
        torch.manual_seed(options.seed)
        model = Squeeze()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for step in range(1, options.steps + 1):
            vectors = torch.randn(16, CODE) @ torch.linspace(-1, 1, CODE * SIZE).view(CODE, SIZE)
            loss = (model.widening(model.narrowing(vectors)) - vectors).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield Step(step=step, steps=options.steps, step_ms=0.0, memory_mb=0.0, error=loss.item())
        save_tensors(directory / WEIGHTS, model.state_dict())
        write_json(directory / RECORD, asdict(options))
        yield Trained(directory=directory)

    def has_run(self, directory: Path) -> bool:
        return (directory / WEIGHTS).is_file()

    def is_finished(self, directory: Path) -> bool:
        return (directory / RECORD).is_file() and bool(json.loads((directory / RECORD).read_text()))

    def open_run(self, directory: Path) -> VectorsRun:
        if not self.has_run(directory):
            raise BundleError(f"{directory} holds no vectors")
        return VectorsRun(load_weights(Squeeze(), directory / WEIGHTS))

    def open_companions(self, folder: Path) -> VectorsCompanions:
        return VectorsCompanions(folder)


VECTORS = VectorsFamily()
