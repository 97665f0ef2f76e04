"""Models of two halves: an encoder with the keys and values that the decoder takes from it, and the decoder."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import CausalLMOutput

from coreflow.export.sources.adapters.cached_decoder import padding_mask


class MaskedEncoder(nn.Module):
    """An encoder of texts whose mask of padding is added to the scores.

    >>> MaskedEncoder(t5.encoder)(ids, mask).last_hidden_state

    That of transformers is looked up, and selects: the converter stores the branches, as large as all scores, among the weights.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """(1, S), (1, S) -> the outputs of the encoder."""
        return self.encoder(input_ids=input_ids, attention_mask=padding_mask(attention_mask))


class CrossEncoder(nn.Module):
    """An encoder and what the layers of the decoder make of its result, once: their keys and values (2 N, H, S, D).

    >>> cross = CrossEncoder(whisper.model.encoder, projections, heads=6)(input_features)

    ``projections`` are two for every layer, of the keys and of the values.
    """

    def __init__(self, encoder: nn.Module, projections: Sequence[nn.Module], heads: int) -> None:
        super().__init__()
        self.encoder, self.projections, self.heads = encoder, nn.ModuleList(projections), heads

    def forward(self, *inputs: Tensor) -> Tensor:
        """The inputs of the encoder, in its order -> (2 N, H, S, D)."""
        hidden = self.encoder(*inputs).last_hidden_state
        return torch.cat([projection(hidden).unflatten(2, (self.heads, -1)).transpose(1, 2) for projection in self.projections])


class DecoderHalf(nn.Module):
    """The decoder with its head, called as a causal model is; keys and values of the memory are in the cache.

    >>> DecoderHalf(whisper.model.decoder, whisper.proj_out)(input_ids=ids, past_key_values=EncoderDecoderCache(...), ...).logits
    """

    def __init__(self, decoder: nn.Module, head: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.decoder, self.head, self.scale, self.config = decoder, head, scale, decoder.config

    def forward(self, *, past_key_values: EncoderDecoderCache, logits_to_keep: Tensor, **inputs: Any) -> CausalLMOutput:
        """Ids (1, Q) and what else the decoder takes -> logits (1, K, V) of the tokens at ``logits_to_keep`` (K,)."""
        memory = torch.zeros(1, 1, 1)  # that there is one; it is not read, as the cache holds what is made of it
        hidden = self.decoder(encoder_hidden_states=memory, past_key_values=past_key_values, **inputs).last_hidden_state
        return CausalLMOutput(logits=self.head(hidden[:, logits_to_keep] * self.scale))
