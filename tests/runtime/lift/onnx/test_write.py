"""A program as ONNX: the interpreter's results and the package's names."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from coreflow.export.package.manifest import read_manifest
from coreflow.export.package.mlpackage import read_program
from coreflow.models.draws import draw_inputs
from coreflow.models.errors import UnsupportedError
from coreflow.runtime import load_model
from coreflow.runtime.lift.engines.module import LiftedModule
from coreflow.runtime.lift.onnx import write as lift_onnx
from coreflow.runtime.lift.onnx.session import import_onnxruntime
from coreflow.runtime.lift.onnx.write import write_onnx

onnxruntime = import_onnxruntime()

IDS = np.arange(16, dtype=np.int32)[None] * 6
MASK = (np.arange(16) < 12).astype(np.float32)[None]


@pytest.fixture(scope="module")
def written(small_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    write_onnx(read_program(small_package), path)
    return path


@pytest.mark.sampled(1)
@pytest.mark.parametrize("stage", ["encoder", "lattice_step", "decoder_step"])
def test_the_file_gives_the_results_of_the_interpreter(exported: Path, tmp_path: Path, stage: str) -> None:
    package = exported / "bundle" / read_manifest(exported / "bundle").stages[stage].package
    write_onnx(read_program(package), tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    model = load_model(package, "lifted", numerics="fp32", engine="interpreter")
    inputs = draw_inputs(model.inputs, seed=1)
    reference = model.predict(inputs)
    as_fp32 = {name: value if value.dtype == np.int32 else value.astype(np.float32) for name, value in inputs.items()}
    assert [entry.name for entry in session.get_outputs()] == list(reference)
    for name, actual in zip(reference, session.run(None, as_fp32), strict=True):
        np.testing.assert_allclose(actual, reference[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_names_are_the_packages(written: Path, small_package: Path) -> None:
    graph = onnx.load(written).graph
    module = LiftedModule(*read_program(small_package).function())
    assert [entry.name for entry in graph.input] == ["ids", "mask"]
    assert [entry.name for entry in graph.output] == ["probabilities", "best"]
    assert {name for name, _ in module.named_parameters()} <= {entry.name for entry in graph.initializer}


def test_the_file_is_valid_and_keeps_no_path_of_this_machine(written: Path) -> None:
    onnx.checker.check_model(onnx.load(written), full_check=True)
    assert str(Path(lift_onnx.__file__).parents[3]).encode() not in written.read_bytes()


@pytest.mark.slow
def test_the_same_package_gives_the_same_bytes_in_every_process(small_package: Path, written: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from coreflow.export.package.mlpackage import read_program\n"
        "from coreflow.runtime.lift.onnx.write import write_onnx\n"
        f"write_onnx(read_program({str(small_package)!r}), Path({str(tmp_path / 'again.onnx')!r}))"
    )
    ran = subprocess.run([sys.executable, "-W", "default", "-c", code], check=True, capture_output=True, text=True)
    assert (tmp_path / "again.onnx").read_bytes() == written.read_bytes()
    assert (ran.stdout, ran.stderr) == ("", "")  # nothing of the exporter reaches the user


def test_a_file_that_gives_something_else_is_refused(small_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = lift_onnx._export

    def wrong(module: LiftedModule, example: Any, path: Path, label: str) -> None:
        other = LiftedModule(*read_program(small_package).function()).eval()
        other.get_parameter("outer_bias_to_fp16").data[0] += 0.01  # of one class: of all, softmax would not see it
        export(other, example, path, label)

    monkeypatch.setattr(lift_onnx, "_export", wrong)
    with pytest.raises(UnsupportedError, match="onnxruntime gives another 'probabilities'"):
        write_onnx(read_program(small_package), tmp_path / "x.onnx")


def test_control_flow_is_refused_and_not_frozen(branching_package: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cannot be written as ONNX"):
        write_onnx(read_program(branching_package), tmp_path / "x.onnx")


def test_random_numbers_are_refused_and_not_frozen(save: Callable[..., Path], tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import Builder, types

    def program(x: Any) -> Any:
        return Builder.add(x=x, y=Builder.random_normal(shape=[2], mean=0.0, stddev=1.0, seed=3))

    with pytest.raises(UnsupportedError, match="random_normal draws numbers"):
        write_onnx(
            read_program(save(Builder.program(input_specs=[Builder.TensorSpec((2,), dtype=types.fp32)])(program))), tmp_path / "x.onnx"
        )


def test_fp64_is_refused(small_package: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="numerics 'fp64' in ONNX; fp32 and fp16 work"):
        write_onnx(read_program(small_package), tmp_path / "x.onnx", "fp64")
