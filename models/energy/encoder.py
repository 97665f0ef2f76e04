"""Encoder from text to surface: a transformer over token ids."""

from torch import Tensor, nn

from coreflow.models.energy.config import EnergyConfig
from coreflow.models.layers.attention import SelfAttention
from coreflow.models.layers.feed_forward import FeedForward
from coreflow.models.layers.norm import EPSILON, ChannelNorm

# Added to the scores of padding. Finite: -inf times zero is NaN, and a row that is masked everywhere must stay finite in fp16.
MASKED = -1e4


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer on (B, C, 1, S).

    >>> layer = EncoderLayer(channels=64, heads=4, hidden=128, dropout=0.1)
    >>> layer(torch.zeros(2, 64, 1, 10), torch.zeros(2, 1, 1, 10)).shape
    torch.Size([2, 64, 1, 10])

    Computes what ``nn.TransformerEncoderLayer(activation="gelu", norm_first=True)`` does. Both branches start at zero, so
    that an untrained encoder is the mean of its embeddings: the words reach the surface from the first step on, where a
    post-norm stack needs thousands of steps to let them through.
    """

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(channels, heads)
        self.attention_norm = ChannelNorm(channels)
        self.feed_forward = FeedForward(channels, hidden, dropout)
        self.feed_forward_norm = ChannelNorm(channels)
        self.dropout = nn.Dropout(dropout)
        for branch in (self.attention.out, self.feed_forward.contract):
            nn.init.zeros_(branch.weight)
            nn.init.zeros_(branch.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Same shape as ``x``; ``bias`` (B, 1, 1, S) as in ``SelfAttention``."""
        x = x + self.dropout(self.attention(self.attention_norm(x), bias))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class TextToCubeEncoder(nn.Module):
    """Token ids to the surface that enters the lattice.

    >>> TextToCubeEncoder(config)(ids, mask).shape  # (B, S)
    """

    def __init__(self, config: EnergyConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.tokens = nn.Embedding(config.vocabulary, width)
        self.positions = nn.Embedding(config.encoder_positions, width)
        # Entries of 1 / sqrt(C), scaled to 1 on the way in: a step of AdamW then moves a word by sqrt(C) learning rates.
        self.scale = width**0.5
        nn.init.normal_(self.tokens.weight, std=width**-0.5)
        nn.init.normal_(self.positions.weight, std=width**-0.5)
        self.layers = nn.ModuleList(
            EncoderLayer(width, config.encoder_heads, config.encoder_feed_forward, config.dropout) for _ in range(config.encoder_layers)
        )
        self.head = nn.Sequential(
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, eps=EPSILON),
            nn.Dropout(config.dropout),
            nn.Linear(width, config.surface_size),
            nn.Tanh(),
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The surface (B, S), in [-1, 1].

        ids (B, L): integers; mask (B, L): 1 on a token, 0 on padding.
        """
        embedded = self.scale * (self.tokens(ids) + self.positions.weight[: ids.shape[1]])
        x = embedded.transpose(1, 2).unsqueeze(2)  # (B, C, 1, L)
        mask = mask[:, None, None, :]  # (B, 1, 1, L)
        bias = (1 - mask) * MASKED
        for layer in self.layers:
            x = layer(x, bias)
        # The mean over real tokens: ones in the mask divided first, so that the fp16 sum stays near 1 in size.
        share = mask / mask.sum(-1, keepdim=True).clamp(min=1)
        return self.head((x * share).sum((2, 3)))
