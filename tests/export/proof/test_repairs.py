"""``engine_safe``: the package that is put in place is repaired, proven, and says what was done."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from coreflow.cli.main import main
from coreflow.export import Recipe, TensorSpec, build
from coreflow.export.bundle import BundleDone, StageDone, export_bundle
from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.manifest import manifest_from_json, read_manifest
from coreflow.export.package.mlpackage import read_message, read_program
from coreflow.models.errors import ConfigError


class Head(nn.Module):
    """Attention of two heads, and the logarithm of a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(128, 384)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part.unflatten(-1, (2, 64)).transpose(1, 2) for part in self.project(x).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return (mixed * 40).softmax(-1).log()


def recipe(**changes: object) -> Recipe:
    torch.manual_seed(0)
    fields = {"name": "head", "module": Head().eval(), "inputs": {"x": TensorSpec((1, 16, 128))}, "outputs": ("y",), "target": "iOS18"}
    return Recipe(**{**fields, "engine_safe": "M4/macOS27", **changes})  # type: ignore[arg-type]


def types(package: Path) -> list[str]:
    return [op.type for op in read_program(package).function()[0].walk()]


def test_a_package_is_repaired_before_it_is_proven(tmp_path: Path) -> None:
    assert "scaled_dot_product_attention" in types(build(recipe(engine_safe=""), tmp_path / "plain"))
    events = list(export_bundle([recipe()], tmp_path / "bundle", jobs=1))
    done = events[-1]
    assert isinstance(done, BundleDone)
    package = tmp_path / "bundle/packages/head.mlpackage"
    assert not {"scaled_dot_product_attention"} & set(types(package))
    stage = read_manifest(done.path).stages["head"]
    assert stage.errors is not None and stage.recipe["engine_safe"] == "M4/macOS27"
    assert manifest_from_json(done.manifest.to_json()).stages["head"].repairs == stage.repairs
    repairs = stage.repairs
    assert repairs is not None and repairs["numerics"] == "engine-m4"
    assert [change["repair"] for change in repairs["changes"]] == ["separate_attention", "stable_log_sums"]
    assert all(change["ops"] and sum(change["engine"] + change["cpu"]) for change in repairs["changes"])
    assert repairs["errors"]["before"]["y"] > 10 * repairs["errors"]["after"]["y"]

    again = list(export_bundle([recipe()], tmp_path / "bundle", jobs=1))
    assert all(event.reused for event in again if isinstance(event, StageDone))
    assert read_manifest(done.path).stages["head"].repairs == repairs


def test_coremltools_takes_the_repaired_program(tmp_path: Path) -> None:
    """Its loader checks the types of all arguments."""
    quiet_coremltools()
    from coremltools.converters.mil.frontend.milproto import load

    message, spec = read_message(build(recipe(), tmp_path))
    program = load.load(message, message.specificationVersion, file_weights_dir=str(spec.parent / "weights"))
    assert "softmax" in {op.op_type for op in program.functions["main"].operations}


def test_a_program_without_faults_stays_as_it_is(tmp_path: Path) -> None:
    plain, safe = (build(recipe(module=nn.ReLU(), engine_safe=target), tmp_path / f"at-{target[:2]}") for target in ("", "M4/macOS27"))
    assert types(plain) == types(safe)


def test_an_unknown_target_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="engine_safe: no target 'M4/Windows'"):
        recipe(engine_safe="M4/Windows")


RECIPES = """
import torch
from torch import nn
from coreflow.export import Recipe, TensorSpec

class Scores(nn.Module):
    def forward(self, x):
        return (x * 8).softmax(-1).log()

SCORES = Recipe(name="scores", module=Scores(), inputs={"x": TensorSpec((4, 32))}, outputs=("y",))
"""


def test_the_command_repairs_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(RECIPES)
    assert main(["export", f"{tmp_path}/mine.py:SCORES", "--out", str(tmp_path / "bundle"), "--engine-safe", "--jobs", "1"]) == 0
    text = capsys.readouterr().out
    assert "stable_log_sums: 2 ops, on the engine" in text and "engine-m4 numerics (a published model, not measured)" in text
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    assert manifest["stages"]["scores"]["repairs"]["target"] == "M4/macOS27"
    assert "repaired for the Neural Engine of M4/macOS27: stable_log_sums" in (tmp_path / "bundle/README.md").read_text()
