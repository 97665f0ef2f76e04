"""Verdicts where the cache, the evidence, a report or the baseline cannot be written: those of a healthy machine."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coreflow.cli.main import main
from coreflow.export.bundle import build
from coreflow.export.user_files import load_recipes
from coreflow.runtime.cache import Cache

SOURCE = """
import torch
from torch import nn

from coreflow.export.recipe import Recipe
from coreflow.models.spec import TensorSpec

torch.manual_seed(0)
RECIPE = Recipe(name="network", module=nn.Sequential({layers}).eval(), inputs={{"x": TensorSpec((4, 16))}}, outputs=("y",))
"""
# Of the package, and of the reference: another epsilon of a norm is hidden by fp16 from all rungs but those without rounding.
LAYERS = {
    "wrong": tuple(f"nn.Linear(16, 16, bias=False), nn.LayerNorm(16, eps={eps}), nn.Linear(16, 16)" for eps in (1e-3, 1e-5)),
    "right": ("nn.Linear(16, 16)", "nn.Linear(16, 16)"),
}
HEALTHY = {"wrong": ("fail", "translation", 4), "right": ("pass", None, 0)}

Surroundings = Callable[[Path, pytest.MonkeyPatch], list[str]]  # their arguments of the command; the path is of a file


def no_home(file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    return []


def cache_below_a_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    return []


def cache_is_a_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(file.parent))
    (file.parent / "coreflow").write_text("")
    return []


def cache_without_room(file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def entry(self: Cache, key: str, make: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Cache, "entry", entry)
    return []


def evidence_is_a_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return ["--evidence", str(file)]


def report_below_a_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return ["--report", str(file / "report.md")]


def report_is_a_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (file.parent / "report.html").mkdir()
    return ["--report", str(file.parent / "report.html")]


def baseline_below_a_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return ["--baseline", str(file / "baseline.json"), "--update-baseline"]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """``coreflow validate`` of a package that is wrong and of one that is right."""
    folder = tmp_path_factory.mktemp("packages")
    commands = {}
    for name, (converted, reference) in LAYERS.items():
        source = folder / f"{name}.py"
        source.write_text(SOURCE.format(layers=converted))
        (recipe,) = load_recipes(f"{source}:RECIPE")
        package = str(build(recipe, folder / name))
        source.write_text(SOURCE.format(layers=reference))
        commands[name] = ["validate", package, "--reference", f"{source}:RECIPE", "--json"]
    return commands


def run(
    command: list[str], capsys: pytest.CaptureFixture[str], *, evidence: Path | None = None
) -> tuple[tuple[str, str | None, int], dict[str, Any], str]:
    """Verdict, cause and exit code of a command; its report; its errors."""
    code = main(command if evidence is None else [*command, "--evidence", str(evidence)])
    printed, errors = capsys.readouterr()
    report = json.loads(printed)
    return (report["verdict"], report["cause"], code), report, errors


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.sampled(2)
@pytest.mark.parametrize("package", LAYERS)
@pytest.mark.parametrize("surroundings", [no_home, cache_below_a_file, cache_is_a_file, cache_without_room], ids=lambda it: it.__name__)
def test_a_verdict_needs_no_cache(
    commands: dict[str, list[str]],
    surroundings: Surroundings,
    package: str,
    temporary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with monkeypatch.context() as patch:
        command = [*commands[package], *surroundings(file, patch)]
        outcome, report, _ = run(command, capsys, evidence=tmp_path / "evidence")
    assert outcome == HEALTHY[package]
    assert "R2" in report["outputs"]["y"]["rungs"]
    assert not list(temporary.glob("coreflow-*")), "the conversion is deleted with the judgement"


def test_evidence_that_cannot_be_written_is_a_note(
    commands: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    outcome, report, _ = run([*commands["wrong"], *evidence_is_a_file(tmp_path / "file", monkeypatch)], capsys)
    assert outcome == HEALTHY["wrong"] and report["replay"] is None
    assert any(note.startswith("the evidence could not be written: ") for note in report["notes"])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("package", LAYERS)
@pytest.mark.parametrize("surroundings", [report_below_a_file, report_is_a_folder, baseline_below_a_file], ids=lambda it: it.__name__)
def test_files_that_cannot_be_written_are_errors_after_the_verdict(
    commands: dict[str, list[str]],
    surroundings: Surroundings,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    whole = tmp_path / "made" / "report.json"
    command = [*commands[package], *surroundings(file, monkeypatch), "--report", str(whole)]
    outcome, _, errors = run(command, capsys, evidence=tmp_path / "evidence")
    verdict, cause, code = HEALTHY[package]
    assert outcome == (verdict, cause, code or 2)
    assert errors.count("error: ") == 1 and "could not be written: " in errors
    assert json.loads(whole.read_text())["verdict"] == verdict, "the others are written, in folders that are made"
