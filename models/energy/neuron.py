"""Features that a cell of the lattice gives to a flow that passes through it."""

import math

import torch
from torch import Tensor, nn

from coreflow.models.energy.config import EnergyConfig
from coreflow.models.layers.norm import ChannelNorm

BANDS = 4  # sine and cosine at 1, 2, 4 and 8 half turns over the axis


def cell_weights(coordinate: Tensor, cells: int) -> Tensor:
    """Share of each cell in a coordinate: (B, 1, 1, N) -> (B, 1, cells, N).

    One where the coordinate is a whole number, linear in between. A one-hot vector without a comparison, a gather or a
    scatter, exact in fp16, and differentiable.
    """
    grid = torch.arange(cells, dtype=coordinate.dtype, device=coordinate.device).view(1, 1, cells, 1)
    return torch.relu(1 - (coordinate - grid).abs())


def sinusoid_table(cells: int) -> Tensor:
    """(1 + 2 * BANDS, cells): the position in [-1, 1], then its sines and cosines.

    Cells are few and whole, so the encoding is a table: sine and cosine exist on the engine from A15 and M3 on only.
    """
    position = torch.linspace(-1, 1, cells) if cells > 1 else torch.zeros(1)
    angles = torch.stack([position * math.pi * 2**band for band in range(BANDS)])
    return torch.cat([position[None], angles.sin(), angles.cos()])


class SimpleNeuron(nn.Module):
    """One network shared by all cells: position and energy of a flow -> features.

    >>> SimpleNeuron(config)(table.position, table.energy).shape  # (B, F, 1, N)
    """

    def __init__(self, config: EnergyConfig) -> None:
        super().__init__()
        self.extents = (config.width, config.height, config.depth)
        for axis, cells in zip("xyz", self.extents, strict=True):
            self.register_buffer(f"table_{axis}", sinusoid_table(cells), persistent=False)
        self.expand = nn.Conv2d(3 * (1 + 2 * BANDS) + 1, config.neuron_hidden, 1)
        self.norm = ChannelNorm(config.neuron_hidden)
        self.activation = nn.GELU()
        self.contract = nn.Conv2d(config.neuron_hidden, config.neuron_output, 1)

    def forward(self, position: Tensor, energy: Tensor) -> Tensor:
        """Features (B, F, 1, N).

        position (B, 3, 1, N): in cells; energy (B, 1, 1, N).
        """
        parts = [energy]
        for axis, cells in enumerate(self.extents):
            table: Tensor = getattr(self, f"table_{'xyz'[axis]}")
            encoded = torch.matmul(table, cell_weights(position[:, axis : axis + 1], cells))  # (B, 1, 1 + 2 * BANDS, N)
            parts.append(encoded.view(encoded.shape[0], -1, 1, encoded.shape[3]))
        return self.contract(self.activation(self.norm(self.expand(torch.cat(parts, 1)))))
