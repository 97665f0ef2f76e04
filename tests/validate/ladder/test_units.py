"""The same package on several compute units; here, several arithmetics of the lifted backend stand for them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coreflow.export.bundle import build
from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe
from coreflow.models.errors import UnsupportedError
from coreflow.models.spec import TensorSpec
from coreflow.runtime import load_model
from coreflow.runtime.backend import Model
from coreflow.validate import validate
from coreflow.validate.case import make_case
from coreflow.validate.ladder.opening import open_package
from coreflow.validate.options import Options
from coreflow.validate.package import judge_package


def recipe_of() -> Recipe:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32)).eval()
    return Recipe(name="two", module=module, inputs={"x": TensorSpec((4, 32))}, outputs=("y",))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(recipe_of(), tmp_path_factory.mktemp("two"))


def test_every_unit_has_its_ratio_and_one_that_fails_a_note(package: Path) -> None:
    def without() -> Model:
        raise UnsupportedError("this machine has no Neural Engine")

    recipe = recipe_of()
    units = {
        "cpu_only": lambda: load_model(package, "lifted", numerics="fp16"),
        "cpu_and_gpu": lambda: load_model(package, "lifted", numerics="fp64"),
        "cpu_and_ne": without,
    }
    opened = replace(open_package(read_program(package), Options(backend="lifted")), units=units)
    report = judge_package(make_case(opened, recipe), Options())
    rho = report.compute_unit_rho
    assert list(rho) == ["all", "cpu_only", "cpu_and_gpu"]
    assert rho["all"]["y"] == report.outputs["y"].rho_rms
    np.testing.assert_allclose(rho["cpu_only"]["y"], rho["all"]["y"], rtol=1e-6)
    assert 0.1 < rho["cpu_and_gpu"]["y"] < 0.95 * rho["all"]["y"], "fp64 leaves the rounding of the weights"
    assert "compute units cpu_and_ne were not compared: this machine has no Neural Engine" in report.notes


def test_the_lifted_backend_has_no_units_to_compare(package: Path) -> None:
    assert not validate(package, recipe_of(), backend="lifted").compute_unit_rho


@pytest.mark.coreml
def test_core_ml_is_compared_on_all_its_units(package: Path) -> None:
    report = validate(package, recipe_of(), backend="coreml")
    assert next(iter(report.compute_unit_rho)) == "all" and "cpu_only" in report.compute_unit_rho
    assert not validate(package, recipe_of(), backend="coreml", compute_units="cpu_only").compute_unit_rho
