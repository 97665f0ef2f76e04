"""A small transformer, and the faults that validation must find in packages of it."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from coreflow.export.recipe import Recipe
from coreflow.models.spec import TensorSpec

WIDTH, HEADS, HIDDEN, LENGTH = 64, 8, 128, 16


class Layer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, quick_gelu: bool = False) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH, eps=1e-4), nn.LayerNorm(WIDTH, eps=1e-4)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.expand, self.contract = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.quick_gelu = quick_gelu

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

    def __init__(self, seed: int = 0, layers: int = 2, quick_gelu: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(quick_gelu) for _ in range(layers))
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

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def recipe(module: nn.Module, name: str = "network") -> Recipe:
    return Recipe(name=name, module=module, inputs={"x": TensorSpec((1, LENGTH, WIDTH))}, outputs=("y",))


def _zero_head(weights: dict[str, Tensor]) -> None:
    weights["layers.0.out.weight"][:, : WIDTH // HEADS] = 0


def _drop_bias(weights: dict[str, Tensor]) -> None:
    weights["layers.0.contract.bias"].zero_()


def _swap_rows(weights: dict[str, Tensor]) -> None:
    rows = weights["layers.1.expand.weight"]
    rows[[3, 4]] = rows[[4, 3]]


def _to_bfloat16(weights: dict[str, Tensor]) -> None:
    for name, tensor in weights.items():
        weights[name] = tensor.bfloat16().float()


def _to_int8(weights: dict[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if tensor.ndim == 2:
            scale = tensor.abs().amax(1, keepdim=True) / 127
            weights[name] = (tensor / scale).round() * scale


def _one_output_bias(weights: dict[str, Tensor]) -> None:
    weights["head.bias"][5] += 0.05


def _zero_channel(weights: dict[str, Tensor]) -> None:
    weights["layers.1.query.weight"][7] = 0


# A fault -> what it does to the weights of a package.
WEIGHT_FAULTS: Mapping[str, Callable[[dict[str, Tensor]], None]] = {
    "one head zeroed": _zero_head,
    "feed-forward bias dropped": _drop_bias,
    "two feed-forward rows swapped": _swap_rows,
    "bf16 weights": _to_bfloat16,
    "int8 weights": _to_int8,
    "one output bias wrong": _one_output_bias,
    "one projection channel zeroed": _zero_channel,
}


def with_weights(package: Path, old: Mapping[str, Tensor], new: Mapping[str, Tensor], target: Path) -> Path:
    """A copy of ``package`` at ``target`` in which every weight of ``old`` is the one of ``new``."""
    shutil.copytree(package, target)
    file = next(target.rglob("weight.bin"))
    original = file.read_bytes()
    content = bytearray(original)
    for name, tensor in old.items():
        was, becomes = (each.numpy().astype(np.float16).tobytes() for each in (tensor, new[name]))
        if was != becomes:
            assert original.count(was) == 1, f"{name} is {original.count(was)} times in the file"
            place = original.index(was)
            content[place : place + len(was)] = becomes
    file.write_bytes(content)
    return target


def with_fault(package: Path, old: Mapping[str, Tensor], fault: str, target: Path) -> Path:
    weights = {name: tensor.clone() for name, tensor in old.items()}
    WEIGHT_FAULTS[fault](weights)
    return with_weights(package, old, weights, target)
