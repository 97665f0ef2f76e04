"""The faults that must be found in a transformer, each by the gate named, beside as many healthy ones that must pass.

A fault in the weights is put into a converted package; another activation or epsilon is converted. Every reference is healthy. What both
conversions share, at FLOAT16 and FLOAT32, is the converter's: the two least of these faults are far below the rounding of fp16.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torch import Tensor

from coreflow.validate import validate
from coreflow.validate.report.model import Report

if TYPE_CHECKING:
    from tests.validate.conftest import Converted

Weights = dict[str, Tensor]
Convert = Callable[..., "Converted"]

HEADS = 8


def zero_head(weights: Weights) -> None:
    """The first of eight heads reaches nothing."""
    out = weights["layers.0.out.weight"]
    out[:, : out.shape[1] // HEADS] = 0


def drop_bias(weights: Weights) -> None:
    weights["layers.0.contract.bias"].zero_()


def swap_rows(weights: Weights) -> None:
    rows = weights["layers.1.expand.weight"]
    rows[[3, 4]] = rows[[4, 3]]


def to_bfloat16(weights: Weights) -> None:
    weights.update({name: tensor.bfloat16().float() for name, tensor in weights.items()})


def to_int8(weights: Weights) -> None:
    for name, tensor in weights.items():
        if tensor.ndim == 2:
            scale = tensor.abs().amax(1, keepdim=True) / 127
            weights[name] = (tensor / scale).round() * scale


def shift_one_bias(weights: Weights) -> None:
    weights["head.bias"][5] += 0.02


def zero_channel(weights: Weights) -> None:
    weights["layers.1.query.weight"][7] = 0


FAULTY_WEIGHTS = {
    "one head zeroed": (zero_head, "rho_rms"),
    "feed-forward bias dropped": (drop_bias, "rho_rms"),
    "two feed-forward rows swapped": (swap_rows, "rho_rms"),
    "bf16 weights": (to_bfloat16, "rho_rms"),
    "int8 weights": (to_int8, "rho_rms"),
    "one output bias wrong": (shift_one_bias, "rho_max"),
    "one projection channel zeroed": (zero_channel, "rho_slice"),
}
SMALL_TRANSLATIONS: dict[str, dict[str, Any]] = {"tanh-GELU for GELU": {"activation": "tanh-gelu"}, "LayerNorm eps 1e-3": {"eps": 1e-3}}

# (layers, width); the tables that the limits come from are of the slow ones.
SIZES = [
    pytest.param((2, 64), id="2 layers of 64"),
    pytest.param((2, 256), id="2 layers of 256", marks=pytest.mark.slow),
    pytest.param((12, 256), id="12 layers of 256", marks=pytest.mark.slow),
]
SEEDS = [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 200))]


def failed(report: Report) -> set[str]:
    return {gate.name for gate in report.outputs["y"].failed_gates}


def show(report: Report) -> None:
    """One line of figures a test, for ``pytest -rP``."""
    actual = report.outputs["y"]
    ratios = f"rho_rms {actual.rho_rms:.3f} rho_max {actual.rho_max:.3f} rho_slice {actual.rho_slice:.3f}"
    print(f"{ratios} translation {actual.rungs['R2'].relative_rms:.2g}: {' '.join(sorted(failed(report))) or 'passes'}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fault", FAULTY_WEIGHTS)
def test_wrong_weights_are_caught_by_their_gate(fault: str, size: tuple[int, int], convert_network: Convert, tmp_path: Path) -> None:
    change, gate = FAULTY_WEIGHTS[fault]
    healthy, in_fp32 = convert_network(*size), convert_network(*size, "fp32")
    package = healthy.with_fault(tmp_path / "network.mlpackage", change)
    report = validate(package, healthy.recipe(), wide_package=in_fp32.package)
    show(report)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "weights", 1)
    assert gate in failed(report) and "translation" not in failed(report)
    assert "y:" in report.text


@pytest.mark.parametrize("size", SIZES)
def test_another_activation_is_caught_by_its_size(size: tuple[int, int], convert_network: Convert) -> None:
    wrong = convert_network(*size, activation="quick-gelu")
    report = validate(wrong.package, wrong.recipe(), wide_package=convert_network(*size, "fp32").package)
    show(report)
    assert (report.verdict, report.cause) == ("fail", "translation")
    assert "rho_rms" in failed(report) and "translation" not in failed(report)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fault", SMALL_TRANSLATIONS)
def test_errors_below_fp16_noise_are_caught_by_the_conversion_at_float32(
    fault: str, size: tuple[int, int], convert_network: Convert
) -> None:
    wrong, in_fp32 = (convert_network(*size, precision, **SMALL_TRANSLATIONS[fault]) for precision in ("fp16", "fp32"))
    report = validate(wrong.package, wrong.recipe(), wide_package=in_fp32.package)
    show(report)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "translation", 4)
    assert "translation" in failed(report)


@pytest.mark.parametrize("size", SIZES)
def test_the_network_that_the_faults_are_put_into_passes(size: tuple[int, int], convert_network: Convert) -> None:
    healthy = convert_network(*size)
    report = validate(healthy.package, healthy.recipe(), wide_package=convert_network(*size, "fp32").package)
    show(report)
    assert (report.verdict, report.cause, report.exit_code) == ("pass", None, 0), report.text


@pytest.mark.parametrize("seed", SEEDS)
def test_healthy_networks_pass(seed: int, convert_network: Convert, tmp_path: Path) -> None:
    healthy, in_fp32 = convert_network(2, 64), convert_network(2, 64, "fp32")
    recipe = healthy.recipe(seed)
    weights = recipe.module.state_dict()
    package = healthy.with_weights(tmp_path / "network.mlpackage", weights)
    report = validate(package, recipe, wide_package=in_fp32.with_weights(tmp_path / "in_fp32.mlpackage", weights))
    show(report)
    assert (report.verdict, report.cause, report.exit_code) == ("pass", None, 0), report.text
    actual = report.outputs["y"]
    assert 0.8 < actual.rho_rms < 1.2 and 0.3 < actual.rungs["R3"].rho < 1 and actual.rungs["R4"].rho == pytest.approx(actual.rho_rms)
