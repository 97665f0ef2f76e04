"""``coreflow estimate``: ranges with what set them, as text and as JSON, and its errors."""

import json
from pathlib import Path

import pytest
from torch import Tensor, nn

from coreflow.cli.main import main
from coreflow.export.bundle import build
from coreflow.export.recipe import Recipe
from coreflow.models.spec import TensorSpec


class Large(nn.Module):
    """Two convolutions that are worth a launch of the engine."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(256, 256, 3, padding=1), nn.Conv2d(256, 256, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x).relu()).softmax(-1)
        return result


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe(name="large", module=Large().eval(), inputs={"x": TensorSpec((1, 256, 32, 32), "float16")}, outputs=("y",))
    return build(recipe, tmp_path_factory.mktemp("large"), check=False)


def test_a_range_stands_with_the_figures_that_set_it(
    large: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    assert main(["estimate", str(large), "--chip", "M5Pro"]) == 0
    text = capsys.readouterr().out
    for part in ("M5 Pro, Max", "4 of 4", " to ", "25.53 TFLOP/s", "(inference, R)", "a range between published figures, not measured"):
        assert part in text
    assert "without Core ML's own overhead" in text


def test_json_holds_every_part_of_every_chip(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(large), "--json"]) == 0
    (plain,) = json.loads(capsys.readouterr().out)
    assert [chip["chip"] for chip in plain["chips"]] == ["M1Max", "M1", "M2Pro", "M4Max", "M4", "M5Pro", "M5", "M6"]
    for chip in plain["chips"]:
        assert 0 < chip["low_ms"] < chip["high_ms"] and 0 < chip["low_mj"] < chip["high_mj"]
        assert {part["quantity"] for part in chip["parts"]} == {"floor", "conv", "stream", "elementwise", "norm"}
        assert all(part["fastest"]["source"] in plain["sources"] for part in chip["parts"])


def test_a_bundle_counts_the_calls_of_a_sentence(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = exported / "bundle"
    assert main(["estimate", str(bundle), "--chip", "M1", "--text", "the old mill", "--json"]) == 0
    calls = {row["label"]: row["calls"] for row in json.loads(capsys.readouterr().out)}
    assert calls["encoder"] == calls["decoder_memory"] == 1 and calls["decoder_step"] >= 1 and calls["lattice_step"] >= 1
    assert calls["mapper_in"] is None, "a text does not pass it"


def test_a_program_on_the_cpu_has_no_figure(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (package,) = (exported / "bundle").glob("packages/encoder.mlpackage")
    assert main(["estimate", str(package), "--chip", "M4"]) == 0
    text = capsys.readouterr().out
    assert "no op is placed on the Neural Engine, and nothing is published of the CPU's time" in text
    assert "0 to 0" not in text


def test_chips_are_listed_with_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--chips", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert set(plain["units"]) == {"floor", "matmul", "conv", "stream", "elementwise", "norm", "power"}
    assert main(["estimate", "--chips", "--chip", "M2 Pro"]) == 0
    assert "M2 Pro, Max" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.mlpackage", "--chip", "M9"], "no figures of a chip 'M9'; there are those of M1Max, M1, M2Pro"),
        ([], "a package is missing; as in coreflow estimate FILE.mlpackage"),
        (["x.mlpackage", "--text", "the old mill"], "--text counts the calls of a chain, and x.mlpackage is one package; give a bundle"),
        (["x.mlpackage"], "x.mlpackage"),
    ],
)
def test_wrong_uses_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *arguments]) != 0
    assert message in " ".join(capsys.readouterr().err.split())
