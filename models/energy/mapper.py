"""Teacher embedding to surface, and back."""

import torch
from torch import Tensor, nn

from coreflow.models.energy.config import EnergyConfig
from coreflow.models.layers.norm import EPSILON


class _Mapper(nn.Module):
    """Linear, GELU, layer norm, linear."""

    def __init__(self, size_in: int, hidden: int, size_out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size_in, hidden), nn.GELU(), nn.LayerNorm(hidden, eps=EPSILON), nn.Linear(hidden, size_out))


class EmbeddingToSurface(_Mapper):
    """An embedding to a surface; a learned scalar field over the cells is added to it.

    >>> EmbeddingToSurface(config)(embedding).shape  # (B, S)
    """

    def __init__(self, config: EnergyConfig) -> None:
        super().__init__(config.embedding_size, config.mapper_hidden, config.surface_size)
        self.field = nn.Parameter(torch.zeros(config.height, config.width))

    def forward(self, embedding: Tensor) -> Tensor:
        """The surface (B, S) that enters the lattice for ``embedding`` (B, E)."""
        return self.layers(embedding) + self.field.view(1, -1)


class SurfaceToEmbedding(_Mapper):
    """A surface to an embedding; the learned scalar field is added before the network.

    >>> SurfaceToEmbedding(config)(surface).shape  # (B, E)
    """

    def __init__(self, config: EnergyConfig) -> None:
        super().__init__(config.surface_size, config.mapper_hidden, config.embedding_size)
        # Teachers give vectors of length about 1: the untrained output has that length too, not sqrt(E) times it.
        nn.init.normal_(self.layers[-1].get_parameter("weight"), std=(config.mapper_hidden * config.embedding_size) ** -0.5)
        self.field = nn.Parameter(torch.zeros(config.height, config.width))

    def forward(self, surface: Tensor) -> Tensor:
        """The embedding (B, E) of ``surface`` (B, S), as the teacher would give it."""
        return self.layers(surface + self.field.view(1, -1))
