"""Normalisation over channels."""

import torch
from torch import Tensor, nn

# The smallest fp16 number with full precision is 6.1e-5; an engine that flushes subnormals would read a smaller eps as 0.
EPSILON = 1e-4


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (B, C, 1, S).

    >>> ChannelNorm(64)(torch.zeros(2, 64, 1, 10)).shape
    torch.Size([2, 64, 1, 10])

    Written out, because ``nn.LayerNorm`` takes trailing axes only and would cost two transposes; the converter fuses these
    operations into one ``layer_norm`` with ``axes=[1]``.
    """

    def __init__(self, channels: int, epsilon: float = EPSILON) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x``."""
        centred = x - x.mean(1, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(1, keepdim=True) + self.epsilon)
        return centred * scale * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
