"""The T5 v1.0 decoder: all positions at once for training, one position per call with a cache for the engine.

Pre-norm blocks of self attention, cross attention and a ReLU feed-forward, all without biases; attention scores are not
scaled; one table of relative position biases serves the self attention of every block. Logits equal those of
transformers' ``T5ForConditionalGeneration`` (tests/models/t5/test_load.py).

Shapes by letter: B batch, T positions, M memory vectors, C ``d_model``, H heads, D ``d_kv``, V vocabulary. Keys are kept
as (B, H, D, S) and values as (B, H, S, D), so that neither product of attention needs a transpose.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreflow.models.spec import TensorSpec
from coreflow.models.t5.config import T5Config

# Finite, and small enough for fp16: a softmax weight of exp(-1e4) is 0 there and in fp32 alike.
MASKED = -1e4

KeyValue = tuple[Tensor, Tensor]
KeysValues = tuple[KeyValue, ...]  # one pair a block


def relative_buckets(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Bucket of each distance (query position - key position, int64): unidirectional, so the future counts as distance 0.

    The first half of the buckets holds one distance each, the second half widens logarithmically up to ``max_distance``;
    everything further shares the last bucket. The arithmetic is float32, as where the published weights were trained.
    """
    unshared = buckets // 2
    distance = distance.clamp(min=0)
    ratio = torch.log(distance.clamp(min=unshared).float() / unshared) / math.log(max_distance / unshared)
    widening = unshared + (ratio * (buckets - unshared)).long()
    return torch.where(distance < unshared, distance, widening.clamp(max=buckets - 1))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last axis.

    >>> RMSNorm(width=64, eps=1e-6)(torch.zeros(2, 10, 64)).shape
    torch.Size([2, 10, 64])
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.width = width
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        # x² leaves fp16 at |x| = 256, and T5's residual stream goes beyond 2000. [x, -x] has mean 0 and variance mean(x²),
        # so a single layer_norm gives the same and no square passes between two ops of a program.
        pair = torch.cat((x, -x), dim=-1)
        return F.layer_norm(pair, (2 * self.width,), torch.cat((self.weight, self.weight)), eps=self.eps)[..., : self.width]


class Attention(nn.Module):
    """Projections of one attention and the attention itself.

    >>> attention = Attention(config)
    >>> attention(x, *attention.keys_values(memory), bias=None).shape == x.shape
    True
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.heads = (config.num_heads, config.d_kv)
        self.query = nn.Linear(config.d_model, config.inner, bias=False)
        self.key = nn.Linear(config.d_model, config.inner, bias=False)
        self.value = nn.Linear(config.d_model, config.inner, bias=False)
        self.output = nn.Linear(config.inner, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.query.weight, std=(config.d_model * config.d_kv) ** -0.5)  # stands in for the missing score scale
        nn.init.normal_(self.key.weight, std=config.d_model**-0.5)
        nn.init.normal_(self.value.weight, std=config.d_model**-0.5)
        nn.init.normal_(self.output.weight, std=config.inner**-0.5)

    def keys_values(self, x: Tensor) -> KeyValue:
        """Keys (B, H, D, S) and values (B, H, S, D) of ``x`` (B, S, C)."""
        keys = (self.key.weight @ x.transpose(1, 2)).unflatten(1, self.heads)
        return keys, self.value(x).unflatten(2, self.heads).transpose(1, 2)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Attention over S positions, (B, T, C).

        x (B, T, C): queries; keys (B, H, D, S) and values (B, H, S, D); bias: broadcasts to (B, H, T, S).
        """
        queries = self.query(x).unflatten(2, self.heads).transpose(1, 2)
        return self.output(self._attend(queries, keys, values, bias).transpose(1, 2).flatten(2))

    def step_key_value(self, x: Tensor) -> KeyValue:
        """Key (B, H, D, 1) and value (B, H, 1, D) of one position ``x`` (B, C)."""
        heads, width = self.heads
        return self.key(x).unflatten(1, (heads, width, 1)), self.value(x).unflatten(1, (heads, 1, width))

    def step(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of one position over S positions, (B, C).

        x (B, C): the query; keys (B, H, D, S) and values (B, H, S, D); bias (B, H, 1, S).
        """
        heads, width = self.heads
        queries = self.query(x).unflatten(1, (heads, 1, width))  # with one position, splitting the heads is a reshape only
        return self.output(self._attend(queries, keys, values, bias).flatten(1))

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        scores = queries @ keys
        weights = (scores if bias is None else scores + bias).softmax(dim=-1)
        return self.dropout(weights) @ values


class Slot(NamedTuple):
    """The cache slot that a step writes, as masks shaped for keys and for values: 1 at its position, and the reverse.

    >>> slot = Slot.at(position)  # (B, T), one-hot
    >>> keys = keys * slot.keep_keys + key * slot.new_key
    """

    new_key: Tensor  # (B, 1, 1, T)
    keep_keys: Tensor
    new_value: Tensor  # (B, 1, T, 1)
    keep_values: Tensor

    @classmethod
    def at(cls, position: Tensor) -> "Slot":
        """From a one-hot row (B, T)."""
        column, row = position.unsqueeze(1).unsqueeze(2), position.unsqueeze(1).unsqueeze(3)
        return cls(column, 1 - column, row, 1 - row)


class Block(nn.Module):
    """Self attention, cross attention, feed-forward; each added to the residual stream.

    >>> x = Block(config)(x, memory, decoder.causal_bias(x.shape[1]))
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.self_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.self_attention = Attention(config)
        self.cross_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.cross_attention = Attention(config)
        self.feed_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.feed_in = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.feed_out = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.feed_in.weight, std=config.d_model**-0.5)
        nn.init.normal_(self.feed_out.weight, std=config.d_ff**-0.5)

    def forward(self, x: Tensor, memory: Tensor, self_bias: Tensor) -> Tensor:
        """Same shape as ``x`` (B, T, C); ``memory`` is (B, M, C)."""
        normed = self.self_norm(x)
        x = x + self.dropout(self.self_attention(normed, *self.self_attention.keys_values(normed), self_bias))
        cross = self.cross_attention(self.cross_norm(x), *self.cross_attention.keys_values(memory), None)
        return self._feed(x + self.dropout(cross))

    def step(self, x: Tensor, slot: Slot, bias: Tensor, own: KeyValue, cross: KeyValue) -> tuple[Tensor, KeyValue]:
        """One position (B, C) -> (B, C), and its own keys and values with the slot of the position replaced."""
        normed = self.self_norm(x)
        key, value = self.self_attention.step_key_value(normed)
        # A blend, not an indexed write: tracing loses the write, and scatter does not run on the engine. Exact, since the
        # factors are 0 and 1.
        keys = own[0] * slot.keep_keys + key * slot.new_key
        values = own[1] * slot.keep_values + value * slot.new_value
        x = x + self.self_attention.step(normed, keys, values, bias)
        x = x + self.cross_attention.step(self.cross_norm(x), *cross, None)
        return self._feed(x), (keys, values)

    def _feed(self, x: Tensor) -> Tensor:
        hidden = self.dropout(F.relu(self.feed_in(self.feed_norm(x))))
        return x + self.dropout(self.feed_out(hidden))


class T5Decoder(nn.Module):
    """Tokens and memory vectors -> logits.

    >>> decoder(tokens, memory)                                 # training: all positions at once
    >>> cross = decoder.cross_keys_values(memory)               # decoding: once a memory, then one ``step`` a token
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)
        self.blocks = cast("Sequence[Block]", nn.ModuleList(Block(config) for _ in range(config.num_layers)))
        self.final_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.head = None if config.tie_word_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        # Not T5's 1: AdamW moves an entry by the learning rate a step, and from 1 that takes hundreds of steps.
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
        nn.init.normal_(self.position_bias.weight, std=config.d_model**-0.5)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=config.d_model**-0.5)

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each of ``tokens`` (B, T), which begin with ``pad_id``; ``memory`` is (B, M, C)."""
        self_bias = self.causal_bias(tokens.shape[1])
        x = self.dropout(self.embedding(tokens))
        for block in self.blocks:
            x = block(x, memory, self_bias)
        return self._logits(x)

    def causal_bias(self, length: int) -> Tensor:
        """(H, T, T): relative position bias of query row to key column, ``MASKED`` where the key lies in the future."""
        positions = torch.arange(length, device=self.position_bias.weight.device)
        distance = positions[:, None] - positions
        buckets = relative_buckets(distance, self.config.relative_attention_num_buckets, self.config.relative_attention_max_distance)
        return self.position_bias(buckets).permute(2, 0, 1).masked_fill(distance < 0, MASKED)

    def bias_table(self, length: int) -> Tensor:
        """(T, H·T): row p is the bias of a query at position p to every cache slot; for ``step``."""
        return self.causal_bias(length).transpose(0, 1).flatten(1)

    def cross_keys_values(self, memory: Tensor) -> KeysValues:
        """Memory (B, M, C) -> for each block the keys (B, H, D, M) and values (B, H, M, D) of cross attention."""
        return tuple(block.cross_attention.keys_values(memory) for block in self.blocks)

    def empty_cache(self, length: int, batch: int = 1) -> KeysValues:
        """Zero keys (B, H, D, T) and values (B, H, T, D) of self attention for every block."""
        heads, width = self.config.num_heads, self.config.d_kv
        zeros = self.embedding.weight.new_zeros
        return tuple((zeros(batch, heads, width, length), zeros(batch, heads, length, width)) for _ in self.blocks)

    def step(
        self, token: Tensor, position: Tensor, own: KeysValues, cross: KeysValues, table: Tensor | None = None
    ) -> tuple[Tensor, KeysValues]:
        """Logits (B, V) of the token after ``token`` (B, 1), and the keys and values with its slot filled; inputs stay as they are.

        ``position`` (B, T) is 1 at the slot of ``token`` and 0 elsewhere: a one-hot row selects the bias and blends the
        cache by arithmetic alone, so the embedding is the only look-up. ``table`` is ``bias_table(T)``, computed here if not
        given.
        """
        table = self.bias_table(position.shape[1]) if table is None else table
        bias = (position @ table).unflatten(1, (self.config.num_heads, 1, -1))
        x = self.embedding(token).squeeze(1)
        slot = Slot.at(position)
        updated = []
        for block, block_own, block_cross in zip(self.blocks, own, cross, strict=True):
            x, key_value = block.step(x, slot, bias, block_own, block_cross)
            updated.append(key_value)
        return self._logits(x), tuple(updated)

    def _logits(self, x: Tensor) -> Tensor:
        x = self.dropout(self.final_norm(x))
        if self.head is None:
            return F.linear(x * self.config.d_model**-0.5, self.embedding.weight)
        return self.head(x)


class DecoderStep(nn.Module):
    """The stage that runs once a token, with a cache of ``length`` slots held by the caller.

    >>> step = DecoderStep(decoder, length=32)
    >>> logits, *cache = step(token, position, *cache, *cross)

    Inputs, in order: token (1, 1), position (1, T), self_key_0 (1, H, D, T), self_value_0 (1, H, T, D), self_key_1, ...,
    cross_key_0 (1, H, D, M), cross_value_0 (1, H, M, D), cross_key_1, ... Outputs: logits (1, V), self_key_0_out,
    self_value_0_out, self_key_1_out, ..., to be given back as the next call's self_key_0, self_value_0, ...

    The bias table is taken from the decoder as it is now: build the stage after training or loading.
    """

    bias_table: Tensor

    def __init__(self, decoder: T5Decoder, length: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.length = length
        self.register_buffer("bias_table", decoder.bias_table(length).detach().clone(), persistent=False)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return ("logits", *(f"{name}_out" for name in _names("self", self.decoder.config.num_layers)))

    def input_specs(self, memory_length: int) -> dict[str, TensorSpec]:
        """Name, shape and dtype of every input, in order, for a memory of ``memory_length`` vectors."""
        config = self.decoder.config
        specs = {
            "token": TensorSpec((1, 1), "int32", (0, config.vocab_size - 1)),
            "position": TensorSpec((1, self.length), values=(0, 1)),
        }
        for kind, slots in (("self", self.length), ("cross", memory_length)):
            key, value = (1, config.num_heads, config.d_kv, slots), (1, config.num_heads, slots, config.d_kv)
            specs |= zip(_names(kind, config.num_layers), map(TensorSpec, (key, value) * config.num_layers), strict=True)
        return specs

    def forward(self, token: Tensor, position: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        own, cross = _pairs(cache[: len(cache) // 2]), _pairs(cache[len(cache) // 2 :])
        logits, updated = self.decoder.step(token, position, own, cross, self.bias_table)
        return logits, *_flat(updated)


def _names(kind: str, layers: int) -> tuple[str, ...]:
    return tuple(f"{kind}_{role}_{layer}" for layer in range(layers) for role in ("key", "value"))


def _flat(pairs: KeysValues) -> tuple[Tensor, ...]:
    return tuple(tensor for pair in pairs for tensor in pair)


def _pairs(flat: tuple[Tensor, ...]) -> KeysValues:
    return tuple(zip(flat[::2], flat[1::2], strict=True))
