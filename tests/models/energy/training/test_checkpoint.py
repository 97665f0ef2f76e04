"""Runs of the energy flow on disk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coreflow.models.data import grammar
from coreflow.models.data.tokenizers import train_unigram, train_wordpiece
from coreflow.models.energy.config import find_preset
from coreflow.models.energy.model import EnergyFlow
from coreflow.models.energy.training import checkpoint
from coreflow.models.energy.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from coreflow.models.errors import BundleError
from coreflow.models.training.checkpoint import load_tensors, save_tensors


@pytest.fixture(scope="module")
def saved() -> Checkpoint:
    texts = grammar.sentences(0, 50)
    wordpiece, unigram = train_wordpiece(texts, 100), train_unigram(texts, 100)
    config = find_preset("demo").config("demo", vocabulary=wordpiece.vocab_size, decoder_vocabulary=unigram.vocab_size)
    torch.manual_seed(0)
    model = EnergyFlow(replace(config, max_flows=66)).eval()
    return Checkpoint(model=model, wordpiece=wordpiece, unigram=unigram, held_out=("a calm fox", "ünïcode line"))


@pytest.fixture
def directory(saved: Checkpoint, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "run", saved)
    return tmp_path / "run"


def test_a_saved_checkpoint_is_loaded_unchanged(saved: Checkpoint, directory: Path) -> None:
    loaded = load_checkpoint(directory)
    assert loaded.held_out == saved.held_out
    assert loaded.model.config == saved.model.config
    assert not loaded.model.training
    expected, actual = saved.model.state_dict(), loaded.model.state_dict()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    text = grammar.sentences(1, 1)[0]
    for name in ("wordpiece", "unigram"):
        ids = [getattr(checkpoint, name).encode(text, 32).ids.tolist() for checkpoint in (saved, loaded)]
        assert ids[0] == ids[1]


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a run"):
        load_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize("name", [checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.WORDPIECE, checkpoint.UNIGRAM])
def test_a_missing_file_is_named(name: str, directory: Path) -> None:
    (directory / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_checkpoint(directory)


def test_missing_unknown_and_changed_parameters_are_named(directory: Path) -> None:
    path = directory / checkpoint.WEIGHTS
    tensors = load_tensors(path)
    del tensors["encoder.tokens.weight"]
    tensors["encoder.extra"] = torch.zeros(1)
    tensors["mapper_in.field"] = torch.zeros(3, 3)
    save_tensors(path, tensors)
    with pytest.raises(BundleError) as caught:
        load_checkpoint(directory)
    for problem in ("encoder.tokens.weight is missing", "encoder.extra is unknown", "mapper_in.field has shape (3, 3), not (8, 8)"):
        assert problem in str(caught.value)


def test_weights_cut_short_are_refused(directory: Path) -> None:
    path = directory / checkpoint.WEIGHTS
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BundleError, match="not a readable safetensors file"):
        load_checkpoint(directory)


@pytest.mark.parametrize("change", [{"width": 0}, {"colour": 1}, None], ids=["impossible", "unknown", "no JSON"])
def test_settings_that_cannot_be_are_refused(change: dict[str, int] | None, directory: Path) -> None:
    path = directory / checkpoint.CONFIG
    plain = json.loads(path.read_text(encoding="utf-8"))
    path.write_text("{" if change is None else json.dumps(plain | change), encoding="utf-8")
    with pytest.raises(BundleError, match="does not hold the settings"):
        load_checkpoint(directory)
