"""A family that coreflow has never seen goes through train, export, run and validate: one line registers it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from coreflow.cli.main import main
from coreflow.models import family
from coreflow.models.errors import ConfigError

VECTOR = "1 0 0 0.5 0 0 0 -1"


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        patch.setattr(family, "FAMILIES", list(family.FAMILIES))
        family.register("vectors:VECTORS")
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors") / "run"
    assert main(["train", "--family", "vectors", "--steps", "30", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    folder = run.parent / "bundle"
    assert main(["export", str(run), "--out", str(folder), "--jobs", "1"]) == 0
    return folder


def test_its_run_and_its_bundle_are_told_from_those_of_others(run: Path, bundle: Path, tmp_path: Path) -> None:
    assert family.family_of_run(run).kind == "vectors"
    assert family.family_of_run(tmp_path).kind != "vectors"
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert (manifest["kind"], list(manifest["stages"]), manifest["settings"]) == ("vectors", ["squeeze", "unfold"], {"size": 8})


def test_its_preset_names_it(run: Path, tmp_path: Path) -> None:
    assert main(["train", "--preset", "small", "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    assert family.family_of_run(tmp_path / "run").kind == "vectors"


def test_a_vector_runs_through_its_wiring(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["run", str(bundle), VECTOR, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["text"].split()) == 8 and len(result["code"][0]) == 3
    assert [result["times"][stage]["calls"] for stage in ("squeeze", "unfold")] == [1, 1]
    assert main(["run", str(bundle), VECTOR]) == 0
    shown = capsys.readouterr().out
    assert "code of 3 numbers" in shown and "squeeze" in shown


def test_its_bundle_is_validated_stage_by_stage_and_as_a_chain(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["validate", str(bundle), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "pass" and list(report["stages"]) == ["squeeze", "unfold"]
    assert [row["stage"] for row in report["cascade"]["rows"]] == ["squeeze", "unfold"]
    assert report["cascade"]["samples"]["drawn"] == 8 and report["cascade"]["tokens"]["sentences"] == 0
    assert main(["validate", str(bundle)]) == 0


def test_a_changed_weight_fails_its_validation(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = next(bundle.glob("packages/unfold.mlpackage/Data/*/weights/weight.bin"))
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-8] + bytes(8))
        assert main(["validate", str(bundle), "--unsealed", "--json", "--evidence", str(tmp_path)]) == 1
    finally:
        weights.write_bytes(whole)
    assert json.loads(capsys.readouterr().out)["stages"]["unfold"]["verdict"] == "fail"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--family", "nobody's"], 'family "nobody\'s" does not exist; choose one of energy-flow, vectors'),
        (["train", "--family", "vectors", "--teacher", "x"], "--teacher: means nothing to the family vectors"),
        (["train", "--family", "vectors", "--preset", "demo"], "preset 'demo' does not exist; choose one of small"),
        (["run", "{bundle}", "1 2"], "2 numbers; 8 are right"),
        (["run", "{bundle}", VECTOR, "--beams", "2"], "beams mean nothing here"),
        (["run", "{bundle}", VECTOR, "--plot", "x.png"], "vectors have no picture"),
        (["validate", "{bundle}", "--inputs", "texts.txt"], "takes no texts"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value[:3:2]),
)
def test_a_missing_part_is_one_clear_line(arguments: list[str], message: str, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([argument.format(bundle=bundle) for argument in arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_place_without_a_family_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "FAMILIES", ["vectors:NOTHING"])
    with pytest.raises(ConfigError, match="the model family vectors:NOTHING cannot be loaded"):
        family.families()
