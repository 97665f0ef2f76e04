"""``coreflow validate`` as a user and a script meet it."""

import json
import re
import shlex
import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from coreflow.cli.main import main
from coreflow.export.bundle import build
from coreflow.validate import validate_bundle
from coreflow.validate.options import Options
from coreflow.validate.report.json import read_report, to_json, write_report
from coreflow.validate.report.model import BundleReport

ROOT = Path(__file__).parents[2]
SOURCE = f"{ROOT}/examples/recipes.py:CLASSIFIER"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def coreflow(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(item) for item in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the example's recipe."""
    out = tmp_path_factory.mktemp("example") / "example"
    assert main(["export", SOURCE, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def healthy(example: Path) -> BundleReport:
    """The report on it."""
    from coreflow.export.user_files import load_recipes

    return validate_bundle(example, recipes=load_recipes(SOURCE), backend="lifted")


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch, healthy: BundleReport) -> Callable[[BundleReport], None]:
    """``coreflow validate`` finds what it is told, at once: ``healthy``, or another report."""
    from coreflow.cli import validate

    def find(report: BundleReport) -> None:
        monkeypatch.setattr(validate, "validate_with_bar", lambda *_, **__: report)

    find(healthy)
    return find


def with_rho(report: BundleReport, factor: float) -> BundleReport:
    """Every ratio times ``factor``; the gates stay as they are."""
    stages = {
        name: replace(stage, outputs={key: replace(item, rho_rms=item.rho_rms * factor) for key, item in stage.outputs.items()})
        for name, stage in report.stages.items()
    }
    return replace(report, stages=stages)


def test_a_healthy_bundle_passes_and_its_report_is_json(exported: Path, tmp_path: Path, coreflow: Run) -> None:
    file = tmp_path / "report.json"
    code, out, _ = coreflow("validate", exported / "bundle", "--backend", "lifted", "--quick", "--json", "--report", file)
    printed = json.loads(out)
    assert code == 0
    assert printed["verdict"] == "pass"
    assert set(printed["stages"]) == {"encoder", "mapper_in", "lattice_step", "mapper_out", "decoder_memory", "decoder_step"}
    assert read_report(file) == printed


@pytest.mark.slow
def test_a_changed_weight_is_exit_code_1_or_3_and_names_the_stage(bundle: Path, coreflow: Run) -> None:
    weights = next(bundle.glob("packages/mapper_out.mlpackage/Data/*/weights/weight.bin"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    weights.write_bytes(data)
    code, out, _ = coreflow("validate", bundle, "--backend", "lifted", "--quick")
    assert code == 1
    verdict = next(line for line in out.splitlines() if line.startswith("FAIL"))
    assert "mapper_out" in verdict


def test_an_own_recipe_is_compared_with_its_module(example: Path, coreflow: Run) -> None:
    code, out, _ = coreflow("validate", example, "--reference", SOURCE, "--backend", "lifted")
    assert code == 0 and "PASS" in out
    package = next(example.glob("packages/*.mlpackage"))
    assert coreflow("validate", package, "--reference", SOURCE, "--backend", "lifted")[0] == 0
    code, out, _ = coreflow("validate", example, "--backend", "lifted")
    assert code == 0 and "PASS" in out and "recorded outputs" in out, "the bundle has golden samples"
    code, _, err = coreflow("validate", package)
    assert code == 2 and "or --reference FILE.py:NAME of its recipe" in " ".join(err.split())


def test_a_package_is_compared_with_another_package(example: Path, tmp_path: Path, coreflow: Run) -> None:
    package = next(example.glob("packages/*.mlpackage"))
    other = Path(shutil.copytree(package, tmp_path / "other.mlpackage"))
    code, out, _ = coreflow("validate", package, "--reference", other, "--backend", "lifted", "--json")
    report = json.loads(out)
    assert code == report["exit_code"] and "other.mlpackage" in report["reference"] and report["outputs"]["scores"]["rho_rms"] is not None
    code, _, err = coreflow("validate", package, "--reference", tmp_path / "model.tflite", "--backend", "lifted")
    assert code == 2 and "model.tflite" in err


def test_the_suffix_of_a_report_chooses_its_format(instant: Any, example: Path, tmp_path: Path, coreflow: Run) -> None:
    files = [tmp_path / "deep" / f"report.{suffix}" for suffix in ("json", "html", "xml", "md")]
    code, out, _ = coreflow("validate", example, *(word for file in files for word in ("--report", file)))
    assert code == 0
    assert all(f"report: {file}" in out for file in files)
    assert read_report(files[0])["verdict"] == "pass"
    assert files[1].read_text().startswith("<!DOCTYPE html>")
    assert ElementTree.fromstring(files[2].read_text()).get("failures") == "0"
    assert files[3].read_text().startswith("### ✓ **PASS**")
    assert sorted(item.name for item in (tmp_path / "deep").iterdir()) == sorted(file.name for file in files), "nothing is left behind"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--report", "report.pdf"), "--report report.pdf: the suffix chooses the format; .html (HTML), .json (JSON), .xml (JUnit XML)"),
        (("--report", "report"), "the suffix chooses the format"),
        (("--accept", "norm"), "norm cannot be accepted without a reason; give OP:REASON"),
        (("--update-baseline",), "--update-baseline: which file? Give --baseline FILE.json too"),
        (("--baseline", "nowhere.json"), "--baseline nowhere.json is not there; --update-baseline writes it"),
        (("--baseline", "baseline.xml", "--update-baseline"), "a baseline is a report in JSON"),
        (("--baseline", "{package}"), "is of a package, and example is a bundle"),
        (("--baseline", "{broken}"), "is not JSON"),
    ],
    ids=["pdf", "no suffix", "no reason", "update what", "no baseline", "not JSON", "of a package", "broken"],
)
def test_bad_report_paths_and_baselines_are_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, healthy: BundleReport, tmp_path: Path, coreflow: Run, options: tuple[str, ...], said: str
) -> None:
    from coreflow.cli import validate

    monkeypatch.setattr(validate, "validate_with_bar", lambda *_, **__: pytest.fail("it ran"))
    monkeypatch.chdir(tmp_path)
    write_report(tmp_path / "package.json", next(iter(healthy.stages.values())))
    (tmp_path / "broken.json").write_text("{")
    filled = [item.format(package="package.json", broken="broken.json") for item in options]
    code, out, err = coreflow("validate", "example", *filled)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split()) and err.startswith("error: ")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["broken.json", "package.json"]


def test_a_baseline_is_written_then_compared_with(
    instant: Any, healthy: BundleReport, example: Path, tmp_path: Path, coreflow: Run
) -> None:
    baseline = tmp_path / "baseline.json"
    code, out, err = coreflow("validate", example, "--baseline", baseline, "--update-baseline")
    assert code == 0 and f"baseline: {baseline}" in err and "baseline" not in out
    kept = read_report(baseline)
    assert kept["stages"]["classifier"]["ops"] == [] and kept["stages"]["classifier"]["outputs"]["scores"]["rho_rms"] > 0

    code, out, _ = coreflow("validate", example, "--baseline", baseline)
    assert code == 0 and "against the baseline:\nNO WORSE" in out

    instant(with_rho(healthy, 1.2))
    code, out, _ = coreflow("validate", example, "--baseline", baseline)
    assert code == 1 and "worse: classifier: scores: rho_rms" in out
    code, out, _ = coreflow("validate", example, "--baseline", baseline, "--json")
    printed = json.loads(out)
    assert code == 1 and printed["baseline"]["worse"] == 1 and printed["validation"]["verdict"] == "pass"

    code, _, _ = coreflow("validate", example, "--baseline", baseline, "--update-baseline")
    assert code == 0 and coreflow("validate", example, "--baseline", baseline)[0] == 0


def test_a_failing_validation_keeps_its_own_exit_code(
    instant: Any, healthy: BundleReport, example: Path, tmp_path: Path, coreflow: Run
) -> None:
    write_report(tmp_path / "baseline.json", healthy)
    instant(replace(healthy, verdict="fail", cause="translation"))
    assert coreflow("validate", example, "--baseline", tmp_path / "baseline.json")[0] == 4


def test_two_reports_are_compared(healthy: BundleReport, tmp_path: Path, coreflow: Run) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    write_report(old, healthy)
    write_report(new, with_rho(healthy, 1.2))
    code, out, _ = coreflow("validate", "diff", old, old)
    assert code == 0 and out.startswith("NO WORSE  pass -> pass")
    code, out, _ = coreflow("validate", "diff", old, new)
    assert code == 1 and out.startswith("WORSE  pass -> pass; 1 thing got worse")
    code, out, _ = coreflow("validate", "diff", new, old, "--json")
    assert code == 0 and json.loads(out)["changes"][0]["direction"] == "better"


def test_reports_that_cannot_be_compared_are_exit_code_2(healthy: BundleReport, tmp_path: Path, coreflow: Run) -> None:
    old, package, next_year = (tmp_path / f"{name}.json" for name in ("old", "package", "next_year"))
    write_report(old, healthy)
    write_report(package, next(iter(healthy.stages.values())))
    next_year.write_text(json.dumps({**to_json(healthy), "schema_version": 99}))
    for other, said in ((package, "give two of a kind"), (next_year, "schema version 99"), (tmp_path / "nowhere.json", "cannot be read")):
        code, out, err = coreflow("validate", "diff", old, other)
        assert (code, out) == (2, "") and said in " ".join(err.split())
    assert coreflow("validate", "diff", old)[0] == 2


def test_a_folder_may_be_called_diff(instant: Any, coreflow: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from coreflow.cli import validate

    asked: list[Path] = []
    validate_with_bar = validate.validate_with_bar

    def record(path: Path, options: Options, **__: Any) -> Any:
        asked.append(path)
        return validate_with_bar(path, options)

    monkeypatch.setattr(validate, "validate_with_bar", record)
    assert coreflow("validate", "./diff")[0] == 0 and coreflow("validate", "--strict", "replay")[0] == 0
    assert asked == [Path("diff"), Path("replay")]


def test_a_replay_is_reported_like_a_validation(
    healthy: BundleReport, coreflow: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[Any, ...]] = []
    report = replace(next(iter(healthy.stages.values())), verdict="fail", cause="fp16", text="again")

    def again(path: Path, **options: Any) -> Any:
        asked.append((path, options))
        return report

    monkeypatch.setitem(sys.modules, "coreflow.validate.recorded", types.SimpleNamespace(replay=again))
    code, out, _ = coreflow("validate", "replay", "worst.safetensors", "--report", tmp_path / "report.md", "--package", "here.mlpackage")
    assert code == 1 and "FAIL (fp16)  again" in out
    assert asked == [(Path("worst.safetensors"), {"reference": None, "package": Path("here.mlpackage"), "backend": None})]
    assert "FAIL" in (tmp_path / "report.md").read_text()
    code, out, _ = coreflow("validate", "replay", "worst.safetensors", "--json")
    assert code == 1 and json.loads(out)["text"] == "again"
    assert coreflow("validate", "replay")[0] == 2


def test_help_tells_of_the_other_two_commands(coreflow: Run) -> None:
    def words(*arguments: str) -> str:
        return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", "", coreflow(*arguments)[1]).split())

    assert "validate diff" in words("--help") and "validate replay" in words("--help")
    assert "coreflow validate diff OLD NEW" in words("validate", "--help") and " validate [OPTIONS]" in words("validate", "--help")
    assert " validate diff [OPTIONS]" in words("validate", "diff", "--help")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's, converted."""
    from coreflow.export.user_files import load_recipes

    (recipe,) = load_recipes(SOURCE)
    return build(recipe, tmp_path_factory.mktemp("one"))


class TestOnePackage:
    """Against its recipe, another package, an ONNX file; with files of inputs and sweeps."""

    def test_beside_another_package_and_an_onnx_file(self, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["lift", str(package), "--to", "onnx", "--out", str(tmp_path / "c.onnx")]) == 0
        for other, budget in ((package, "the reference package's own fp16"), (tmp_path / "c.onnx", "drawn rounding")):
            capsys.readouterr()
            assert main(["validate", str(package), str(other), "--json"]) == 0
            report = json.loads(capsys.readouterr().out)
            assert (report["verdict"], report["budget"]) == ("pass", budget) and Path(other).name in report["reference"]

    def test_a_failure_leaves_a_replay_that_fails_alone(self, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = tmp_path / "other.py"
        source.write_text(
            (ROOT / "examples" / "recipes.py").read_text() + "\n\nwith torch.no_grad():\n    CLASSIFIER.module.head[1].weight[3] *= 1.05\n"
        )
        where = tmp_path / "kept"
        command = ["validate", str(package), "--reference", f"{source}:CLASSIFIER", "--evidence", str(where)]
        assert main([*command, "--json"]) == 1
        report = json.loads(capsys.readouterr().out)
        assert (report["verdict"], report["cause"]) == ("fail", "weights") and report["culprits"][0]["type"] == "linear"
        assert report["culprits"][0]["origin"]["module"] == "head.1"
        assert main(command) == 1
        (line,) = (line for line in capsys.readouterr().out.splitlines() if "coreflow validate replay" in line)
        printed = shlex.split(line.partition("coreflow ")[2])
        assert printed[-2:] == ["--package", str(package)], "neither below this folder nor below the evidence's"
        assert main([*printed, "--json"]) == 1
        again = json.loads(capsys.readouterr().out)
        assert (again["verdict"], again["samples"]["total"], again["replay_package"]) == ("fail", 1, str(package))
        (alone,) = where.glob("*/op.mlpackage")
        assert alone.parent.joinpath("inputs.safetensors").exists()

    def test_files_and_sweeps_join_the_seeds(self, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        np.savez(tmp_path / "more.npz", ids=np.ones((2, 1, 64), np.int32), mask=np.ones((2, 1, 64), np.float16))
        command = ["validate", str(package), "--reference", SOURCE, "--inputs", str(tmp_path / "more.npz"), "--sweep"]
        assert main([*command, "--json"]) == 0
        samples = json.loads(capsys.readouterr().out)["samples"]
        assert samples["drawn"] == 8 and samples["given"] > 10

    def test_within_judges_by_a_share_alone(self, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
        command = ["validate", str(package), "--reference", SOURCE]
        assert main([*command, "--within", "0.01"]) == 0 and "0.01 is the limit" in capsys.readouterr().out
        assert main([*command, "--within", "1e-5"]) == 6  # nor does torch in fp16 keep to it
        assert main([*command, "--within", "3"]) == 2 and "between 0 and 1 is right" in capsys.readouterr().err

    def test_contract_and_ceiling_are_set_for_all_outputs_or_by_name(
        self, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command, limits = ["validate", str(package), "--reference", SOURCE], tmp_path / "limits.toml"
        assert main([*command, "--contract", "1e-5"]) == 6 and "contract of 0.001 %" in capsys.readouterr().out
        assert main([*command, "--ceiling", "1e-5"]) == 6
        limits.write_text("[nothing]\ncontract = 0.02\n")
        assert main([*command, "--limits", str(limits)]) == 2 and "limits for nothing; the outputs of" in capsys.readouterr().err
        assert main([*command, "--within", "0.01", "--contract", "0.02"]) == 2
        assert main([*command, "--ceiling", "0"]) == 2 and "a share of the output's RMS is right" in capsys.readouterr().err
        assert main([*command, "--contract", "3"]) == 2 and "a contract of 3; a share of the output" in capsys.readouterr().err

    def test_a_package_without_a_reference_is_refused_with_the_choices(self, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["validate", str(package)]) == 2 and "another package or an ONNX file" in capsys.readouterr().err
