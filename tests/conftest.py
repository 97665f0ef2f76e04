"""Fixtures of all tests: the size of the thread pool, and one exported bundle for the whole session."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from coreflow.export.run import export_run
from coreflow.models.data import grammar
from coreflow.models.data.tokenizers import train_unigram, train_wordpiece
from coreflow.models.energy.config import find_preset
from coreflow.models.energy.model import EnergyFlow
from coreflow.models.energy.training.checkpoint import Checkpoint, save_checkpoint

# Two test processes on two cores: more threads would only take each other's time.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The cache between runs starts empty, and the user's own cache is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def make_run(folder: Path) -> Path:
    """A run of the demo preset that was never trained; its weights are wide enough for every path to be taken."""
    train, held_out = grammar.split(0, 3000, 20)
    preset = find_preset("demo")
    wordpiece, unigram = train_wordpiece(train, preset.wordpiece_vocabulary), train_unigram(train, preset.unigram_vocabulary)
    torch.manual_seed(0)
    model = EnergyFlow(preset.config("demo", vocabulary=wordpiece.vocab_size, decoder_vocabulary=unigram.vocab_size)).eval()
    save_checkpoint(folder, Checkpoint(model=model, wordpiece=wordpiece, unigram=unigram, held_out=tuple(held_out)))
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder with ``run`` and its ``bundle``, made once for all test processes; not to be changed."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if worker_id != "master" else base  # xdist gives each process a folder below the shared one
    folder = shared / "exported"
    with FileLock(shared / "exported.lock"):
        if not (folder / "done.json").exists():
            make_run(folder / "run")
            for _ in export_run(folder / "run", folder / "bundle", jobs=1):
                pass
            (folder / "done.json").write_text(json.dumps(True))
    return folder


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(exported / "bundle", tmp_path / "bundle"))


def _mark_sampled(items: list[pytest.Item]) -> None:
    """Of the cases of a test marked ``sampled(count)``, all but ``count`` are slow: ``make test`` sees a few, ``make test-all`` all."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for test in cases.values():
        mark = test[0].get_closest_marker("sampled")
        assert mark is not None
        (count,) = mark.args
        kept = {round(place * (len(test) - 1) / max(1, count - 1)) for place in range(count)}
        for place, item in enumerate(test):
            if place not in kept:
                item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)  # before slow tests are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine lacks, and say what it is; mark as slow what ``make test`` only samples."""
    _mark_sampled(items)
    lacking = {
        "coreml": None if sys.platform == "darwin" else "Core ML predicts on macOS only",
        "mps": None if torch.backends.mps.is_available() else "no MPS device",
        "cuda": None if torch.cuda.is_available() else "no CUDA device",
    }
    for item in items:
        for marker, reason in lacking.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Meaning of the counts for coremltools' own tests (conformance/): only a case that predicted and compared has passed.

    Here because the process that sums up the work of several collects nothing, and so never loads that folder's conftest.
    """
    counts = dict.fromkeys(("compared and passed", "failed", "listed as exceptions", "never predicted", "skipped by their authors"), 0)
    for outcome in ("passed", "failed", "error", "xfailed", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            if "apple_operators.toml::" in report.nodeid:
                counts[_meaning(outcome, report)] += 1
    if any(counts.values()):
        terminalreporter.write_line("operators: " + ", ".join(f"{count} {meaning}" for meaning, count in counts.items()))


def _meaning(outcome: str, report: Any) -> str:
    if outcome in ("passed", "failed", "error"):
        return "compared and passed" if outcome == "passed" else "failed"
    if "listed: " in getattr(report, "wasxfail", ""):
        return "listed as exceptions"
    return "never predicted" if "never predicted" in str(report.longrepr) else "skipped by their authors"
