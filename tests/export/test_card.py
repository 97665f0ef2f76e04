"""The model card says what a bundle holds, and leaves the words of others alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from coreflow.export import Recipe, TensorSpec, export_bundle
from coreflow.export.card import CARD, TOGETHER, model_card, read_verdicts, record_verdicts
from coreflow.export.package.manifest import read_manifest
from coreflow.models.errors import ExportError


def recipe(**fields: object) -> Recipe:
    inputs = {"x": TensorSpec((1, 4), bounds=(-1, 1))}
    return Recipe(name="head", module=nn.Linear(4, 2), inputs=inputs, outputs=("y",), **fields)  # type: ignore[arg-type]


def test_a_card_says_what_the_package_takes_and_how_it_was_proven(tmp_path: Path) -> None:
    out = tmp_path / "heads"
    list(export_bundle([recipe(metadata={"licence": "MIT", "author": "Jane Doe"}, description="A head.")], out, jobs=1))
    manifest, card = read_manifest(out), (out / CARD).read_text()
    assert card == model_card(manifest)
    stage = manifest.stages["head"]
    lines = (
        "license: mit",
        "# heads",
        "A head.",
        "- author: Jane Doe",
        "| input | `x` | 1 × 4 | float16, -1 to 1 |",
        "| output | `y` | 1 × 2 | float16 |",
    )
    for line in (*lines, f"- file: `{stage.package}`", "in float64 the saved program is the torch module"):
        assert line in card, line
    assert not (out / ".lock").exists()
    (out / CARD).write_text("my own words")
    list(export_bundle([recipe()], out, jobs=1))
    assert (out / CARD).read_text() == "my own words"


def test_a_failed_export_leaves_no_folder(tmp_path: Path) -> None:
    class Random(nn.Module):
        def forward(self, x: object) -> object:
            raise RuntimeError("no")

    with pytest.raises(ExportError):
        list(export_bundle([Recipe(name="r", module=Random(), inputs={"x": TensorSpec((1, 4))}, outputs=("y",))], tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []


def test_a_card_shows_the_verdicts_on_the_packages_that_are_there(tmp_path: Path) -> None:
    def named(name: str, seed: int) -> Recipe:
        torch.manual_seed(seed)
        return replace(recipe(), name=name, module=nn.Linear(4, 2))

    out = tmp_path / "heads"
    list(export_bundle([named("one", 0), named("two", 1)], out, jobs=1))
    assert "Not validated yet" in (out / CARD).read_text()
    outcomes = {"one": "pass", "two": "warn", TOGETHER: "warn", "three": "fail"}
    assert record_verdicts(out, outcomes, date="2026-12-01T00:00:00+00:00", conditions="--quick")
    lines = {line.split(" | ")[0]: line for line in (out / CARD).read_text().splitlines() if " with --quick | 2026-12-01 | " in line}
    assert list(lines) == ["| one", "| two", "| all together"] and "| warn with --quick |" in lines["| two"]
    assert f"`{read_manifest(out).stages['one'].fingerprint[:12]}`" in lines["| one"]
    list(export_bundle([named("one", 0), named("two", 7)], out, jobs=1))
    assert list(read_verdicts(out)) == ["one"]
    card = (out / CARD).read_text()
    assert "| one | pass" in card and "| two | warn" not in card and "| all together" not in card
    program = next(out.glob("packages/one.mlpackage/Data/*/model.mlmodel"))
    program.write_bytes(program.read_bytes()[::-1])
    assert not record_verdicts(out, {"one": "fail"}, date="2026-12-02")
    assert (out / CARD).read_text() == card
