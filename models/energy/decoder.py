"""Decoder from surface to text: an adapter and a T5 decoder."""

from torch import Tensor, nn

from coreflow.models.energy.config import EnergyConfig
from coreflow.models.layers.norm import EPSILON
from coreflow.models.t5.decoder import T5Decoder


class CubeToTextDecoder(nn.Module):
    """An adapter that turns a surface into M memory vectors, and the T5 decoder that attends to them.

    >>> decoder = CubeToTextDecoder(config)
    >>> decoder(surface, tokens).shape  # (B, T, V)
    """

    def __init__(self, config: EnergyConfig, t5: T5Decoder | None = None) -> None:
        super().__init__()
        self.shape = (config.memory_tokens, config.decoder.d_model)
        self.adapter = nn.Sequential(
            nn.Linear(config.surface_size, config.adapter_hidden),
            nn.GELU(),
            nn.LayerNorm(config.adapter_hidden, eps=EPSILON),
            nn.Linear(config.adapter_hidden, self.shape[0] * self.shape[1]),
        )
        self.t5 = T5Decoder(config.decoder) if t5 is None else t5

    def memory(self, surface: Tensor) -> Tensor:
        """Memory vectors (B, M, d_model) of ``surface`` (B, S)."""
        return self.adapter(surface).view(surface.shape[0], *self.shape)

    def forward(self, surface: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B, T, V).

        surface (B, S): as it left the lattice; tokens (B, T): the token before each place.
        """
        return self.t5(tokens, self.memory(surface))
