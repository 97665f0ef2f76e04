"""Self attention on (B, C, 1, S)."""

import torch
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self attention, channels first; computes what ``nn.MultiheadAttention`` does.

    >>> SelfAttention(channels=64, heads=4)(torch.zeros(2, 64, 1, 10), torch.zeros(2, 1, 1, 10)).shape
    torch.Size([2, 64, 1, 10])

    The heads are a view of the channels, and both products take one operand transposed, which the engine's matmul does for
    free: no transpose is left in the program.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_size = channels // heads
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Same shape as ``x``.

        x (B, C, 1, S); bias (B, 1, 1, S): added to the scores of every query.
        """
        batch, channels, _, length = x.shape
        split = (batch, self.heads, self.head_size, length)
        # Scaled before the product, so that the scores stay far from fp16's range.
        query = self.query(x).view(split) * self.head_size**-0.5
        scores = torch.matmul(query.transpose(-1, -2), self.key(x).view(split)) + bias
        context = torch.matmul(self.value(x).view(split), scores.softmax(-1).transpose(-1, -2))
        return self.out(context.view(batch, channels, 1, length))
