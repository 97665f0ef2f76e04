"""A small transformer, its package, and packages of it with other weights."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.recipe import Recipe
from coreflow.models.spec import TensorSpec

WIDTH, HEADS, HIDDEN, LENGTH, LAYERS = 64, 8, 128, 16, 2


class Layer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH, eps=1e-4), nn.LayerNorm(WIDTH, eps=1e-4)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.expand, self.contract = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.quick_gelu = False

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm_1(x)
        query, key, value = (each(normed).view(1, LENGTH, HEADS, -1).transpose(1, 2) for each in (self.query, self.key, self.value))
        weights = (query @ key.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).reshape(1, LENGTH, WIDTH))
        hidden = self.expand(self.norm_2(x))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick_gelu else nn.functional.gelu(hidden)
        return x + self.contract(hidden)


class Network(nn.Module):
    """(1, L, C) -> (1, L, C)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-4)
        self.head = nn.Linear(WIDTH, WIDTH)
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


def replace_weights(package: Path, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """Every weight of ``old`` in ``weight.bin`` becomes the one of ``new``, found by its bytes in fp16."""
    file = next(package.rglob("weight.bin"))
    original = file.read_bytes()
    content = bytearray(original)
    for name, tensor in old.items():
        was, becomes = (each.detach().numpy().astype(np.float16).tobytes() for each in (tensor, new[name]))
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

    def recipe(self, seed: int = 0) -> Recipe:
        return network_recipe(Network(seed))

    def copy(self, target: Path) -> Path:
        return Path(shutil.copytree(self.package, target))

    def with_weights(self, target: Path, new: Mapping[str, Tensor]) -> Path:
        self.copy(target)
        replace_weights(target, self.network.state_dict(), new)
        return target

    def with_fault(self, target: Path, fault: Callable[[dict[str, Tensor]], None]) -> Path:
        weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        fault(weights)
        return self.with_weights(target, weights)


def network_recipe(module: nn.Module) -> Recipe:
    return Recipe(name="network", module=module, inputs={"x": TensorSpec((1, LENGTH, WIDTH))}, outputs=("y",))


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    network = Network()
    return Converted(build(network_recipe(network), tmp_path_factory.mktemp("network")), network)


@pytest.fixture
def edit_weights() -> Callable[[Path, Mapping[str, Tensor], Mapping[str, Tensor]], None]:
    return replace_weights
