"""Faults of fp16 and of translation, planted in networks of 50 to 500 ops: the report names the very op."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.recipe import Recipe
from coreflow.models.spec import TensorSpec
from coreflow.validate import validate

CHANNELS = 32


class Block(nn.Module):
    """Five ops: a linear map, an activation, a scale, another linear map and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.tanh(self.first(x)) * 0.5)


class Planted(nn.Module):
    """``depth`` blocks with ``fault`` in front of the one in the middle."""

    def __init__(self, depth: int, fault: nn.Module) -> None:
        super().__init__()
        self.before = nn.ModuleList(Block() for _ in range(depth // 2))
        self.fault = fault
        self.after = nn.ModuleList(Block() for _ in range(depth - depth // 2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.before:
            x = block(x)
        x = self.fault(x)
        for block in self.after:
            x = block(x)
        return x


class Overflow(nn.Module):
    """An intermediate of 1e5 that is scaled back at once."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.tanh(x) * 1e3 * 200.0) * 1e-5


class Epsilon(nn.Module):
    """An epsilon of 1e-9, which is 0 or 6e-8 in fp16, added to what is as small."""

    def forward(self, x: Tensor) -> Tensor:
        small = torch.tanh(x).abs() * 1e-4
        return torch.log(small.mean(-1, keepdim=True) * 0.0 + 1e-9) * 0.01 + x


class Cancelling(nn.Module):
    """x + 1000 - 1000."""

    def forward(self, x: Tensor) -> Tensor:
        raised = torch.tanh(x) + 1000.0
        return torch.relu(raised) - 1000.0


class Activation(nn.Module):
    """An activation; which one is changed after the conversion."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def network(depth: int, fault: nn.Module) -> Planted:
    torch.manual_seed(depth)
    return Planted(depth, fault).eval()


def package_of(module: nn.Module, folder: Path) -> tuple[Path, Recipe]:
    recipe = Recipe(name="planted", module=module, inputs={"x": TensorSpec((4, CHANNELS))}, outputs=("y",))
    return build(recipe, folder), recipe


DEPTHS = [10, pytest.param(100, marks=pytest.mark.slow)]


def line_of(module: type[nn.Module], text: str) -> int:
    import inspect

    lines, first = inspect.getsourcelines(module)
    return first + next(place for place, line in enumerate(lines) if text in line)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    ("fault", "kind", "op", "operation", "text"),
    [
        (Overflow, "non-finite", "mul", "aten.mul.Tensor", "200.0"),
        (Cancelling, "amplification", "sub", "aten.sub.Tensor", "- 1000.0"),
    ],
    ids=["overflow", "cancelling subtraction"],
)
def test_a_fault_of_fp16_is_traced_to_its_op(
    tmp_path: Path, depth: int, fault: type[nn.Module], kind: str, op: str, operation: str, text: str
) -> None:
    package, recipe = package_of(network(depth, fault()), tmp_path)
    report = validate(package, recipe)
    assert report.verdict in ("fail", "fp16-unsafe") and len(report.ops) >= 5 * depth
    first = report.culprits[0]
    assert (first.kind, first.type, first.module) == (kind, op, "fault")
    assert first.origin is not None and first.origin.operation == operation
    assert Path(first.file or "").name == Path(__file__).name and first.line == line_of(fault, text)


@pytest.mark.parametrize("depth", DEPTHS)
def test_an_epsilon_that_fp16_does_not_hold_is_traced_to_its_op(tmp_path: Path, depth: int) -> None:
    package, recipe = package_of(network(depth, Epsilon()), tmp_path)
    report = validate(package, recipe)
    assert report.verdict == "fp16-unsafe"
    first = report.culprits[0]
    assert (first.kind, first.type, first.module, first.line) == ("constant", "add", "fault", line_of(Epsilon, "+ 1e-9"))
    assert {constant.problem for constant in report.constants} == {"is 0 in fp16"}
    assert first.name in {op.name for op in report.ops}


@pytest.mark.slow
def test_an_epsilon_that_fp16_does_not_hold_is_no_culprit_where_it_does_not_matter(tmp_path: Path) -> None:
    class Harmless(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(torch.tanh(x).abs() + 0.5 + 1e-9) + torch.relu(torch.tanh(x) + 1000.0) - 1000.0

    package, recipe = package_of(network(10, Harmless()), tmp_path)
    report = validate(package, recipe)
    assert report.verdict == "fp16-unsafe" and report.constants
    assert "constant" not in {culprit.kind for culprit in report.culprits}


@pytest.mark.slow
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_wrong_activation_is_traced_to_its_op(tmp_path: Path, depth: int) -> None:
    package, _ = package_of(network(depth, Activation(torch.nn.functional.silu)), tmp_path)
    report = validate(package, network(depth, Activation(torch.nn.functional.gelu)), draw=inputs)
    assert (report.verdict, report.cause) == ("fail", "translation")
    first = report.culprits[0]
    assert (first.kind, first.type, first.module) == ("translation", "silu", "fault")
    assert first.origin is not None and first.origin.operation == "aten.gelu.default"


def inputs(seed: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((4, CHANNELS)).astype(np.float16)}
