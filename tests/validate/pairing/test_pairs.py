"""Pairs of saved constants and unrounded weights, in programs that coremltools converted."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.package.graph import Graph
from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe
from coreflow.models.spec import TensorSpec
from coreflow.validate.pairing.pairs import pair
from coreflow.validate.pairing.weights import Weight, weights_of_graph, weights_of_module

if TYPE_CHECKING:
    from tests.validate.conftest import Converted


class Convolutional(nn.Module):
    """A convolution whose norm is folded into it, one with a norm of its own, an LSTM and a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.first_norm, self.lstm = nn.BatchNorm2d(3), nn.LSTM(8, 8, batch_first=True)
        for norm in (self.norm, self.first_norm):
            norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(self.first_norm(x))).relu() * 0.1
        y: Tensor = self.lstm(x.mean(-1).transpose(1, 2))[0]
        return y


def graph_of(module: nn.Module, shape: tuple[int, ...], folder: Path, precision: str = "fp16") -> Graph:
    recipe = Recipe(name="m", module=module, inputs={"x": TensorSpec(shape)}, outputs=("y",), precision=precision)  # type: ignore[arg-type]
    return read_program(build(recipe, folder)).function()[0]


def numbers(graph: Graph) -> dict[str, list[float]]:
    """Every constant of one element, by the argument that it is."""
    read: dict[str, list[float]] = {}
    for weight in weights_of_graph(graph):
        if weight.values.size == 1:
            read.setdefault(".".join(weight.reader or ()), []).append(float(weight.values.reshape(-1)[0]))
    return read


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Graph, Graph]:
    """A module, its package, and its conversion at FLOAT32."""
    torch.manual_seed(0)
    module = Convolutional().eval()
    folders = tmp_path_factory.mktemp("fp16"), tmp_path_factory.mktemp("fp32")
    return module, graph_of(module, (1, 3, 12, 12), folders[0]), graph_of(module, (1, 3, 12, 12), folders[1], "fp32")


def test_all_weights_of_a_fresh_conversion_are_paired(graphs: tuple[nn.Module, Graph, Graph]) -> None:
    module, saved, fresh = graphs
    pairing = pair(saved, [*weights_of_graph(fresh), *weights_of_module(module)])
    assert (pairing.share, pairing.altered, pairing.unknown) == (1.0, (), ())
    unrounded, expected = numbers(pairing.graph), numbers(fresh)
    shared = unrounded.keys() & expected.keys()
    assert "batch_norm.epsilon" in shared or "mul.y" in shared
    assert {name: unrounded[name] for name in shared} == {name: expected[name] for name in shared}


def test_paired_programs_hold_unrounded_numbers_in_the_same_places(graphs: tuple[nn.Module, Graph, Graph]) -> None:
    module, saved, fresh = graphs
    paired = pair(saved, [*weights_of_graph(fresh), *weights_of_module(module)]).graph
    assert [op.name for op in paired.walk()] == [op.name for op in saved.walk()]
    for before, after in zip(weights_of_graph(saved), weights_of_graph(paired), strict=True):
        assert (before.values.shape, before.reader) == (after.values.shape, after.reader)
        if before.values.size > 1:
            assert after.values.dtype in (np.float32, np.float64)
            np.testing.assert_allclose(after.values, before.values.astype(np.float64), rtol=2**-10, atol=2**-24)
    assert saved.constants[0].data is not None, "the saved graph itself stays"


def zero_block(weights: dict[str, Tensor]) -> str:
    weights["layers.0.out.weight"][:8, :8] = 0
    return "layers.0.out.weight"


def scale(weights: dict[str, Tensor]) -> str:
    weights["layers.1.expand.weight"] *= 1.002
    return "layers.1.expand.weight"


def change_one_bias(weights: dict[str, Tensor]) -> str:
    weights["head.bias"][5] += 0.02
    return "head.bias"


def roll(weights: dict[str, Tensor]) -> str:
    weights["layers.0.query.weight"][:] = weights["layers.0.query.weight"].roll(1, 0)
    return "layers.0.query.weight"


@pytest.mark.parametrize("change", [zero_block, scale, change_one_bias, roll])
def test_a_weight_that_was_changed_is_named(change: Callable[[dict[str, Tensor]], str], converted: "Converted", tmp_path: Path) -> None:
    names: list[str] = []
    package = converted.with_fault(tmp_path / "network.mlpackage", lambda weights: names.append(change(weights)))
    saved = read_program(package).function()[0]
    pairing = pair(saved, weights_of_module(converted.network))
    assert [altered.weight for altered in pairing.altered] == names
    altered = pairing.altered[0]
    assert altered.constant in {weight.name for weight in weights_of_graph(saved)} and 0 < altered.differing <= altered.elements
    assert pairing.share == pytest.approx(1 - altered.elements / pairing.elements)


def test_a_bias_that_became_zero_is_no_other_weight_of_zeros(converted: "Converted", tmp_path: Path) -> None:
    def drop(weights: dict[str, Tensor]) -> None:
        weights["head.bias"].zero_()

    package = converted.with_fault(tmp_path / "network.mlpackage", drop)
    zeros = Weight(name="state", values=np.zeros(converted.network.head.bias.shape, np.float32))
    pairing = pair(read_program(package).function()[0], [*weights_of_module(converted.network), zeros])
    assert [altered.weight for altered in pairing.altered] == ["head.bias"]


def test_weights_of_another_network_are_none_of_this(converted: "Converted") -> None:
    other = converted.recipe(seed=1).module
    saved = read_program(converted.package).function()[0]
    pairing = pair(saved, weights_of_module(other))
    assert pairing.share < 0.5 and pairing.altered


class Scaled(nn.Module):
    """A norm, a linear layer and a factor that is an attribute or not."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.norm, self.linear, self.factor = nn.LayerNorm(16, eps=3e-5), nn.Linear(16, 16), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x)) * self.factor


@pytest.mark.parametrize(("factor", "attribute", "unknown"), [(0.5, 2.0, 0), (0.3, 0.3, 0), (0.3, 2.0, 1)])
def test_without_a_fresh_conversion_a_number_is_an_attribute_or_a_short_decimal(
    factor: float, attribute: float, unknown: int, tmp_path: Path
) -> None:
    module = Scaled(factor).eval()
    saved = graph_of(module, (1, 16), tmp_path)
    module.factor = attribute
    pairing = pair(saved, weights_of_module(module))
    assert (pairing.share, len(pairing.unknown), pairing.altered) == (1.0, unknown, ())
    assert numbers(pairing.graph)["layer_norm.epsilon"] == [3e-5]
