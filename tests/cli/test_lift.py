"""``coreflow lift``: the way back to ONNX and to torch."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from coreflow.cli.main import main
from coreflow.export.package.manifest import read_manifest
from coreflow.export.package.mlpackage import read_program
from coreflow.models.arrays import Array
from coreflow.models.draws import draw_inputs
from coreflow.runtime import load_model
from coreflow.runtime.lift.engines.module import LiftedModule
from coreflow.runtime.lift.onnx.session import import_onnxruntime

onnxruntime = import_onnxruntime()


def stage_package(exported: Path, stage: str) -> Path:
    return exported / "bundle" / read_manifest(exported / "bundle").stages[stage].package


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose packages can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("lifted_"):
            del sys.modules[name]


def inputs_of(package: Path, seed: int = 1) -> dict[str, Array]:
    drawn = draw_inputs(load_model(package, "lifted", engine="interpreter").inputs, seed)
    # onnxruntime takes floats in fp32
    return {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in drawn.items()}


@pytest.mark.parametrize("stage", ["encoder", "lattice_step", "mapper_in", "mapper_out", "decoder_memory", "decoder_step"])
def test_the_torch_package_gives_the_outputs_of_the_package(exported: Path, importable: Path, stage: str) -> None:
    package = stage_package(exported, stage)
    assert main(["lift", str(package), "--to", "torch", "--out", str(importable / f"lifted_{stage}")]) == 0
    assert sorted(file.name for file in (importable / f"lifted_{stage}").iterdir()) == ["__init__.py", "model.py", "weights.safetensors"]
    module = importlib.import_module(f"lifted_{stage}.model").load()
    inputs = inputs_of(package)
    expected = load_model(package, "lifted", numerics="fp32", engine="interpreter").predict(inputs)
    with torch.no_grad():
        actual = module(*(torch.from_numpy(array) for array in inputs.values()))
    for name, result in zip(expected, actual, strict=True):
        np.testing.assert_allclose(result.numpy(), expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_source_has_a_line_per_op_in_the_packages_names(exported: Path, importable: Path) -> None:
    package = stage_package(exported, "encoder")
    main(["lift", str(package), "--to", "torch", "--out", str(importable / "lifted_names")])
    source = (importable / "lifted_names/model.py").read_text()
    graph, interface = read_program(package).function()
    calls = re.findall(r"^        (\w+) = ops\.(\w+)\(", source, flags=re.MULTILINE)
    assert calls == [(op.outputs[0].name, op.type) for op in graph.ops]
    assert "def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:" in source
    for name, _ in LiftedModule(graph, interface).named_parameters():
        assert f"self.{name} = nn.Parameter(" in source and source.count(f"self.{name}") >= 2


def test_weights_take_no_more_room_than_in_the_package(exported: Path, importable: Path) -> None:
    package = stage_package(exported, "mapper_out")
    main(["lift", str(package), "--to", "torch", "--out", str(importable / "lifted_size")])
    (stored,) = package.rglob("weight.bin")
    assert (importable / "lifted_size/weights.safetensors").stat().st_size < stored.stat().st_size * 1.02


def test_onnx_is_one_file_that_onnxruntime_runs(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = stage_package(exported, "decoder_memory")
    assert main(["lift", str(package), "--to", "onnx", "--out", str(tmp_path / "m.onnx"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "package": "decoder_memory.mlpackage", "to": "onnx", "path": str(tmp_path / "m.onnx"),
        "size_bytes": (tmp_path / "m.onnx").stat().st_size,
    }  # fmt: skip
    assert captured.err == "" and [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    inputs = inputs_of(package)
    expected = load_model(package, "lifted", numerics="fp32", engine="interpreter").predict(inputs)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for name, actual in zip(expected, session.run(list(expected), inputs), strict=True):
        np.testing.assert_allclose(actual, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("{package}", "--to", "tflite", "--out", "{tmp}/x"), 2, "choose onnx or torch"),
        (("{package}", "--to", "onnx", "--out", "{tmp}/x"), 2, "ends in .onnx"),
        (("{package}", "--to", "torch", "--out", "{tmp}/not-a-name"), 2, "'not-a-name' cannot be imported"),
        (("{package}", "--to", "torch", "--out", "{tmp}/class"), 2, "'class' cannot be imported"),
        (("{package}", "--to", "torch", "--out", "{tmp}/x", "--numerics", "fp16"), 2, "is for --to onnx"),
        (("{package}", "--to", "onnx", "--out", "{tmp}/x.onnx", "--numerics", "fp64"), 2, "fp32 and fp16 work"),
        (("{package}", "--to", "onnx", "--out", "{tmp}/x.onnx", "--function", "f"), 2, "no function 'f'; it has main"),
        (("nowhere.mlpackage", "--to", "onnx", "--out", "{tmp}/x.onnx"), 3, "no such package"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, tuple) else None,
)
def test_bad_input_is_one_clear_line(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    package = stage_package(exported, "mapper_out")
    assert main(["lift", *(argument.format(package=package, tmp=tmp_path) for argument in arguments)]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and message in " ".join(captured.err.split()) and captured.err.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    package = stage_package(exported, "mapper_out")
    assert main(["lift", str(package), "--to", "torch", "--out", str(tmp_path / "mine")]) == 2
    assert "is there already" in capsys.readouterr().err and (tmp_path / "mine/notes.txt").read_text() == "keep"
