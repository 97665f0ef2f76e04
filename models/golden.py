"""Golden samples on disk: inputs of a stage and torch's outputs for them, ``golden/STAGE.safetensors``.

Tensors are named ``<sample>.in.<name>`` and ``<sample>.out.<name>``.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from coreflow.models.arrays import Array, Arrays
from coreflow.models.errors import BundleError

GOLDEN = "golden"


def write_samples(companions: Path, stage: str, samples: Sequence[tuple[Arrays, Arrays]]) -> None:
    """Pairs of inputs and outputs of a stage, below ``companions``."""
    folder = companions / GOLDEN
    folder.mkdir(exist_ok=True)
    tensors = {
        f"{number}.{side}.{name}": np.ascontiguousarray(array)
        for number, pair in enumerate(samples)
        for side, arrays in zip(("in", "out"), pair, strict=True)
        for name, array in arrays.items()
    }
    save_file(tensors, folder / f"{stage}.safetensors")


def has_samples(companions: Path, stage: str) -> bool:
    """Whether samples of a stage were recorded."""
    return (companions / GOLDEN / f"{stage}.safetensors").is_file()


def read_samples(companions: Path, stage: str) -> list[tuple[Arrays, Arrays]]:
    """Recorded inputs of a stage and torch's outputs for them; ``BundleError`` when they cannot be read."""
    path = companions / GOLDEN / f"{stage}.safetensors"
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} is not a readable safetensors file: {error}") from error
    numbers = sorted({int(key[1]) for name in arrays if (key := re.match(r"(\d+)\.in\.", name))})

    def side(number: int, which: str) -> dict[str, Array]:
        prefix = f"{number}.{which}."
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    return [(side(number, "in"), side(number, "out")) for number in numbers]
