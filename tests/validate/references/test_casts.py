"""Modules that compute in several precisions: their casts follow the run, and their weights are the numbers that they are."""

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
from coreflow.validate.references.torch_module import TorchReference

X = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float16)


class Cast(nn.Module):
    """Two layers, and between them a function that changes the precision."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.between = nn.Linear(16, 16), nn.Linear(16, 16), between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


def by_a_table(x: Tensor) -> Tensor:
    places = torch.arange(x.shape[-1], dtype=torch.float32)
    return x * torch.cos(places / torch.tensor(10.0, dtype=torch.float32)) + torch.eye(16, dtype=torch.float32) @ x.float().mean(0)


def by_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return (x @ torch.eye(16)).float()


CASTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "float": (lambda x: torch.tanh(x.float()).to(x.dtype), torch.tanh),
    "float, and left so": (lambda x: torch.tanh(x.to(torch.float32)), torch.tanh),
    "half": (lambda x: torch.tanh(x.half().float()), torch.tanh),
    "double": (lambda x: torch.tanh(x.double()).float(), torch.tanh),
    "type": (lambda x: torch.tanh(x.type("torch.FloatTensor")), torch.tanh),
    "type_as": (lambda x: torch.tanh(x).type_as(torch.zeros(1, dtype=torch.float32)), torch.tanh),
    "softmax": (lambda x: x.softmax(-1, dtype=torch.float32), lambda x: x.softmax(-1)),
    "sum": (lambda x: x - x.sum(-1, keepdim=True, dtype=torch.float32), lambda x: x - x.sum(-1, keepdim=True)),
    "constructors": (by_a_table, lambda x: x * torch.cos(torch.arange(16.0) / 10) + x.mean(0)),
    "autocast": (by_autocast, lambda x: x),
}


@pytest.mark.parametrize("case", CASTS)
def test_the_reference_is_float64_whatever_a_module_casts_to(case: str) -> None:
    cast, plain = CASTS[case]
    (output,), (expected,) = (TorchReference(Cast(function)).outputs({"x": X}) for function in (cast, plain))
    assert output.dtype == np.float64
    np.testing.assert_allclose(output, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASTS)
def test_the_simulation_rounds_results_and_not_casts(case: str) -> None:
    cast, plain = CASTS[case]
    (simulated,), (expected,) = (TorchReference(Cast(function)).simulated_outputs({"x": X}) for function in (cast, plain))
    assert simulated.dtype == np.float32
    np.testing.assert_allclose(simulated, expected, rtol=0, atol=2e-3)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", ["float", "half", "double", "type", "softmax"])
def test_a_module_with_casts_passes(case: str, tmp_path: Path) -> None:
    recipe = Recipe(name="cast", module=Cast(CASTS[case][0]).eval(), inputs={"x": TensorSpec((4, 16))}, outputs=("y",))
    report = validate(build(recipe, tmp_path), recipe)
    assert report.verdict == "pass", report.text


class Gated(nn.Module):
    """It casts to the precision of its weights, and computes a part in float32, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.weight = nn.Linear(16, 16), nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.to(self.weight.dtype))
        return self.weight * torch.tanh(y.to(torch.float32)).to(y.dtype)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_module_of_another_precision_is_exported_and_compared_by_its_own_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    module = Gated().eval().to(dtype)
    recipe = Recipe(name="gated", module=module, inputs={"x": TensorSpec((4, 16))}, outputs=("y",))
    report = validate(build(recipe, tmp_path), recipe)
    assert report.verdict == "pass", report.text
    assert "R2" in report.outputs["y"].rungs
    assert module.weight.dtype == dtype
    x = torch.from_numpy(X.astype(np.float64))
    (reference,) = TorchReference(module).outputs({"x": X})
    y = x @ module.layer.weight.detach().double().T + module.layer.bias.detach().double()
    expected = module.weight.detach().double() * torch.tanh(y)
    np.testing.assert_allclose(reference, expected.numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    "norm",
    [nn.RMSNorm(16), lambda x: nn.functional.rms_norm(x, (16,)), lambda x: x / (x.abs() + torch.finfo(x.dtype).eps).sqrt()],
    ids=["module", "function", "finfo"],
)
def test_an_epsilon_of_the_precision_is_float32s(norm: Callable[[Tensor], Tensor]) -> None:
    """The exported module is one in float32; float64's own epsilon is 5e8 times smaller."""
    small = {"x": X * np.float16(1e-3)}

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)

    (reference,) = TorchReference(Module()).outputs(small)
    with torch.no_grad():
        plain = norm(torch.from_numpy(small["x"]).float()).numpy()
    np.testing.assert_allclose(reference, plain, rtol=2e-6)
