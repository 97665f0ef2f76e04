"""The small programs that checks run: written in torch, exported as anybody's, and large enough that Core ML takes the engine for them."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.recipe import Recipe
from coreflow.models.spec import TensorSpec

CHANNELS, EXTENT = 256, 32
SHAPE = (1, CHANNELS, EXTENT, EXTENT)


class Applied(nn.Module):
    """A function of x, and a convolution of the result that is worth a launch of the engine; of it only the function's result counts."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.ballast = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        nn.init.normal_(self.ballast.weight, std=1e-3, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x ``SHAPE`` -> the function's result, and the convolution's (``SHAPE``)."""
        return self.function(x), self.ballast(x)


class OnFewChannels(nn.Module):
    """A convolution of the first 64 channels of x."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, N, H, W)."""
        result: Tensor = self.convolution(x[:, :64])
        return result


def pointwise(weights: Tensor, biases: Tensor) -> nn.Conv2d:
    """A 1 x 1 convolution with the rows ``weights`` (N, 64) and ``biases`` (N,)."""
    convolution = nn.Conv2d(64, len(weights), 1)
    with torch.no_grad():
        convolution.weight.copy_(weights[:, :, None, None])
        convolution.bias.copy_(biases)  # type: ignore[union-attr]
    return convolution


class Stack(nn.Module):
    """Convolutions one after the other."""

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(count)))
        for place, layer in enumerate(self.layers):
            nn.init.normal_(layer.weight, std=(9 * channels) ** -0.5, generator=torch.Generator().manual_seed(place))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        result: Tensor = self.layers(x)
        return result


class Encoder(nn.Module):
    """Six pre-norm transformer layers, 384 wide."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(384, 6, 1536, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, 384) -> the same shape."""
        result: Tensor = self.layers(x)
        return result


def linear(weight: Tensor) -> nn.Linear:
    """A linear layer without bias, ``weight`` (N, K)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def package_of(name: str, module: nn.Module, shape: tuple[int, ...], outputs: tuple[str, ...], folder: Path) -> Path:
    """``module`` of one fp16 input x, exported into ``folder``."""
    recipe = Recipe(name=name, module=module.eval(), inputs={"x": TensorSpec(shape, "float16")}, outputs=outputs)
    return build(recipe, folder, check=False)
