"""Decoders that predict the next token, such as GPT-2 and Llama: one package that reads a prompt and goes on token by token."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from coreflow.export.recipe import Recipe
from coreflow.export.sources.adapters.adapter import Adapter, Checkpoint
from coreflow.models.spec import TensorSpec

if TYPE_CHECKING:
    from coreflow.export.sources.adapters.cached_decoder import CachedDecoder

TYPES = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
LENGTH, PROMPT = 512, 64  # tokens of the cache and of a prefill, where nothing else is asked for


def with_cache(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """``prefill`` and ``step`` with the cache as an input, ``past``, and an output, ``cache``."""
    from coreflow.export.sources.adapters.cached_decoder import CachedDecoder  # loads transformers

    decoder = CachedDecoder(checkpoint.model, _length(checkpoint))
    return [_recipe(checkpoint, decoder, {"past": TensorSpec(decoder.cache_shape)}, outputs=("logits", "cache"))]


def with_state(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """``prefill`` and ``step`` with the cache as a state that both functions share."""
    from coreflow.export.sources.adapters.cached_decoder import StatefulDecoder

    return [_recipe(checkpoint, StatefulDecoder(checkpoint.model, _length(checkpoint)), {}, outputs=("logits",), states=("cache",))]


def _length(checkpoint: Checkpoint) -> int:
    return checkpoint.length(getattr(checkpoint.config, "max_position_embeddings", None), LENGTH)


def _recipe(checkpoint: Checkpoint, decoder: "CachedDecoder", past: dict[str, TensorSpec], **further: Any) -> Recipe:
    highest, length = checkpoint.config.vocab_size - 1, decoder.length
    prompt = checkpoint.prompt(length, PROMPT)
    position = TensorSpec((1,), "int32", bounds=(0, length - 1))
    common: dict[str, Any] = {"module": decoder, "target": checkpoint.target, **further}
    step = Recipe(
        name="step",
        inputs={"input_ids": TensorSpec((1, 1), "int32", bounds=(0, highest)), "position": position, **past},
        **common,
    )
    inputs = {
        "input_ids": TensorSpec((1, prompt), "int32", bounds=(0, highest)),
        "attention_mask": TensorSpec((1, prompt), "int32", values=(0, 1)),
        "position": position,
        **past,
    }
    return Recipe(name="prefill", inputs=inputs, functions=(step,), **common)


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
