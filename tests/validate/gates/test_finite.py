"""Numbers that are not finite are named before anything is compared: weights of the module, of the package, references, budgets."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.recipe import Recipe
from coreflow.models.spec import TensorSpec
from coreflow.validate import validate
from coreflow.validate.report.model import Report


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.first, self.norm, self.second = nn.Embedding(9, 16), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 8)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.second(torch.tanh(self.norm(self.first(x) + self.table(ids))))


def recipe(module: nn.Module) -> Recipe:
    inputs = {"x": TensorSpec((4, 16)), "ids": TensorSpec((4,), "int32", bounds=(0, 4))}  # rows 5 to 8 are never drawn
    return Recipe(name="net", module=module.eval(), inputs=inputs, outputs=("y",))


def spoil(name: str, value: float) -> nn.Module:
    module = Net()
    with torch.no_grad():
        module.state_dict()[name].reshape(-1)[-1] = value
    return module


@pytest.mark.sampled(3)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["first.weight", "first.bias", "table.weight", "norm.running_var"])
def test_a_weight_that_is_not_finite_is_named(name: str, value: float, tmp_path: Path) -> None:
    """Behind a tanh and in a row that no sample draws it would never be seen."""
    report = validate(build(recipe(Net()), tmp_path), recipe(spoil(name, value)))  # an export refuses such weights
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "non-finite", 3)
    assert f"'{name}' of the reference holds 1 {'NaN' if math.isnan(value) else 'infinite'} of" in report.text


def test_a_weight_that_only_the_package_lost_is_named(edit_weights: Callable[..., None], tmp_path: Path) -> None:
    """Its row is never drawn."""
    healthy = recipe(Net())
    package = build(healthy, tmp_path)
    edit_weights(
        package,
        {"table": healthy.module.state_dict()["table.weight"]},
        {"table": spoil("table.weight", math.inf).state_dict()["table.weight"]},
    )
    report = validate(package, healthy)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "non-finite", 3)
    assert "in the package holds 1 infinite of 144 values" in report.text and "gather" in report.text


class Masked(nn.Module):
    """Minus infinity where it means something: an additive mask, a buffer or a parameter, and logits that are never chosen."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 8)
        self.register_buffer("mask", torch.full((16, 16), -math.inf).triu(1))
        self.frozen = nn.Parameter(torch.full((16, 16), -math.inf).triu(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.first(x)
        return self.second(torch.softmax(scores + self.mask, -1) @ x + torch.softmax(scores + self.frozen, -1))


class Suppressed(nn.Module):
    forbidden: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(16, 8)
        self.register_buffer("forbidden", torch.tensor([0.0, -math.inf] + [0.0] * 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + self.forbidden


@pytest.mark.sampled(1)
@pytest.mark.parametrize("module", [Masked(), Suppressed()], ids=["masks", "logits"])
def test_minus_infinity_in_a_mask_is_meant(module: nn.Module, tmp_path: Path) -> None:
    masked = Recipe(name="masked", module=module.eval(), inputs={"x": TensorSpec((16, 16))}, outputs=("y",))
    report = validate(build(masked, tmp_path), masked)
    assert report.verdict == "pass", report.text


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x) / x.abs()


def logarithm(tmp_path: Path, draw: Callable[[int], dict[str, np.ndarray]]) -> Report:
    log = Recipe(name="log", module=Logarithm(), inputs={"x": TensorSpec((4, 16))}, outputs=("y",), draw=draw)
    return validate(build(log, tmp_path), log)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, seed: -x if seed == 3 else x, "NaN in 64 of 64 values of seed 3: nothing"),
        (lambda x, seed: x - (x == x.max()) * (x + 1) if seed > 4 else x, "NaN in 1 of 64 values of seed 5, and not finite in 2 more of 8"),
        (lambda x, seed: x * (seed != 2), "infinite throughout of seed 2"),
    ],
    ids=["one sample", "one value", "infinite"],
)
def test_a_reference_that_is_not_finite_is_named(change: Callable[..., np.ndarray], said: str, tmp_path: Path) -> None:
    def draw(seed: int) -> dict[str, np.ndarray]:
        x = np.random.default_rng(seed).uniform(0.5, 2, (4, 16)).astype(np.float16)
        return {"x": change(x, seed).astype(np.float16)}

    report = logarithm(tmp_path, draw)
    assert (report.verdict, report.cause, report.exit_code) == ("incomplete", None, 5)
    assert f"the reference itself is {said}" in report.text, report.text


class Overflowing(nn.Module):
    """Within range at both ends, beyond it between them."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 300) * (x * 300) / 9000


def test_a_budget_that_is_not_finite_is_named(tmp_path: Path) -> None:
    """The package computes in float64, and only torch's fp16 overflows."""
    large = Recipe(name="large", module=Overflowing(), inputs={"x": TensorSpec((4, 16))}, outputs=("y",))
    report = validate(build(large, tmp_path), large, numerics="fp64")
    assert (report.verdict, report.exit_code) == ("fp16-unsafe", 6)
    assert "fp16 itself overflows:" in report.text and "of its values are infinite or NaN where the reference is not" in report.text
