"""Small networks of five kinds, for faults to be put into: encoder, decoder, convolutional, recurrent and state-space.

All weights are drawn from one seed. Every network calls ``write`` on a tensor in its middle, where a fault may write through a view.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Arrays
from coreflow.models.spec import TensorSpec

WIDTH, HEADS, LENGTH, WORDS, LAYERS = 32, 4, 12, 50, 2

Write = Callable[[Tensor], None]


def leave(_: Tensor) -> None:
    """The write of a healthy network: none."""


class Attention(nn.Module):
    """Multi-head attention of x to ``memory``; ``turns``, if there are any, are rotary tables, and ``mask`` is added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None, turns: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(1, L, C), (1, M, C) -> (1, L, C)."""
        query, key, value = (self._heads(layer(y)) for layer, y in ((self.query, x), (self.key, memory), (self.value, memory)))
        if turns is not None:
            query, key = _turn(query, *turns), _turn(key, *turns)
        scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).reshape(1, -1, WIDTH))

    @staticmethod
    def _heads(x: Tensor) -> Tensor:
        return x.view(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2)


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


class EncoderLayer(nn.Module):
    """Pre-norm attention and feed-forward with GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.expand, self.contract = Attention(), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(1, L, C) -> (1, L, C)."""
        normed = self.norm_1(x)
        x = x + self.attention(normed, normed, mask)
        return x + self.contract(F.gelu(self.expand(self.norm_2(x))))


class Encoder(nn.Module):
    """Token ids and a key-padding mask to one vector per token."""

    def __init__(self, write: Write = leave) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(1, LENGTH, WIDTH))
        self.layers, self.norm, self.head = nn.ModuleList(EncoderLayer() for _ in range(LAYERS)), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 8)
        self.write = write

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(1, L), (1, L) -> (1, L, 8)."""
        x = self.words(ids) + self.places
        absent = (1 - mask)[:, None, None] * -1e4
        for layer in self.layers:
            x = layer(x, absent)
            self.write(x)
        return self.head(self.norm(x))


class RootMeanSquare(nn.Module):
    """RMS norm, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """(1, L, C) -> (1, L, C)."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-3) * self.weight


class DecoderLayer(nn.Module):
    """Causal rotary attention, attention to a memory, and a gated feed-forward, each after an RMS norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(RootMeanSquare() for _ in range(3))
        self.own, self.cross = Attention(), Attention()
        self.gate, self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """(1, L, C) -> (1, L, C)."""
        normed = self.norms[0](x)
        x = x + self.own(normed, normed, mask, turns)
        x = x + self.cross(self.norms[1](x), memory)
        normed = self.norms[2](x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Decoder(nn.Module):
    """A causal decoder with rotary positions, from vectors and a memory to scores of words."""

    def __init__(self, write: Write = leave) -> None:
        super().__init__()
        self.layers, self.norm, self.head = nn.ModuleList(DecoderLayer() for _ in range(LAYERS)), RootMeanSquare(), nn.Linear(WIDTH, WORDS)
        angles = torch.arange(LENGTH)[:, None] * 10.0 ** -torch.arange(4)[None].repeat(1, 2)
        self.cosine, self.sine = nn.Buffer(angles.cos()), nn.Buffer(angles.sin())
        self.mask = nn.Buffer(torch.full((LENGTH, LENGTH), -1e4).triu(1))
        self.write = write

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """(1, L, C), (1, M, C) -> (1, L, words)."""
        for layer in self.layers:
            x = layer(x, memory, self.mask, (self.cosine, self.sine))
            self.write(x)
        return self.head(self.norm(x)).log_softmax(-1)


class Bottleneck(nn.Module):
    """Convolutions with batch norms, a squeeze-and-excite gate and a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.depthwise = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        )
        self.last = nn.Conv2d(channels, channels, 1)
        self.norm_1, self.norm_2, self.norm_3 = (nn.BatchNorm2d(channels) for _ in range(3))
        self.squeeze, self.excite = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, H, W) -> (1, C, H, W)."""
        y = F.relu(self.norm_1(self.first(x)))
        y = F.hardswish(self.norm_2(self.depthwise(y)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))
        return F.relu(x + self.norm_3(self.last(y * gate[:, :, None, None])))


class Convolutional(nn.Module):
    """A small image classifier with every kind of pooling."""

    def __init__(self, write: Write = leave) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12)
        self.blocks = nn.ModuleList(Bottleneck(12) for _ in range(LAYERS))
        self.mix, self.group, self.head = nn.Conv2d(24, 16, 1), nn.GroupNorm(4, 16), nn.Linear(16, 10)
        self.write = write

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) -> (1, 10)."""
        x = F.leaky_relu(self.norm(self.stem(image)), 0.1)
        for block in self.blocks:
            x = block(x)
            self.write(x)
        pooled = torch.cat([F.max_pool2d(x, 3, stride=1, padding=1), F.avg_pool2d(x, 3, stride=1, padding=1)], 1)
        x = F.elu(self.group(self.mix(F.max_pool2d(pooled, 2))))
        return self.head(x.flatten(2).mean(-1))


class Recurrent(nn.Module):
    """A layer of LSTM, and a few steps of a gated unit written out."""

    def __init__(self, write: Write = leave) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, WIDTH, batch_first=True)
        self.gates, self.candidate, self.head = nn.Linear(2 * WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, 8)
        self.write = write

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """(1, T, 16), (1, C) -> (1, 8)."""
        sequence, _ = self.lstm(x)
        for step in range(3):
            entered = torch.cat([sequence[:, step], hidden], -1)
            update, reset = torch.sigmoid(self.gates(entered)).chunk(2, -1)
            candidate = torch.tanh(self.candidate(torch.cat([sequence[:, step], reset * hidden], -1)))
            hidden = update * hidden + (1 - update) * candidate
            self.write(hidden)
        return self.head(hidden)


class StateSpaceLayer(nn.Module):
    """A selective state space: a causal convolution, and a scan by doubling."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.enter, self.leave = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.conv, self.step = nn.Conv1d(WIDTH, WIDTH, 4, groups=WIDTH, padding=3), nn.Linear(WIDTH, WIDTH)
        self.decay, self.skip = nn.Parameter(torch.rand(WIDTH)), nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """(1, L, C) -> (1, L, C)."""
        u, gate = self.enter(self.norm(x)).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., :LENGTH].transpose(1, 2))
        step = F.softplus(self.step(u))
        kept, state = torch.exp(-step * self.decay.exp()), step * u
        for shift in (1, 2, 4, 8):
            before = F.pad(state[:, :-shift], (0, 0, shift, 0))
            state = state + kept * before
            kept = kept * F.pad(kept[:, :-shift], (0, 0, shift, 0), value=1.0)
        return x + self.leave((state + u * self.skip) * F.silu(gate))


class StateSpace(nn.Module):
    """Layers of a selective state space, from vectors to vectors."""

    def __init__(self, write: Write = leave) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(StateSpaceLayer() for _ in range(LAYERS)), nn.Linear(WIDTH, 8)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        """(1, L, C) -> (1, L, 8)."""
        for layer in self.layers:
            x = layer(x)
            self.write(x)
        return self.head(x)


_INPUTS: Mapping[type[nn.Module], Mapping[str, TensorSpec]] = {
    Encoder: {"ids": TensorSpec((1, LENGTH), "int32", bounds=(0, WORDS - 1)), "mask": TensorSpec((1, LENGTH), bounds=(0, 1))},
    Decoder: {"x": TensorSpec((1, LENGTH, WIDTH)), "memory": TensorSpec((1, 7, WIDTH))},
    Convolutional: {"image": TensorSpec((1, 3, 24, 24))},
    Recurrent: {"x": TensorSpec((1, 6, 16)), "hidden": TensorSpec((1, WIDTH))},
    StateSpace: {"x": TensorSpec((1, LENGTH, WIDTH))},
}
NETWORKS = {"encoder": Encoder, "decoder": Decoder, "convolutional": Convolutional, "recurrent": Recurrent, "state-space": StateSpace}


def network_recipe(name: str, write: Write = leave) -> Recipe:
    """The recipe of a network with its weights of seed 0; biases, scales and statistics are no longer those of a fresh one."""
    torch.manual_seed(0)
    module = NETWORKS[name](write)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for path, buffer in module.named_buffers():
            if path.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer) * 0.3)
    draw = _padded if name == "encoder" else None
    return Recipe(name=name.replace("-", "_"), module=module.eval(), inputs=_INPUTS[NETWORKS[name]], outputs=("y",), draw=draw)


def _padded(seed: int) -> Arrays:
    """Token ids, and a mask of a prefix."""
    random = np.random.default_rng(seed)
    mask = (np.arange(LENGTH) < random.integers(LENGTH // 2, LENGTH + 1))[None]
    return {"ids": random.integers(0, WORDS, (1, LENGTH)).astype(np.int32), "mask": mask.astype(np.float16)}
