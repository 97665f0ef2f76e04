"""The model card says what a bundle holds, and leaves the words of others alone."""

from pathlib import Path

import pytest
from torch import nn

from coreflow.export import Recipe, TensorSpec, export_bundle
from coreflow.export.card import CARD, model_card
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
