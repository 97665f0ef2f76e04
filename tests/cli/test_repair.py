"""``coreflow repair``: a package of anybody, the same function, and one clear error for what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coreflow.cli.main import main
from coreflow.export import Recipe, TensorSpec, build
from coreflow.export.package.mlpackage import read_program


class Scores(nn.Module):
    """Log-probabilities of a layer whose products are small."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2048, 8, bias=False)
        nn.init.normal_(self.layer.weight, std=1 / 64)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.layer(x)
        return scores, scores.softmax(-1).log()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    recipe = Recipe(name="scores", module=Scores().eval(), inputs={"x": TensorSpec((1, 2048))}, outputs=("scores", "y"))
    return build(recipe, tmp_path_factory.mktemp("scores"))


def test_a_package_is_repaired_by_what_its_samples_show(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 2048)) / 64
    np.savez(tmp_path / "samples.npz", x=x.astype(np.float16))
    after = tmp_path / "after.mlpackage"
    assert main(["repair", str(package), "--out", str(after), "--inputs", str(tmp_path / "samples.npz"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [change["repair"] for change in said["changes"]] == ["stable_log_sums", "scaled_products"]
    assert said["errors"]["before"]["scores"] > 1e-2 and said["errors"]["after"]["scores"] < 2e-3
    assert json.loads(read_program(after).metadata.user["coreflow.repairs"])["target"] == "M4/macOS27"
    again = tmp_path / "again.mlpackage"
    assert main(["repair", str(after), "--out", str(again)]) == 0
    assert "nothing to repair" in capsys.readouterr().out


def test_without_samples_nothing_is_scaled(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair", str(package), "--out", str(tmp_path / "after.mlpackage")]) == 0
    text = capsys.readouterr().out
    assert "stable_log_sums" in text and "scaled_products" not in text


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--target", "M4/Windows"], "no target 'M4/Windows'"),
        (["--bounds", "ids"], "NAME:LOW..HIGH of an input is right"),
        (["--bounds", "ids:0..9"], "inputs are x"),
    ],
)
def test_wrong_uses_are_one_clear_error(
    options: list[str], error: str, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = tmp_path / "after.mlpackage"
    assert main(["repair", str(package), "--out", str(after), *options]) == 2
    assert error in capsys.readouterr().err and not after.exists()
