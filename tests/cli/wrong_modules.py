"""What the recipe files of test_wrong_recipes.py are made of: modules that cannot be exported, each for one reason, and a right recipe."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from coreflow.export import ImageSpec, Recipe, TensorSpec
from coreflow.export.shapes import Range

__all__ = [
    "TWO",
    "Computes",
    "Counts",
    "Fails",
    "ImageSpec",
    "Range",
    "Recipe",
    "Subtracts",
    "TensorSpec",
    "X",
    "nn",
    "recipe",
    "spoilt",
    "torch",
]

X = TensorSpec((1, 4))
TWO = {"left": X, "right": X}


class Computes(nn.Module):
    """A layer, and a function of its result."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Any:
        """(1, 4) -> what the function gives."""
        return self.function(self.layer(x))


class Counts(nn.Module):
    """A buffer that forward updates, one that it does not, one of whole numbers, and one that does not start at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Tensor
        self.still: Tensor
        self.register_buffer("count", torch.zeros(1, 4))
        self.register_buffer("still", torch.zeros(1, 4))
        self.register_buffer("whole", torch.zeros(1, 4, dtype=torch.int32))
        self.register_buffer("ones", torch.ones(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        """(1, 4) -> (1, 4)."""
        self.count.add_(x)
        return self.count + self.still


class Subtracts(nn.Module):
    """Two inputs by name."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """(1, 4), (1, 4) -> (1, 4)."""
        return left - right


class Doubles(nn.Module):
    """Right: one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """(1, 4) -> (1, 4)."""
        doubled: Tensor = self.second(self.first(x)) * 2
        return doubled


class Refuses(nn.Module):
    """Cannot be made."""

    def __init__(self) -> None:
        raise ValueError("no width")


class Fails(nn.Module):
    """Raises on a line of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """(1, 4) -> nothing."""
        return x @ torch.zeros(3, 3)


def recipe(module: Any = None, /, **fields: Any) -> Recipe:
    """A recipe that is right but for ``fields``."""
    right: Mapping[str, Any] = {
        "name": "small",
        "module": nn.Linear(4, 4) if module is None else module,
        "inputs": {"x": X},
        "outputs": ("y",),
    }
    return Recipe(**{**right, **fields})


def spoilt(value: float) -> nn.Module:
    """A layer with one weight of this ``value``."""
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight[1, 2] = value
    return nn.Sequential(layer)
