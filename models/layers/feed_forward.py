"""Position-wise feed-forward network on (B, C, 1, S)."""

from torch import Tensor, nn


class FeedForward(nn.Module):
    """1x1 convolution, exact GELU, 1x1 convolution.

    >>> FeedForward(channels=64, hidden=128, dropout=0.1)(torch.zeros(2, 64, 1, 10)).shape
    torch.Size([2, 64, 1, 10])
    """

    def __init__(self, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.contract = nn.Conv2d(hidden, channels, 1)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x``."""
        return self.contract(self.dropout(self.activation(self.expand(x))))
