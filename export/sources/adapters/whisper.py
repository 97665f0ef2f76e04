"""Whisper: its encoder, and its decoder with a cache, which takes the keys and values of the encoder's result."""

from collections.abc import Sequence
from typing import Any

from coreflow.export.recipe import Recipe
from coreflow.export.sources.adapters.adapter import Adapter, Checkpoint
from coreflow.export.sources.adapters.causal_decoders import LENGTH, decoder_recipe
from coreflow.models.spec import TensorSpec

PROMPT = 4  # tokens of a prefill: start, language, task, no timestamps


def hidden_states(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """The encoder by itself."""
    return [_encoder(checkpoint, checkpoint.model.encoder, "last_hidden_state")]


def with_cache(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """``encoder``, which gives ``cross``, and ``prefill`` and ``step``, which take it and the cache."""
    return _both(checkpoint, has_state=False)


def with_state(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """The same with the cache as a state."""
    return _both(checkpoint, has_state=True)


def _both(checkpoint: Checkpoint, *, has_state: bool) -> Sequence[Recipe]:
    from coreflow.export.sources.adapters.encoder_decoder import CrossEncoder, DecoderHalf  # loads transformers

    model: Any = checkpoint.model
    config = checkpoint.config
    layers, heads = model.model.decoder.layers, config.decoder_attention_heads
    projections = [half for layer in layers for half in (layer.encoder_attn.k_proj, layer.encoder_attn.v_proj)]
    shape = (2 * len(layers), heads, checkpoint.length(config.max_target_positions, LENGTH), config.d_model // heads)
    cross = TensorSpec((*shape[:2], config.max_source_positions, shape[3]))
    decoder = DecoderHalf(model.model.decoder, model.proj_out)
    return [
        _encoder(checkpoint, CrossEncoder(model.model.encoder, projections, heads), "cross"),
        decoder_recipe(checkpoint, decoder, shape, has_state=has_state, prompt=PROMPT, memory={"cross": cross}),
    ]


def _encoder(checkpoint: Checkpoint, module: Any, output: str) -> Recipe:
    config = checkpoint.config
    features = TensorSpec((1, config.num_mel_bins, 2 * config.max_source_positions))  # of which the second convolution takes every other
    return Recipe(name="encoder", module=module, inputs={"input_features": features}, outputs=(output,), target=checkpoint.target)


ADAPTERS = (
    Adapter(
        task="automatic-speech-recognition",
        auto_class="AutoModelForSpeechSeq2Seq",
        model_types=("whisper",),
        recipes=with_cache,
        heads=("ForConditionalGeneration",),
        target="iOS18",
        sizes=("--length", "--prompt"),
    ),
    Adapter(
        task="automatic-speech-recognition-with-state",
        auto_class="AutoModelForSpeechSeq2Seq",
        model_types=("whisper",),
        recipes=with_state,
        target="iOS18",
        sizes=("--length", "--prompt"),
    ),
    Adapter(
        task="audio-feature-extraction", auto_class="AutoModel", model_types=("whisper",), recipes=hidden_states, heads=("Model",), sizes=()
    ),
)
