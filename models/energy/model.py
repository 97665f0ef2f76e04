"""The energy-flow model: every part, and the paths through them."""

from pathlib import Path

from torch import Tensor, nn

from coreflow.models.energy.config import EnergyConfig
from coreflow.models.energy.decoder import CubeToTextDecoder
from coreflow.models.energy.encoder import TextToCubeEncoder
from coreflow.models.energy.lattice import EnergyLattice
from coreflow.models.energy.mapper import EmbeddingToSurface, SurfaceToEmbedding


class EnergyFlow(nn.Module):
    """Text or embedding -> surface -> lattice -> surface -> text or embedding.

    >>> model = EnergyFlow(config)
    >>> surface = model.lattice(model.encoder(ids, mask))  # (B, S)
    >>> logits = model.decoder(surface, tokens)  # (B, T, V)
    """

    def __init__(self, config: EnergyConfig, t5_directory: Path | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = TextToCubeEncoder(config)
        self.mapper_in = EmbeddingToSurface(config)
        self.lattice = EnergyLattice(config)
        self.mapper_out = SurfaceToEmbedding(config)
        if t5_directory is None:
            self.decoder = CubeToTextDecoder(config)
        else:
            from coreflow.models.t5.load import load_decoder

            self.decoder = CubeToTextDecoder(config, load_decoder(t5_directory))

    def carry_embedding(self, embedding: Tensor) -> Tensor:
        """Embeddings (B, E) through the lattice and back -> (B, E)."""
        return self.mapper_out(self.lattice(self.mapper_in(embedding)))
