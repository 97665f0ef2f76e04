"""``coreflow inspect``: what a package consists of."""

import json
from pathlib import Path

import numpy as np
import pytest

from coreflow.cli.main import main
from coreflow.export.package.mlpackage import read_program


@pytest.fixture
def encoder(exported: Path) -> Path:
    (package,) = (exported / "bundle").glob("packages/encoder.mlpackage")
    return package


def test_json_holds_every_figure(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(encoder), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    graph, _ = read_program(encoder).function()
    assert [(feature["name"], feature["dtype"], feature["shape"]) for feature in figures["inputs"]] == [
        ("ids", "int32", [1, 32]),
        ("mask", "float16", [1, 32]),
    ]
    assert [(feature["name"], feature["shape"]) for feature in figures["outputs"]] == [("surface", [1, 64])] and figures["states"] == []
    assert (figures["functions"], figures["function"], figures["opset"]) == (["main"], "main", "CoreML7")
    assert sum(figures["ops"].values()) == len(graph.ops)
    weights = [value for value in graph.constants if isinstance(value.data, np.ndarray) and value.dtype == "float16" and value.shape]
    assert figures["parameters"] == sum(value.data.size for value in weights if isinstance(value.data, np.ndarray))
    (group,) = figures["weights"]
    assert (group["dtype"], group["compression"], group["tensors"]) == ("float16", "", len(weights))
    assert group["stored_bytes"] == 2 * group["parameters"] == 2 * figures["parameters"]
    assert figures["size_bytes"] == sum(file.stat().st_size for file in encoder.rglob("*") if file.is_file())
    assert figures["multiply_adds"]["total"] == sum(figures["multiply_adds"]["by_op"].values()) > 0
    assert figures["metadata"]["user"]["com.github.apple.coremltools.version"]


def test_a_table_for_people(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(encoder)]) == 0
    captured = capsys.readouterr()
    for part in ("encoder.mlpackage", "ids", "1 × 32", "surface", "float16 as they are", "layer_norm", "multiply-adds", "MB on disk"):
        assert part in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere.mlpackage",), 3, "no such package"),
        (("{package}", "--function", "other"), 2, "no function 'other'; it has main"),
    ],
    ids=["nowhere", "function"],
)
def test_bad_input_is_one_clear_line(
    encoder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    assert main(["inspect", *(feature.format(package=encoder) for feature in arguments)]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err
