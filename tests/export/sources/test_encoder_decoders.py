"""Decoders that take keys and values of an encoder say, token for token, what transformers' own generate says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from coreflow.cli.main import main
from coreflow.export.bundle import build
from coreflow.export.package.manifest import read_manifest
from coreflow.export.sources.adapters.adapter import Sizes
from coreflow.export.sources.hugging_face import load_checkpoint
from coreflow.models.errors import ConfigError
from coreflow.runtime import load_model
from tests.export.sources.greedy import greedy

TOKENS, LENGTH, COUNT, MARGIN = 120, 96, 64, 0.02  # as those of test_causal_decoders.py
PROMPT = torch.randint(0, TOKENS, (1, 5), generator=torch.Generator().manual_seed(1))  # read in two pieces
WHISPER: dict[str, Any] = {
    **{
        f"{half}_{field}": value
        for half in ("encoder", "decoder")
        for field, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 96))
    },
    **{f"{name}_token_id": None for name in ("bos", "eos", "pad")},
    "decoder_start_token_id": 1,
    "begin_suppress_tokens": None,
    "vocab_size": TOKENS,
    "num_mel_bins": 8,
    "d_model": 64,
    "max_source_positions": 20,
    "max_target_positions": LENGTH,
    "init_std": 0.3,
}

T5: dict[str, Any] = {
    **{f"{name}_token_id": None for name in ("bos", "eos", "pad")},
    "decoder_start_token_id": int(PROMPT[0, 0]),
    "vocab_size": TOKENS,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,  # less than the text: several buckets of many distances
    "initializer_factor": 2.0,
}
TEXT = torch.randint(0, TOKENS, (1, LENGTH), generator=torch.Generator().manual_seed(2))
MASK = (torch.arange(LENGTH) < 70)[None].long()


def saved_whisper(folder: Path) -> tuple[Path, Any]:
    torch.manual_seed(8)
    model = hf.WhisperForConditionalGeneration(hf.WhisperConfig(**WHISPER)).eval()
    model.save_pretrained(folder / "whisper")
    return folder / "whisper", model


def saved_t5(folder: Path, **changes: Any) -> tuple[Path, Any]:
    torch.manual_seed(42)
    model = hf.T5ForConditionalGeneration(hf.T5Config(**{**T5, **changes})).eval()
    with torch.no_grad():
        for block in model.encoder.block:
            block.layer[0].SelfAttention.q.weight /= 4  # as with a factor of 1: sharper attention is chaotic in fp16
    model.save_pretrained(folder / "t5")
    return folder / "t5", model


def generated_text(model: Any, **inputs: torch.Tensor) -> list[int]:
    """Of transformers' greedy generate, whose two likeliest tokens are MARGIN apart all along.

    Whisper's own generate adds the segments, time stamps and suppressed tokens of speech; what is compared is what that is built on.
    """
    generated = hf.GenerationMixin.generate(
        model, **inputs, max_new_tokens=COUNT, do_sample=False, pad_token_id=0, return_dict_in_generate=True, output_scores=True
    )
    first, second = torch.stack(generated.scores)[:, 0].topk(2).values.unbind(1)
    text: list[int] = generated.sequences[0, -COUNT:].tolist()
    assert (first - second).min() > MARGIN and len(set(text)) > 5
    return text


def packages_of(bundle: Path) -> tuple[Path, Path]:
    """The packages of the encoder and of the decoder, which were proven as they were exported."""
    stages = read_manifest(bundle).stages
    assert list(stages) == ["encoder", "prefill", "step"] and all(stage.errors for stage in stages.values())
    return bundle / stages["encoder"].package, bundle / stages["step"].package


@pytest.mark.slow
@pytest.mark.parametrize("task", ["automatic-speech-recognition", "automatic-speech-recognition-with-state"])
def test_whisper_says_what_transformers_says(tmp_path: Path, task: str) -> None:
    folder, model = saved_whisper(tmp_path)
    features = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(1))
    reference = generated_text(model, inputs=features, decoder_input_ids=PROMPT)
    out = tmp_path / "out"
    assert main(["export", str(folder), "--task", task, "--out", str(out)]) == 0
    encoder, decoder = packages_of(out)
    cross = load_model(encoder, "lifted").predict({"input_features": features.numpy().astype(np.float16)})["cross"]
    assert greedy(decoder, PROMPT[0].tolist(), COUNT, cross=cross) == reference


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text2text-generation", "text2text-generation-with-state"])
def test_t5_says_what_transformers_says(tmp_path: Path, task: str) -> None:
    folder, model = saved_t5(tmp_path)
    reference = generated_text(model, inputs=TEXT, attention_mask=MASK, decoder_input_ids=PROMPT)
    out = tmp_path / "out"
    assert main(["export", str(folder), "--task", task, "--length", str(LENGTH), "--out", str(out)]) == 0
    encoder, decoder = packages_of(out)
    text, mask = (tensor.numpy().astype(np.int32) for tensor in (TEXT, MASK))
    cross = load_model(encoder, "lifted").predict({"input_ids": text, "attention_mask": mask})["cross"]
    assert greedy(decoder, PROMPT[0].tolist(), COUNT, cross=cross, encoder_attention_mask=mask) == reference


def test_a_t5_may_have_fewer_layers_in_its_decoder(tmp_path: Path) -> None:
    folder, model = saved_t5(tmp_path, num_layers=2, num_decoder_layers=1)
    encoder, prefill = load_checkpoint(str(folder), task=None, sizes=Sizes(length=LENGTH, prompt=5))
    with torch.no_grad():
        reference = model(input_ids=TEXT, attention_mask=MASK, decoder_input_ids=PROMPT, use_cache=False).logits[:, -1]
        cross, past = encoder.module(TEXT, MASK), torch.zeros(prefill.inputs["past"].shape)
        logits, _ = prefill.module(PROMPT, torch.tensor([0]), past, torch.ones(1, 5).long(), cross, MASK)
    assert len(cross) == len(past) == 2
    torch.testing.assert_close(logits, reference, atol=1e-4, rtol=1e-4)


def test_an_encoder_of_t5_gives_its_hidden_states(tmp_path: Path) -> None:
    folder, model = saved_t5(tmp_path, initializer_factor=1.0)
    (recipe,) = load_checkpoint(str(folder), task="feature-extraction", sizes=Sizes(length=LENGTH))
    with torch.no_grad():
        reference = model.encoder(input_ids=TEXT, attention_mask=MASK).last_hidden_state.numpy()
    inputs = {"input_ids": TEXT.numpy().astype(np.int32), "attention_mask": MASK.numpy().astype(np.int32)}
    actual = load_model(build(recipe, tmp_path), "lifted").predict(inputs)["last_hidden_state"]
    np.testing.assert_allclose(actual[:, :70], reference[:, :70], atol=1e-2)


def test_an_encoder_of_whisper_gives_its_hidden_states(whisper: Path, tmp_path: Path) -> None:
    (recipe,) = load_checkpoint(str(whisper), task="audio-feature-extraction", sizes=Sizes())
    features = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        reference = hf.WhisperModel.from_pretrained(whisper).encoder(features).last_hidden_state
    inputs = {"input_features": features.numpy().astype(np.float16)}
    actual = load_model(build(recipe, tmp_path), "lifted").predict(inputs)["last_hidden_state"]
    np.testing.assert_allclose(actual, reference.numpy(), atol=2e-2)


@pytest.mark.parametrize(
    ("task", "sizes", "message"),
    [
        ("automatic-speech-recognition", {"length": 97}, "length 97; whisper takes at most 96 tokens"),
        ("automatic-speech-recognition", {"batch": 2}, "takes no --batch; it takes --length, --prompt"),
        ("audio-feature-extraction", {"batch": 2}, "audio-feature-extraction takes no --batch; it takes none"),
    ],
)
def test_what_a_whisper_does_not_do_is_refused(whisper: Path, task: str, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(str(whisper), task=task, sizes=Sizes(**sizes))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_whisper(tmp_path_factory.mktemp("encoder_decoders"))[0]
