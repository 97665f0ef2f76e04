"""Decoders that predict the next token, such as GPT-2 and Llama: one package that reads a prompt and goes on token by token."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import nn

from coreflow.export.recipe import Recipe
from coreflow.export.sources.adapters.adapter import Adapter, Checkpoint
from coreflow.models.spec import TensorSpec

TYPES = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
LENGTH, PROMPT = 512, 64  # tokens of the cache and of a prefill, where nothing else is asked for


def with_cache(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """``prefill`` and ``step`` with the cache as an input, ``past``, and an output, ``cache``."""
    return _causal(checkpoint, has_state=False)


def with_state(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """``prefill`` and ``step`` with the cache as a state that both functions share."""
    return _causal(checkpoint, has_state=True)


def _causal(checkpoint: Checkpoint, *, has_state: bool) -> Sequence[Recipe]:
    from coreflow.export.sources.adapters.cached_decoder import cache_shape  # loads transformers

    length = checkpoint.length(getattr(checkpoint.config, "max_position_embeddings", None), LENGTH)
    return [decoder_recipe(checkpoint, checkpoint.model, cache_shape(checkpoint.model, length), has_state=has_state)]


def decoder_recipe(
    checkpoint: Checkpoint,
    model: nn.Module,
    shape: tuple[int, int, int, int],
    *,
    has_state: bool,
    prompt: int = PROMPT,
    memory: Mapping[str, TensorSpec] = MappingProxyType({}),
) -> Recipe:
    """The functions ``prefill`` and ``step`` of a decoder with a cache of ``shape``; ``memory`` are inputs of both."""
    from coreflow.export.sources.adapters.cached_decoder import CachedDecoder, StatefulDecoder

    decoder = (StatefulDecoder if has_state else CachedDecoder)(model, shape)
    kept: dict[str, Any] = {"outputs": ("logits",), "states": ("cache",)} if has_state else {"outputs": ("logits", "cache")}
    ids = TensorSpec((1, 1), "int32", bounds=(0, checkpoint.config.vocab_size - 1))
    inputs = {
        "position": TensorSpec((1,), "int32", bounds=(0, decoder.length - 1)),
        **({} if has_state else {"past": TensorSpec(shape)}),
        **memory,
    }
    step = Recipe(name="step", module=decoder, target=checkpoint.target, inputs={"input_ids": ids, **inputs}, **kept)
    size = (1, checkpoint.prompt(decoder.length, prompt))
    several = {"input_ids": replace(ids, shape=size), "attention_mask": TensorSpec(size, "int32", values=(0, 1))}
    return Recipe(name="prefill", module=decoder, target=checkpoint.target, inputs={**several, **inputs}, functions=(step,), **kept)


ADAPTERS = (
    Adapter(
        task="text-generation",
        auto_class="AutoModelForCausalLM",
        model_types=TYPES,
        recipes=with_cache,
        heads=("ForCausalLM", "LMHeadModel"),
        target="iOS18",
        sizes=("--length", "--prompt"),
    ),
    Adapter(
        task="text-generation-with-state",
        auto_class="AutoModelForCausalLM",
        model_types=TYPES,
        recipes=with_state,
        target="iOS18",
        sizes=("--length", "--prompt"),
    ),
)
