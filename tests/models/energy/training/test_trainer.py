"""Training runs of a few steps on a model of a few thousand parameters."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from coreflow.models.data import grammar
from coreflow.models.energy.config import PRESETS, Preset
from coreflow.models.energy.training import checkpoint
from coreflow.models.energy.training.checkpoint import load_checkpoint
from coreflow.models.energy.training.options import TrainingOptions
from coreflow.models.energy.training.pairs import load_pairs
from coreflow.models.energy.training.trainer import EnergyProgress, EnergyTrained, train
from coreflow.models.errors import BundleError, ConfigError, InputError
from coreflow.models.training.checkpoint import load_tensors

TINY = Preset(
    summary="for tests",
    lattice={
        "width": 3,
        "height": 2,
        "depth": 4,
        "max_flows": 8,
        "carrier_hidden": 4,
        "carrier_layers": 1,
        "encoder_width": 8,
        "encoder_heads": 2,
        "encoder_feed_forward": 8,
        "encoder_positions": 16,
        "text_length": 16,
        "decode_length": 16,
        "memory_tokens": 2,
        "adapter_hidden": 8,
        "mapper_hidden": 8,
        "neuron_hidden": 8,
        "neuron_output": 4,
        "max_spawn_per_step": 2,
        "dropout": 0.1,
    },
    decoder={
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 8,
        "num_heads": 2,
        "num_layers": 1,
        "layer_norm_epsilon": 1e-4,
        "tie_word_embeddings": False,
    },
    batch_size=8,
    learning_rate=5e-3,
    steps=12,
    wordpiece_vocabulary=120,
    unigram_vocabulary=120,
)


@pytest.fixture(autouse=True)
def _tiny_preset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def options(tmp_path: Path) -> TrainingOptions:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"{line}\n" for line in grammar.sentences(0, 60)), encoding="utf-8")
    return TrainingOptions(preset="tiny", corpus=corpus, device="cpu", save_every=5)


def run(options: TrainingOptions, directory: Path, **others: Any) -> EnergyTrained:
    *_, trained = train(options, directory, **others)
    assert isinstance(trained, EnergyTrained)
    return trained


def losses(trained: EnergyTrained) -> list[tuple[int, float, float]]:
    return [(point.step, point.text_loss, point.energy_loss) for point in trained.curve]


def stop_after(options: TrainingOptions, directory: Path, step: int) -> None:
    """As an interrupt does: the generator is closed between two steps."""
    for event in (events := train(options, directory)):
        if isinstance(event, EnergyProgress) and event.step == step:
            events.close()  # type: ignore[attr-defined]
            return


def test_both_losses_fall(options: TrainingOptions, tmp_path: Path) -> None:
    trained = run(replace(options, steps=100, learning_rate=0.02), tmp_path / "run")
    first, last = trained.curve[:20], trained.curve[-20:]
    for name in ("text_loss", "energy_loss"):
        assert sum(getattr(point, name) for point in last) < 0.8 * sum(getattr(point, name) for point in first), name


def test_a_run_yields_every_step_and_leaves_a_whole_directory(options: TrainingOptions, tmp_path: Path) -> None:
    *steps, trained = train(options, tmp_path / "run")
    assert [event.step for event in steps if isinstance(event, EnergyProgress)] == list(range(1, TINY.steps + 1))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        checkpoint.CONFIG,
        checkpoint.WEIGHTS,
        checkpoint.WORDPIECE,
        checkpoint.UNIGRAM,
        checkpoint.HELD_OUT,
        checkpoint.TRAINING,
        checkpoint.CURVE,
    }
    record = json.loads((tmp_path / "run" / checkpoint.TRAINING).read_text(encoding="utf-8"))
    assert record["options"] == options.to_json()
    assert len(record["curve"]) == TINY.steps
    assert isinstance(trained, EnergyTrained)
    assert record["result"]["token_accuracy"] == trained.token_accuracy


def test_held_out_lines_are_not_trained_on(options: TrainingOptions) -> None:
    training, held_out = load_pairs(options)
    assert len(held_out) == 3
    assert not {pair.source for pair in held_out} & {pair.source for pair in training}
    assert len(training) + len(held_out) == 60


def test_the_same_seed_gives_the_same_run_and_another_seed_another(options: TrainingOptions, tmp_path: Path) -> None:
    one, two, other = run(options, tmp_path / "1"), run(options, tmp_path / "2"), run(replace(options, seed=1), tmp_path / "3")
    assert losses(one) == losses(two)
    assert losses(one) != losses(other)
    weights = [load_tensors(tmp_path / name / checkpoint.WEIGHTS) for name in "12"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("stop", [7, 10, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (5, 11))])
def test_a_resumed_run_ends_bit_for_bit_as_one_that_was_never_stopped(stop: int, options: TrainingOptions, tmp_path: Path) -> None:
    options = replace(options, accumulate=2)
    whole = run(options, tmp_path / "whole")
    stop_after(options, tmp_path / "stopped", stop)
    events = list(train(options, tmp_path / "stopped", resume=True))
    assert isinstance(events[0], EnergyProgress)
    assert events[0].step == stop // 5 * 5 + 1
    resumed = events[-1]
    assert isinstance(resumed, EnergyTrained)
    assert losses(resumed) == losses(whole)
    expected, actual = (load_tensors(tmp_path / name / checkpoint.WEIGHTS) for name in ("whole", "stopped"))
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert not (tmp_path / "stopped" / checkpoint.RESUME).exists()


def test_an_interrupted_run_can_be_used(options: TrainingOptions, tmp_path: Path) -> None:
    stop_after(options, tmp_path / "run", 6)
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.model.config.preset == "tiny"
    assert len(loaded.held_out) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 3}, "seed=3, not 0"),
        ({"steps": 20}, "steps=20, not None"),
        ({"learning_rate": 0.5, "accumulate": 3}, "learning_rate=0.5, not None; accumulate=3, not 1"),
    ],
    ids=["seed", "steps", "two"],
)
def test_resume_with_other_options_is_refused(change: dict[str, Any], message: str, options: TrainingOptions, tmp_path: Path) -> None:
    stop_after(options, tmp_path / "run", 6)
    with pytest.raises(ConfigError, match=message):
        run(replace(options, **change), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / checkpoint.RESUME).exists()


def test_resume_may_save_at_other_steps(options: TrainingOptions, tmp_path: Path) -> None:
    stop_after(options, tmp_path / "run", 6)
    assert len(run(replace(options, save_every=100), tmp_path / "run", resume=True).curve) == TINY.steps


def test_resume_of_a_finished_run_is_refused(options: TrainingOptions, tmp_path: Path) -> None:
    run(options, tmp_path / "run")
    with pytest.raises(BundleError, match="no run was interrupted"):
        run(options, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole.replace(b'"scaler":', b'"sceler":'),
        lambda whole: whole.replace(b'"model.encoder.tokens.weight"', b'"model.encoder.tokens.height"'),
    ],
    ids=["empty", "cut short", "no scaler", "no embedding"],
)
def test_resume_from_a_damaged_file_is_refused(damage: Callable[[bytes], bytes], options: TrainingOptions, tmp_path: Path) -> None:
    stop_after(options, tmp_path / "run", 6)
    path = tmp_path / "run" / checkpoint.RESUME
    whole = path.read_bytes()
    assert damage(whole) != whole
    path.write_bytes(damage(whole))
    with pytest.raises(BundleError, match="not the state of an interrupted run"):
        run(options, tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", ["steps", "batch_size", "accumulate", "sentences", "save_every"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=0; at least 1"):
        TrainingOptions(**cast(Any, {name: 0}))


def test_a_device_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose auto"):
        TrainingOptions(device="tpu")  # type: ignore[arg-type]


def test_a_corpus_of_one_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("alone\n", encoding="utf-8")
    with pytest.raises(InputError, match="at least 2"):
        load_pairs(TrainingOptions(corpus=path))
