"""Networks with pretrained weights: as they are they pass, and their mutated twins fail."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from coreflow.export.bundle import build
from coreflow.export.recipe import Recipe
from coreflow.validate import validate
from coreflow.validate.report.model import Report

pytestmark = pytest.mark.slow

Change = Callable[[nn.Module], None]


def zero_a_part(module: nn.Module) -> None:
    """A 64th of the weight in the middle becomes zero."""
    weights = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    middle = weights[len(weights) // 2].view(-1)
    middle[: len(middle) // 64] = 0


def drop_a_bias(module: nn.Module) -> None:
    """The first bias, which all else depends on; some of the others are nearly zero by training."""
    next(parameter for name, parameter in module.named_parameters() if name.endswith("bias")).zero_()


def zero_a_row(module: nn.Module) -> None:
    """One row of the last weight that has several becomes zero."""
    rows = [parameter for parameter in module.parameters() if parameter.ndim > 1 and len(parameter) > 1][-1]
    rows[0] = 0


def to_bfloat16(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.copy_(parameter.bfloat16())


FAULTS: dict[str, Change] = {
    "a 64th of a weight zeroed": zero_a_part,
    "a bias dropped": drop_a_bias,
    "a row zeroed": zero_a_row,
    "bf16 weights": to_bfloat16,
}


def show(report: Report) -> None:
    """The figures of docs/validation.md, for ``pytest -rP``."""
    for name, output in report.outputs.items():
        gates = {gate.name: gate for gate in output.gates}
        figures = [
            f"{gate} {gates[gate].value:.3g} of {gates[gate].limit:.3g}" for gate in ("rho_rms", "rho_max", "rho_slice") if gate in gates
        ]
        print(f"{report.name} {name}: {', '.join(figures)}, error {output.relative_rms:.2%}: {report.verdict} {report.text}")


def test_a_pretrained_network_passes(recipe: Recipe, tmp_path: Path) -> None:
    report = validate(build(recipe, tmp_path), recipe)
    show(report)
    assert report.verdict in ("pass", "warn"), report.text


@pytest.mark.parametrize("recipe", ["minilm"], indirect=True)
def test_a_tanh_gelu_in_a_pretrained_encoder_is_a_wrong_translation(recipe: Recipe, tmp_path: Path) -> None:
    twin = copy.deepcopy(recipe.module)
    for module in twin.modules():
        if hasattr(module, "intermediate_act_fn"):
            module.intermediate_act_fn = nn.GELU("tanh")
    report = validate(build(replace(recipe, module=twin), tmp_path), recipe)
    show(report)
    assert (report.verdict, report.cause) == ("fail", "translation"), report.text


@pytest.mark.parametrize("fault", FAULTS)
def test_its_mutated_twin_fails(fault: str, recipe: Recipe, tmp_path: Path) -> None:
    twin = copy.deepcopy(recipe.module)
    with torch.no_grad():
        FAULTS[fault](twin)
    report = validate(build(replace(recipe, module=twin), tmp_path), recipe)
    show(report)
    assert report.verdict == "fail", report.text
