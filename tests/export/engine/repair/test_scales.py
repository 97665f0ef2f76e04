"""Powers of two in weights: small products are kept, sums stay in range, and the function is the same to the last digits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from coreflow.export import Recipe, TensorSpec
from coreflow.export.bundle import BundleDone, export_bundle
from coreflow.export.engine.repair.rewrite import Builder
from coreflow.export.engine.repair.scales import scaled_exactly, scaled_products
from coreflow.export.package.graph import Graph, Value
from coreflow.models.arrays import Array
from tests.export.engine.repair.law import drawn, graph_of, off, repaired, run, seen, types


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float16)


def linear(new: Builder, x: Value, width: int, scale: float, seed: int = 1) -> Value:
    weight, bias = normal(width, (x.shape or ())[-1] or 0, scale=scale, seed=seed), normal(width, scale=scale, seed=seed + 50)
    return new("linear", x=x, weight=weight, bias=bias, shape=(*(x.shape or ())[:-1], width))


def check(graph: Graph, x: dict[str, Array], expected: list[str]) -> Graph:
    """A tenth of a percent or more is lost before, less after, and the function is the same."""
    reference = run(graph, x)
    known = seen(graph, x)
    after = repaired(graph, scaled_products, x, known)
    assert types(after) == expected
    assert off(reference, run(graph, x, "engine-m4")) > 1e-3
    assert off(reference, run(after, x, "engine-m4")) < 1e-3
    return after


def test_a_small_product_is_scaled_by_its_own_weight() -> None:
    graph = graph_of(lambda new, x: linear(new, x, 16, 1 / 64), x=(3, 4096))
    check(graph, {"x": normal(3, 4096, scale=1 / 64)}, ["linear", "mul"])


def test_layers_pass_the_factor_on() -> None:
    def body(new: Builder, x: Value) -> Value:
        for seed in (1, 2, 3):
            x = new("relu", x=linear(new, x, 512, 1 / 16, seed))
        return new("transpose", x=x, perm=(1, 0), shape=(512, 3))

    check(
        graph_of(body, x=(3, 512)),
        {"x": normal(3, 512, scale=1e-3)},
        ["linear", "relu", "linear", "relu", "linear", "mul", "relu", "transpose"],
    )


def test_attention_scales_the_projection_of_its_values() -> None:
    def body(new: Builder, x: Value, y: Value) -> Value:
        shares = new("softmax", x=y, axis=-1)
        values = new("expand_dims", x=linear(new, x, 8, 0.1), axes=(0,), shape=(1, 512, 8))
        return new("relu", x=new("matmul", x=shares, y=values, transpose_x=False, transpose_y=False, shape=(1, 4, 8)))

    x = {"x": normal(512, 64), "y": normal(1, 4, 512)}
    after = check(graph_of(body, x=(512, 64), y=(1, 4, 512)), x, ["softmax", "linear", "expand_dims", "matmul", "mul", "relu"])
    (layer,) = (op for op in after.ops if op.type == "linear")
    (weight,) = layer.argument("weight")
    assert float(np.abs(np.asarray(weight.data)).max()) > 4


def test_two_results_are_multiplied_where_no_weight_takes_the_factor() -> None:
    def body(new: Builder, x: Value, y: Value) -> list[Value]:
        return [new("matmul", x=x, y=y, transpose_x=False, transpose_y=True, shape=(3, 5)), x, y]

    graph = graph_of(body, x=(3, 2048), y=(5, 2048))
    check(graph, {"x": normal(3, 2048, scale=1 / 64), "y": normal(5, 2048, scale=1 / 64, seed=1)}, ["mul", "matmul", "mul"])


def test_a_sum_beyond_the_range_is_brought_into_it() -> None:
    graph = graph_of(lambda new, x: linear(new, x, 8, 8.0), x=(3, 1024))
    x = {"x": normal(3, 1024, scale=90)}
    largest = float(np.abs(run(graph, x)[0]).max())
    assert 2**15 < largest < 65504
    assert not np.isfinite(run(graph, x, "engine-m4")[0]).all()
    after = repaired(graph, scaled_products, x, seen(graph, x))
    assert off(run(graph, x), run(after, x, "engine-m4")) < 1e-3


def test_what_is_neither_small_nor_large_is_left() -> None:
    graph = graph_of(lambda new, x: linear(new, x, 16, 0.05), x=(3, 256))
    x = {"x": normal(3, 256)}
    assert scaled_products(graph, seen(graph, x)) is graph


@drawn
@given(st.integers(1, 4), st.integers(200, 900), st.integers(1, 6), st.floats(1e-4, 1e-2), st.floats(1e-3, 0.05), st.booleans())
def test_scaled_networks_are_the_same_functions(rows: int, inner: int, outer: int, size: float, weights: float, has_relu: bool) -> None:
    def body(new: Builder, x: Value) -> Value:
        hidden = linear(new, x, outer, weights)
        return linear(new, new("relu", x=hidden) if has_relu else hidden, 3, weights, 2)

    graph, x = graph_of(body, x=(rows, inner)), {"x": normal(rows, inner, scale=size)}
    repaired(graph, scaled_products, x, seen(graph, x))


@pytest.mark.parametrize(
    ("number", "factor", "exact"),
    [(1.0, 2.0**-10, True), (1.5 * 2**-14, 0.5, True), (1.0009765625 * 2**-14, 0.5, False), (40000.0, 2.0, False)],
)
def test_a_weight_takes_what_it_holds(number: float, factor: float, exact: bool) -> None:
    value = Value("w", "float16", (1,), data=np.array([number], np.float16))
    assert (scaled_exactly(value, factor) is not None) == exact


class Small(nn.Module):
    """Two layers whose weights have a deviation of 1/64, of which the first sums 4096 products."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4096, 256, bias=False), nn.Linear(256, 32, bias=False)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=1 / 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.mark.slow
def test_a_network_of_small_products_loses_a_percent_before_and_less_than_a_tenth_of_one_after(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def draw(seed: int) -> dict[str, Array]:
        return {"x": normal(2, 4096, scale=1 / 64, seed=seed)}

    recipe = Recipe(
        name="small", module=Small().eval(), inputs={"x": TensorSpec((2, 4096))}, outputs=("y",), draw=draw, engine_safe="M4/macOS27"
    )
    done = list(export_bundle([recipe], tmp_path / "bundle", jobs=1))[-1]
    assert isinstance(done, BundleDone)
    stage = done.manifest.stages["small"]
    assert stage.repairs is not None and stage.errors is not None
    assert [change["repair"] for change in stage.repairs["changes"]] == ["scaled_products"]
    errors = stage.repairs["errors"]
    assert errors["before"]["y"] >= 1e-2 and errors["after"]["y"] < 1e-3
