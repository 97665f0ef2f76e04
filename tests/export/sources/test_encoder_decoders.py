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


def saved_whisper(folder: Path) -> tuple[Path, Any]:
    torch.manual_seed(8)
    model = hf.WhisperForConditionalGeneration(hf.WhisperConfig(**WHISPER)).eval()
    model.save_pretrained(folder / "whisper")
    return folder / "whisper", model


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


@pytest.mark.slow
@pytest.mark.parametrize("task", ["automatic-speech-recognition", "automatic-speech-recognition-with-state"])
def test_whisper_says_what_transformers_says(tmp_path: Path, task: str) -> None:
    folder, model = saved_whisper(tmp_path)
    features = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(1))
    reference = generated_text(model, inputs=features, decoder_input_ids=PROMPT)
    out = tmp_path / "out"
    assert main(["export", str(folder), "--task", task, "--out", str(out)]) == 0
    stages = read_manifest(out).stages
    assert list(stages) == ["encoder", "prefill", "step"] and all(stage.errors for stage in stages.values())
    encoder = load_model(out / stages["encoder"].package, "lifted")
    cross = encoder.predict({"input_features": features.numpy().astype(np.float16)})["cross"]
    assert greedy(out / stages["step"].package, PROMPT[0].tolist(), COUNT, cross=cross) == reference


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
