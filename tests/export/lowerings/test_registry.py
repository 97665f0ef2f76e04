"""The registry of lowerings: users' own, what is refused, and coremltools left as it was."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coreflow.cli.main import main
from coreflow.export.bundle import export_bundle
from coreflow.export.capture.capture import capture
from coreflow.export.capture.decompositions import safe_decompositions
from coreflow.export.package.mlpackage import read_program
from coreflow.export.package.summary import summarize
from coreflow.export.targets.lowerings.registry import LOWERINGS, load_families, registered, torch_lowering
from coreflow.export.user_files import load_recipes
from coreflow.models.errors import ConfigError, ExportError
from coreflow.runtime.load import load_model

OWN = '''
import torch
from torch import nn
from coremltools.converters.mil import Builder as mb
from coreflow.export import Recipe, TensorSpec, torch_lowering

@torch_lowering("sgn")
def sgn(x):
    """sign"""
    return mb.mul(x=mb.sign(x=x), y=1.5)

class Gate(nn.Module):
    def forward(self, x):
        return torch.sgn(x) * 2

GATE = Recipe(name="gate", module=Gate(), inputs={"x": TensorSpec((1, 4))}, outputs=("y",))
OTHER = Recipe(name="other", module=nn.ReLU(), inputs={"x": TensorSpec((1, 4))}, outputs=("y",))
'''


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    load_families()
    before = dict(LOWERINGS)
    yield
    LOWERINGS.clear()
    LOWERINGS.update(before)


def registry() -> dict[str, Any]:
    load_families()
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    return dict(_TORCH_OPS_REGISTRY.name_to_func_mapping)


def test_coremltools_is_left_as_it_was() -> None:
    before = registry()
    with registered():
        assert registry().keys() > before.keys()
        with registered():
            pass
        assert registry().keys() > before.keys()
    assert registry() == before
    with pytest.raises(RuntimeError), registered():
        raise RuntimeError
    assert registry() == before


def test_a_lowering_of_a_users_file_converts_and_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    gate, other = load_recipes(f"{file}:GATE")[0], load_recipes(f"{file}:OTHER")[0]
    captured, unconcerned = capture(gate), capture(other)
    *_, done = export_bundle([gate, other], tmp_path / "bundle", jobs=2, check=False)  # nothing like torch
    package = tmp_path / "bundle" / done.manifest.stages["gate"].package  # type: ignore[union-attr]
    assert "sign" in summarize(read_program(package)).ops
    x = np.array([[-1, 0, 1, 2]], np.float16)
    np.testing.assert_array_equal(load_model(package).predict({"x": x})["y"], 3 * np.sign(x))
    file.write_text(OWN.replace("y=1.5", "y=2.0"))
    assert capture(load_recipes(f"{file}:GATE")[0]).fingerprint != captured.fingerprint
    assert capture(load_recipes(f"{file}:OTHER")[0]).fingerprint == unconcerned.fingerprint


def test_a_users_lowering_stands_in_for_ours_even_when_ours_come_later() -> None:
    program = (
        "import sys; from coreflow.export import torch_lowering\n"
        "@torch_lowering('roll')\ndef mine(x, shifts, dims): 'mine'\n"
        "from coreflow.export.targets.lowerings.registry import LOWERINGS, load_families\n"
        "assert 'coremltools' not in sys.modules\n"
        "load_families(); print(LOWERINGS['aten::roll'].function.__name__, len(LOWERINGS) > 5)"
    )
    # Typed in as -c, it has no file, and is a user's all the same.
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["mine", "True"]


def test_two_functions_of_one_operation_in_one_file_are_refused() -> None:
    torch_lowering("library::one")(lambda x: x)

    def other(x: Any) -> Any:
        return x

    with pytest.raises(ConfigError, match=r"both .* and other lower library::one; keep one"):
        torch_lowering("library::one")(other)
    with pytest.raises(ConfigError, match="names no operation"):
        torch_lowering()


def test_what_is_converted_without_a_rewrite_is_not_rewritten_as_well() -> None:
    load_families()
    assert not {operation._schema.name for operation in safe_decompositions()} & LOWERINGS.keys()


def test_every_lowering_says_what_it_becomes() -> None:
    load_families()
    assert all(lowering.summary for lowering in LOWERINGS.values())


@pytest.mark.parametrize("front_end", ["trace", "export"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.to(torch.int32) & x.to(torch.int32), r"& of whole numbers has no counterpart .* as in \(x > 0\) & \(y > 0\)"),
        (lambda x: torch.cat([x[:, :1].diff(), x], 1), r"diff with n=1 of size 1 leaves nothing"),
    ],
)
def test_what_core_ml_cannot_say_is_refused(function: Any, message: str, front_end: str, equals_torch: Any) -> None:
    with pytest.raises(ExportError, match=message):
        equals_torch(function, front_end, [np.ones((2, 3), np.float32)])


def test_the_operations_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--ops", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert listed["aten::roll"] == {"name": "aten::roll", "becomes": "concat of two slices a dimension", "front_ends": ["trace", "export"]}
    assert listed["aten::gru"]["front_ends"] == ["export"]
    assert main(["export", "--ops"]) == 0
    assert "aten::roll" in capsys.readouterr().out


def test_an_export_of_nothing_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export"]) == 2
    assert "what to export is missing" in capsys.readouterr().err
    assert main(["export", "own.py:GATE"]) == 2
    assert "--out is missing" in capsys.readouterr().err
