"""T5: its encoder, and its decoder with a cache, which takes the keys and values of the encoder's result."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coreflow.export.recipe import Recipe
from coreflow.export.sources.adapters.adapter import Adapter, Checkpoint
from coreflow.export.sources.adapters.causal_decoders import LENGTH, decoder_recipe
from coreflow.export.sources.adapters.norms import use_torch_norms
from coreflow.models.spec import TensorSpec

PROMPT = 4  # tokens of a prefill: answers begin with a single one


def hidden_states(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """The encoder by itself."""
    from coreflow.export.sources.adapters.encoder_decoder import MaskedEncoder  # loads transformers

    model: Any = checkpoint.model
    return [_encoder(checkpoint, MaskedEncoder(model.encoder), "last_hidden_state")]


def with_cache(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """``encoder``, which gives ``cross``, and ``prefill`` and ``step``, which take it, the mask of the text and the cache."""
    return _both(checkpoint, has_state=False)


def with_state(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """The same with the cache as a state."""
    return _both(checkpoint, has_state=True)


def use_bias_table(attention: Any, length: int) -> None:
    """Let a self-attention of a decoder look its biases up by the distance of two tokens, less than ``length``.

    Buckets of distances are logarithms, which fp16 has too few digits for.
    """
    buckets = attention._relative_position_bucket(
        -torch.arange(length),
        bidirectional=False,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    attention.relative_attention_bias = nn.Embedding.from_pretrained(attention.relative_attention_bias.weight[buckets].detach())
    attention._relative_position_bucket = partial(_distance, most=length - 1)


def _distance(relative_position: Tensor, *, most: int, **_: Any) -> Tensor:
    return (-relative_position).clamp(0, most)  # those ahead are masked


def _both(checkpoint: Checkpoint, *, has_state: bool) -> Sequence[Recipe]:
    from coreflow.export.sources.adapters.encoder_decoder import CrossEncoder, DecoderHalf, MaskedEncoder

    model: Any = checkpoint.model
    config, blocks = checkpoint.config, model.decoder.block
    attentions = [block.layer[1].EncDecAttention for block in blocks]
    projections = [half for attention in attentions for half in (attention.k, attention.v)]
    shape = (2 * len(blocks), config.num_heads, checkpoint.length(None, LENGTH), config.d_kv)
    use_bias_table(blocks[0].layer[0].SelfAttention, shape[2])
    decoder = DecoderHalf(model.decoder, model.lm_head, config.d_model**-0.5 if config.scale_decoder_outputs else 1.0)
    encoder = _encoder(checkpoint, CrossEncoder(MaskedEncoder(model.encoder), projections, config.num_heads), "cross")
    memory = {"cross": TensorSpec(shape), "encoder_attention_mask": encoder.inputs["attention_mask"]}
    return [encoder, decoder_recipe(checkpoint, decoder, shape, has_state=has_state, prompt=PROMPT, memory=memory)]


def _encoder(checkpoint: Checkpoint, module: nn.Module, output: str) -> Recipe:
    use_torch_norms(module)
    size = (1, checkpoint.length(None, LENGTH))
    inputs = {
        "input_ids": TensorSpec(size, "int32", bounds=(0, checkpoint.config.vocab_size - 1)),
        "attention_mask": TensorSpec(size, "int32", values=(0, 1)),
    }
    return Recipe(name="encoder", module=module, inputs=inputs, outputs=(output,), target=checkpoint.target)


ADAPTERS = (
    Adapter(
        task="text2text-generation",
        auto_class="AutoModelForSeq2SeqLM",
        model_types=("t5",),
        recipes=with_cache,
        heads=("ForConditionalGeneration",),
        target="iOS18",
        sizes=("--length", "--prompt"),
    ),
    Adapter(
        task="text2text-generation-with-state",
        auto_class="AutoModelForSeq2SeqLM",
        model_types=("t5",),
        recipes=with_state,
        target="iOS18",
        sizes=("--length", "--prompt"),
    ),
    Adapter(
        task="feature-extraction",
        auto_class="AutoModelForTextEncoding",
        model_types=("t5",),
        recipes=hidden_states,
        heads=("Model",),
        sizes=("--length",),
    ),
)
