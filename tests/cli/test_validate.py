"""``coreflow validate`` as a user and a script meet it."""

import json
from pathlib import Path

import pytest

from coreflow.cli.main import main

ROOT = Path(__file__).parents[2]


def test_a_healthy_bundle_passes_and_its_report_is_json(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["validate", str(exported / "bundle"), "--backend", "lifted", "--json", "--report", str(tmp_path / "report.json")])
    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    assert printed["verdict"] == "pass"
    assert set(printed["stages"]) == {"encoder", "mapper_in", "lattice_step", "mapper_out", "decoder_memory", "decoder_step"}
    assert json.loads((tmp_path / "report.json").read_text()) == printed


def test_a_changed_weight_is_exit_code_1_or_3_and_names_the_stage(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = next(bundle.glob("packages/*/mapper_out.mlpackage/Data/*/weights/weight.bin"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    weights.write_bytes(data)
    code = main(["validate", str(bundle), "--backend", "lifted"])
    out = capsys.readouterr().out
    assert code == 1
    verdict = next(line for line in out.splitlines() if line.startswith("FAIL"))
    assert "mapper_out" in verdict


def test_an_own_recipe_is_judged_against_its_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = f"{ROOT}/examples/recipes.py:CLASSIFIER"
    assert main(["export", source, "--out", str(tmp_path / "example")]) == 0
    assert main(["validate", str(tmp_path / "example"), "--reference", source, "--backend", "lifted"]) == 0
    assert "PASS" in capsys.readouterr().out
    package = next((tmp_path / "example").glob("packages/*/*.mlpackage"))
    assert main(["validate", str(package), "--reference", source, "--backend", "lifted"]) == 0
    capsys.readouterr()
    assert main(["validate", str(tmp_path / "example"), "--backend", "lifted"]) == 5
    assert "INCOMPLETE" in capsys.readouterr().out
    assert main(["validate", str(package)]) == 2
    assert "Give --reference FILE.py:NAME" in " ".join(capsys.readouterr().err.split())
