"""A small transformer, its package, and packages of it with other weights."""

import functools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.recipe import Recipe
from coreflow.models.spec import Precision, TensorSpec

WIDTH, HEADS, LENGTH, LAYERS = 64, 8, 16, 2
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "tanh-gelu": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "quick-gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class Layer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, activation: str, eps: float) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.expand, self.contract = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.width, self.activation = width, activation

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm_1(x)
        query, key, value = (
            projection(normed).view(1, LENGTH, HEADS, -1).transpose(1, 2) for projection in (self.query, self.key, self.value)
        )
        weights = (query @ key.transpose(-1, -2) * (self.width // HEADS) ** -0.5).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).reshape(1, LENGTH, self.width))
        return x + self.contract(ACTIVATIONS[self.activation](self.expand(self.norm_2(x))))


class Network(nn.Module):
    """(1, L, C) -> (1, L, C)."""

    def __init__(self, seed: int = 0, layers: int = LAYERS, width: int = WIDTH, activation: str = "gelu", eps: float = 1e-4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, activation, eps) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.head = nn.Linear(width, width)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                drawn = torch.randn(parameter.shape, generator=random)
                if parameter.ndim == 2:
                    parameter.copy_(drawn * parameter.shape[1] ** -0.5)
                else:
                    parameter.copy_(drawn * 0.1 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def replace_weights(package: Path, old: Mapping[str, Tensor], new: Mapping[str, Tensor], dtype: type[np.generic] = np.float16) -> None:
    """Every weight of ``old`` in ``weight.bin`` becomes the one of ``new``, found by its bytes in ``dtype``."""
    file = next(package.rglob("weight.bin"))
    original = file.read_bytes()
    content = bytearray(original)
    for name, tensor in old.items():
        was, becomes = (weight.detach().numpy().astype(dtype).tobytes() for weight in (tensor, new[name]))
        if was != becomes:
            assert original.count(was) == 1, f"{name} is {original.count(was)} times in the file"
            place = original.index(was)
            content[place : place + len(was)] = becomes
    file.write_bytes(content)


@dataclass(frozen=True)
class Converted:
    """A network of seed 0 and its package, converted once; other weights are put into copies of it."""

    package: Path
    network: Network
    precision: Precision = "fp16"

    def recipe(self, seed: int = 0) -> Recipe:
        return network_recipe(Network(seed, len(self.network.layers), self.network.head.in_features))

    def copy(self, target: Path) -> Path:
        return Path(shutil.copytree(self.package, target))

    def with_weights(self, target: Path, new: Mapping[str, Tensor]) -> Path:
        self.copy(target)
        replace_weights(target, self.network.state_dict(), new, np.float16 if self.precision == "fp16" else np.float32)
        return target

    def with_fault(self, target: Path, fault: Callable[[dict[str, Tensor]], None]) -> Path:
        weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        fault(weights)
        return self.with_weights(target, weights)


def network_recipe(network: Network, precision: Precision = "fp16") -> Recipe:
    inputs = {"x": TensorSpec((1, LENGTH, network.head.in_features))}
    return Recipe(name="network", module=network, inputs=inputs, outputs=("y",), precision=precision)


@pytest.fixture(scope="session")
def convert_network(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Converted]:
    """Networks of seed 0, each architecture converted once at each precision."""

    @functools.cache
    def convert(layers: int, width: int, precision: Precision = "fp16", **other: Any) -> Converted:
        network = Network(0, layers, width, **other)
        return Converted(build(network_recipe(network, precision), tmp_path_factory.mktemp("network")), network, precision)

    return convert


@pytest.fixture(scope="session")
def converted(convert_network: Callable[..., Converted]) -> Converted:
    return convert_network(LAYERS, WIDTH)


@pytest.fixture
def edit_weights() -> Callable[[Path, Mapping[str, Tensor], Mapping[str, Tensor]], None]:
    return replace_weights
