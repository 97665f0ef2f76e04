"""The budget of references that simulate nothing: as large as a healthy run's errors, and too small for every planted fault."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Arrays
from coreflow.models.spec import TensorSpec
from coreflow.runtime import load_model
from coreflow.validate import validate
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.references.drawn_errors import DrawnErrors, _is_held, _with_error
from tests.validate.test_mutations import FAULTY_WEIGHTS

if TYPE_CHECKING:
    from tests.validate.conftest import Converted

Convert = Callable[..., "Converted"]


def recorded(recipe: Recipe, count: int = 8) -> list[Sample]:
    """Samples with the outputs of the module in fp32, as a bundle records them."""
    samples = []
    for seed in range(count):
        inputs = recipe.inputs_for(seed)
        with torch.no_grad():
            output = recipe.module(*(torch.from_numpy(np.asarray(array, np.float32)) for array in inputs.values()))
        samples.append(Sample(label=f"golden {seed}", inputs=inputs, expected={recipe.outputs[0]: output.numpy()}))
    return samples


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 40))])
def test_healthy_networks_pass(seed: int, convert_network: Convert, tmp_path: Path) -> None:
    healthy = convert_network(2, 64)
    recipe = healthy.recipe(seed)
    package = healthy.with_weights(tmp_path / "network.mlpackage", recipe.module.state_dict())
    report = validate(package, None, recorded(recipe))
    assert (report.verdict, report.budget) == ("pass", "drawn rounding"), report.text
    assert 0.7 < report.outputs["y"].rho_rms < 1.3


@pytest.mark.parametrize("fault", FAULTY_WEIGHTS)
def test_wrong_weights_fail(fault: str, convert_network: Convert, tmp_path: Path) -> None:
    healthy, (change, gate) = convert_network(2, 64), FAULTY_WEIGHTS[fault]
    report = validate(healthy.with_fault(tmp_path / "network.mlpackage", change), None, recorded(healthy.recipe()))
    assert (report.verdict, report.cause) == ("fail", "weights"), report.text
    assert gate in {failed.name for failed in report.outputs["y"].failed_gates}


class Amplifying(nn.Module):
    """Eight products that each amplify an error, as decoders with large weights do."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList(nn.Parameter(0.5 * torch.randn(32, 32, generator=random)) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = torch.sin(x @ weight)
        return x


def test_a_network_that_amplifies_errors_has_a_larger_budget(tmp_path: Path) -> None:
    recipe = Recipe(name="amplifying", module=Amplifying().eval(), inputs={"x": TensorSpec((4, 32), "float16")}, outputs=("y",))
    report = validate(build(recipe, tmp_path), None, recorded(recipe), contract=0.5)
    assert report.verdict == "pass", report.text
    assert report.outputs["y"].budget > 20 * 2**-11 * report.outputs["y"].reference_rms


class Squares(nn.Module):
    """Squares of numbers near 300 leave fp16, and their mean would not."""

    def forward(self, x: Tensor) -> Tensor:
        large = x * 300
        return (large * large) * 1e-3


class SmallSquares(nn.Module):
    """Squares of small numbers are held in few digits."""

    def forward(self, x: Tensor) -> Tensor:
        small = x * 1e-3
        return torch.tanh(small * small) * 1e4


@pytest.mark.parametrize(("module", "verdict"), [(Squares(), "fail"), (SmallSquares(), "fp16-unsafe")], ids=["overflow", "underflow"])
def test_what_leaves_the_range_of_fp16_is_not_excused(module: nn.Module, verdict: str, tmp_path: Path) -> None:
    recipe = Recipe(name="range", module=module.eval(), inputs={"x": TensorSpec((4, 32), "float16")}, outputs=("y",))
    report = validate(build(recipe, tmp_path, check=False), None, recorded(recipe))
    assert report.verdict == verdict, report.text


def test_draws_are_the_same_in_every_run(convert_network: Convert) -> None:
    healthy = convert_network(2, 64)
    inputs: Arrays = healthy.recipe().inputs_for(0)
    exact = load_model(healthy.package, backend="lifted", numerics="fp64").predict(inputs)["y"]
    (one,), (other,) = (
        DrawnErrors(read_program(healthy.package)).simulate(inputs, exact={"y": exact}, reference=(exact,)) for _ in range(2)
    )
    assert np.array_equal(one, other) and not np.array_equal(one, exact)


@given(st.lists(st.floats(-60000, 60000), min_size=1, max_size=20), st.sampled_from(["float16", "float32"]))
def test_an_error_is_half_a_last_place_at_most_and_none_where_the_type_holds_the_number(numbers: list[float], dtype: str) -> None:
    tensor = torch.tensor(numbers, dtype=torch.float64)
    moved = _with_error(tensor, dtype, torch.Generator().manual_seed(0))
    stored = tensor.abs().to(getattr(torch, dtype)).to(torch.float64).numpy().astype(dtype)
    steps = np.maximum(np.spacing(stored), np.spacing(np.nextafter(stored, np.zeros_like(stored)))).astype(np.float64)
    assert ((moved - tensor).abs().numpy() <= 0.5 * steps).all()
    assert _is_held(tensor.to(getattr(torch, dtype)).to(torch.float64), dtype).all()
