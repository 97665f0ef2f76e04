"""A program as Python source: states, control flow, compressed weights, and names that are no names. See tests/cli/test_lift.py."""

import ast
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coreflow.export.package.graph import Feature, Graph, Interface, Metadata, Op, Program, Value
from coreflow.export.package.mlpackage import read_program
from coreflow.runtime import load_model
from coreflow.runtime.lift.source.write import write_source


def loaded(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"lifted_{folder.name}", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


def test_a_state_is_an_input_and_an_output(counting_package: Path, tmp_path: Path) -> None:
    write_source(read_program(counting_package), tmp_path / "counting")
    with torch.no_grad():
        actual = loaded(tmp_path / "counting")(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0]))
    assert [row.tolist() for row in actual] == [[22, 44], [11, 22]]


@pytest.mark.parametrize(("a", "reference"), [(1.0, [3, 5]), (-1.0, [-1, -2])])
def test_control_flow_stays_control_flow(branching_package: Path, tmp_path: Path, a: float, reference: list[float]) -> None:
    write_source(read_program(branching_package), tmp_path / "branching")
    with torch.no_grad():
        (actual,) = loaded(tmp_path / "branching")(torch.tensor([a]), torch.tensor([1.0, 2.0]))
    assert actual.tolist() == reference


def test_compressed_weights_are_written_dense(palettized_package: Path, tmp_path: Path) -> None:
    write_source(read_program(palettized_package), tmp_path / "palettized")
    x = np.linspace(-1, 1, 64, dtype=np.float16)[None]
    (reference,) = load_model(palettized_package, "lifted", numerics="fp32", engine="interpreter").predict({"x": x}).values()
    with torch.no_grad():
        (actual,) = loaded(tmp_path / "palettized")(torch.from_numpy(x))
    np.testing.assert_allclose(actual.numpy(), reference, rtol=1e-5, atol=1e-5)


def test_a_classifier_keeps_its_labels(classifier_package: Path, tmp_path: Path) -> None:
    write_source(read_program(classifier_package), tmp_path / "colours")
    with torch.no_grad():
        label, shares = loaded(tmp_path / "colours")(torch.zeros(1, 3, 2, 4))
    assert label == "blue" and list(shares) == ["blue", "green", "red"]


def odd_program(name: str) -> Program:
    """y = x + w, with ``name`` for everything that has one."""
    x, w, y = (
        Value(name, "float32", (2,)),
        Value(name + "w", "float32", (2,), data=np.array([1, 2], np.float32)),
        Value("y", "float32", (2,)),
    )
    graph = Graph(name, "CoreML7", (x,), (y,), (Op("add", name, {"x": x, "y": w}, (y,)),), (w,))
    interface = Interface((Feature(name, "array", "float32", (2,)),), (Feature("y", "array", "float32", (2,)),), ())
    return Program(Path(f"{name.replace('/', '')}.mlpackage"), 8, {name: graph}, {name: interface}, name, Metadata("", "", "", "", {}))


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "self",
        "ops",
        "lambda",
        "forward",
        "torch",
        "load",
        "1",
        "a.b",
        "né",
        '"""\nimport os\n"""',
        "x): pass #",
        "{name}",
        "\\",
        "Path",
        "str",
    ],
    ids=repr,
)
def test_any_name_gives_source_that_runs_and_means_the_same(tmp_path: Path, name: str) -> None:
    write_source(odd_program(name), tmp_path / "odd")
    tree = ast.parse((tmp_path / "odd/model.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"torch"}
    with torch.no_grad():
        (actual,) = loaded(tmp_path / "odd")(torch.tensor([10.0, 20.0]))
    assert actual.tolist() == [11, 22]
