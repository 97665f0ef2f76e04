"""Decoders of transformers with the keys and values of their past in tensors of fixed shapes."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

from coreflow.export.sources.adapters.norms import use_torch_norms
from coreflow.models.errors import ConfigError

_MASKED = -1e4  # added to scores; finite in fp16, as finfo.min is not
_ROPE = ("default", "linear", "llama3", "yarn")  # whose angles depend on the position alone


class FixedLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of a layer, (1, H, S, D) each, that stay as they are: those of a memory."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """All keys and values (1, H, S, D)."""
        return self.keys, self.values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: it holds its tensors from the beginning."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that an update returns."""
        return self.get_max_length(), 0

    def get_seq_length(self) -> int | Tensor:
        """Number of tokens before those of the next update."""
        return self.get_max_length()

    def get_max_length(self) -> int:
        """The rows, S."""
        return self.keys.shape[2]


class CachedLayer(FixedLayer):
    """Keys and values of a layer, (1, H, M, D) each, of which an update replaces the rows at ``places`` (M, Q): ones where a row goes.

    A blend, not an assignment to rows: a trace loses a write at an index that is a tensor.
    """

    def __init__(self, keys: Tensor, values: Tensor, places: Tensor, position: Tensor) -> None:
        super().__init__(keys, values)
        self.places, self.position = places, position

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(1, H, Q, D) twice -> all keys and values (1, H, M, D)."""
        self.keys, self.values = self._blend(self.keys, key_states), self._blend(self.values, value_states)
        return self.keys, self.values

    def _blend(self, old: Tensor, rows: Tensor) -> Tensor:
        places = self.places.to(rows.dtype)
        written = places * rows if rows.shape[2] == 1 else places @ rows
        return old * (1 - places.sum(1, keepdim=True)) + written

    def get_seq_length(self) -> int | Tensor:
        """The position (1,) of the first row of the next update."""
        return self.position


class RotaryTable(nn.Module):
    """The cosines and sines of a rotary embedding for positions 0 to ``length`` - 1, computed beforehand.

    Angles are products of positions and frequencies, which fp16 has too few digits for.

    >>> RotaryTable(llama.model.rotary_emb, 512)(hidden, position_ids)
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, rotary: nn.Module, length: int) -> None:
        super().__init__()
        cosines, sines = rotary(torch.zeros(1), torch.arange(length)[None])
        self.register_buffer("cosines", cosines[0])
        self.register_buffer("sines", sines[0])

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """x is not read; (1, Q) -> (1, Q, D) twice."""
        return self.cosines[position_ids], self.sines[position_ids]


class CachedDecoder(nn.Module):
    """A decoder of transformers with its past as an input and an output: the attention is its own, the cache is ours.

    >>> decoder = CachedDecoder(llama, cache_shape(llama, length=512))
    >>> logits, cache = decoder(ids, position, torch.zeros(decoder.cache_shape), attention_mask)
    >>> logits, cache = decoder(next_id, position + mask.sum(), cache)

    The cache (2 N, H, M, D) holds the keys of every layer before its values. Rows behind the last token have no meaning and are not read.
    ``cross`` (2 N, H, S, D) are those of a memory, where there is one. The rotary embedding of ``model`` becomes a ``RotaryTable``.
    """

    def __init__(self, model: nn.Module, cache_shape: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.model, self.cache_shape, self.length = model, cache_shape, cache_shape[2]
        self._windows = layer_windows(model.config)
        use_torch_norms(model)
        with torch.no_grad():
            for part in list(model.modules()):
                if isinstance(rotary := getattr(part, "rotary_emb", None), nn.Module) and not isinstance(rotary, RotaryTable):
                    part.rotary_emb = RotaryTable(rotary, self.length)

    def forward(
        self,
        input_ids: Tensor,
        position: Tensor,
        past: Tensor,
        attention_mask: Tensor | None = None,
        cross: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Ids (1, Q), the position (1,) of the first, the cache -> logits (1, V) of the last token, the cache with Q further rows.

        ``attention_mask`` (1, Q) is 1 for tokens, and 0 for padding behind them; ``encoder_attention_mask`` (1, S) likewise of the memory.
        """
        count, rows = input_ids.shape[1], torch.arange(self.length)
        positions = position + torch.arange(count)
        places = rows[:, None] == positions
        cache = Cache(layers=[CachedLayer(keys, values, places, position) for keys, values in _pairs(past)])
        memory = None if cross is None else Cache(layers=[FixedLayer(keys, values) for keys, values in _pairs(cross)])
        further = {} if encoder_attention_mask is None else {"encoder_attention_mask": padding_mask(encoder_attention_mask)}
        last = torch.zeros(1, dtype=torch.long) if attention_mask is None else (attention_mask.sum(1) - 1).clamp(min=0)
        logits = self.model(
            input_ids=input_ids,
            attention_mask=self._masks(rows, positions),
            position_ids=positions.clamp(max=self.length - 1)[None],  # those of padding may lie beyond
            past_key_values=cache if memory is None else EncoderDecoderCache(cache, memory),
            use_cache=True,
            logits_to_keep=last,
            **further,
        ).logits
        return logits[:, 0], torch.cat([tensor for layer in cache.layers for tensor in (layer.keys, layer.values)])

    def _masks(self, rows: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """What is added to the scores (1, 1, Q, M), by the kind of the layer where there are several."""
        masks = {kind: added_mask(rows, positions, window) for kind, window in self._windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))


class StatefulDecoder(CachedDecoder):
    """The same with the cache as a buffer that forward updates.

    >>> logits = StatefulDecoder(llama, cache_shape(llama, length=512))(ids, position, attention_mask)
    """

    cache: Tensor

    def __init__(self, model: nn.Module, cache_shape: tuple[int, int, int, int]) -> None:
        super().__init__(model, cache_shape)
        self.register_buffer("cache", torch.zeros(cache_shape))

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        position: Tensor,
        attention_mask: Tensor | None = None,
        cross: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(1, Q), (1,), (1, Q), (2 N, H, S, D), (1, S) -> (1, V)."""
        logits, cache = super().forward(input_ids, position, self.cache, attention_mask, cross, encoder_attention_mask)
        self.cache[:] = cache
        return logits


def cache_shape(model: nn.Module, length: int) -> tuple[int, int, int, int]:
    """(2 N, H, M, D) of the cache of a causal model for ``length`` tokens, M."""
    with torch.no_grad():
        layers = model(torch.zeros((1, 1), dtype=torch.long), use_cache=True).past_key_values.layers
    _, heads, _, width = layers[0].keys.shape
    return 2 * len(layers), heads, length, width


def added_mask(rows: Tensor, positions: Tensor, window: int | None = None) -> Tensor:
    """What is added to the scores (1, 1, Q, M): zero for the ``rows`` (M,) up to each of ``positions`` (Q,), the last ``window`` of them.

    >>> added_mask(torch.arange(3), torch.tensor([1]))
    tensor([[[[     0.,      0., -10000.]]]])
    """
    behind = positions[:, None] - rows
    return _added(behind >= 0 if window is None else (behind >= 0) & (behind < window))[None, None]


def padding_mask(attention_mask: Tensor) -> Tensor:
    """What is added to the scores (1, 1, 1, S): zero where ``attention_mask`` (1, S) is 1.

    >>> padding_mask(torch.tensor([[1, 0]]))
    tensor([[[[     0., -10000.]]]])
    """
    return _added(attention_mask)[:, None, None]


def _added(seen: Tensor) -> Tensor:
    # By arithmetic: the converter stores the branches of a selection, (Q, M) each, among the weights.
    return (seen.to(torch.float32) - 1) * -_MASKED


def _pairs(cache: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values (1, H, M, D) of every layer."""
    return [(cache[place][None], cache[place + 1][None]) for place in range(0, len(cache), 2)]


def layer_windows(config: Any) -> dict[str, int | None]:
    """How far back the layers of each kind look, None for all tokens; ``ConfigError`` for kinds that are not exported."""
    if getattr(config, "use_bidirectional_attention", None):
        raise ConfigError("use_bidirectional_attention: a token sees those behind it; causal attention can be exported")
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"]
    if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
        raise ConfigError(f"layers of {', '.join(sorted(unknown))}; full_attention and sliding_attention can be exported")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in _ROPE:
        raise ConfigError(f"rope_type {rope!r}, whose angles depend on the length of the text; {', '.join(_ROPE)} can be exported")
    return {kind: window if kind == "sliding_attention" else None for kind in dict.fromkeys(kinds)}
