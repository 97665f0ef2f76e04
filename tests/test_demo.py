"""The promise of the first page: train, export, run and validate on this machine, and sentences come back."""

import json
from pathlib import Path

import numpy as np
import pytest

from coreflow.cli.main import main
from coreflow.models.energy.decoding import DecodingOptions, decode
from coreflow.models.energy.stages import energy_stages
from coreflow.models.energy.training.checkpoint import load_checkpoint
from coreflow.models.energy.wiring import Wiring, torch_predict
from coreflow.runtime import Chain


@pytest.mark.slow
def test_the_demo_reproduces_held_out_sentences_in_torch_and_in_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    result = json.loads(Path("artifacts/runs/demo/training.json").read_text())["result"]
    assert result["token_accuracy"] >= 0.98 and result["sentence_accuracy"] >= 0.9
    checkpoint = load_checkpoint(Path("artifacts/runs/demo"))
    config, chain = checkpoint.model.config, Chain.load("artifacts/demo")
    reference = Wiring(config, torch_predict({stage.name: stage for stage in energy_stages(checkpoint.model)}))
    agreeing = right = tokens = whole = 0
    for text in checkpoint.held_out:
        encoded = checkpoint.wordpiece.encode(text, config.text_length)
        carried = reference.carry(reference.encode(encoded.ids[None], encoded.mask[None].astype(np.float32)))
        by_torch = decode(*reference.decoder(carried.surface), DecodingOptions(max_tokens=config.decode_length)).tokens
        actual = chain.run(text)
        target = checkpoint.unigram.encode(text, config.decode_length)
        expected = tuple(target.ids[target.mask > 0][:-1].tolist())  # without the end token
        agreeing += sum(a == b for a, b in zip(by_torch, actual.tokens, strict=False))
        right += sum(a == b for a, b in zip(expected, actual.tokens, strict=False))
        tokens += max(len(expected), len(actual.tokens), len(by_torch))
        whole += actual.text == text
    assert agreeing / tokens >= 0.98
    assert right / tokens >= 0.98
    assert whole / len(checkpoint.held_out) >= 0.9
