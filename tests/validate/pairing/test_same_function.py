"""Programs that are one function under other names, and some that only look so: what is called the same gives the same bits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.networks import NETWORKS, network_recipe
from coreflow.export.bundle import build
from coreflow.export.package.graph import Graph, Op, Program, Value
from coreflow.export.package.mlpackage import read_program
from coreflow.models.arrays import Arrays
from coreflow.runtime.backend import LoadOptions
from coreflow.runtime.lifted import LiftedModel
from coreflow.validate.pairing.pairs import pair
from coreflow.validate.pairing.same_function import is_same_function
from coreflow.validate.pairing.weights import weights_of_graph, weights_of_module

if TYPE_CHECKING:
    from tests.validate.conftest import Converted

X = Value("x", "float32", (2, 3))
WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3) + 0.5


def outputs_of(program: Program, inputs: Arrays) -> list[bytes]:
    model = LiftedModel(program, LoadOptions(numerics="fp64", engine="interpreter"))
    return [output.tobytes() for output in model.predict(dict(zip(model.inputs, inputs.values(), strict=True))).values()]


@pytest.mark.parametrize("name", [name if name == "recurrent" else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS])
def test_a_saved_program_with_unrounded_weights_is_the_fresh_conversion_to_the_bit(name: str, tmp_path: Path) -> None:
    recipe = network_recipe(name)
    saved = read_program(build(recipe, tmp_path / "fp16"))
    fresh = read_program(build(replace(recipe, precision="fp32"), tmp_path / "fp32"))
    unrounded = pair(saved.function()[0], [*weights_of_graph(fresh.function()[0]), *weights_of_module(recipe.module)]).graph
    assert is_same_function(unrounded, fresh.function()[0])
    assert not is_same_function(saved.function()[0], fresh.function()[0])  # its weights are rounded
    inputs = recipe.inputs_for(3)
    assert outputs_of(saved.with_function(unrounded), inputs) == outputs_of(fresh, inputs)


def test_another_activation_is_another_function(convert_network: "Callable[..., Converted]") -> None:
    exact, tanh = (
        read_program(convert_network(1, 16, "fp32", activation=activation).package).function()[0] for activation in ("gelu", "tanh-gelu")
    )
    assert is_same_function(exact, exact)
    assert not is_same_function(exact, tanh)


def op(kind: str, name: str, **inputs: Value) -> Op:
    return Op(kind, name, inputs, (Value(name, "float32", (2, 3)),))


def constant(data: object) -> Value:
    array = np.asarray(data)
    return Value("", array.dtype.name, array.shape, data=array)


def graph(*ops: Op, outputs: tuple[Op, ...] = ()) -> Graph:
    return Graph("main", "CoreML7", (X,), tuple(part.outputs[0] for part in outputs or ops[-1:]), ops, ())


def result(part: Op) -> Value:
    return part.outputs[0]


def test_order_names_and_float_casts_are_no_difference() -> None:
    first, second = op("exp", "a", x=X), op("tanh", "b", x=X)
    ours = graph(first, second, op("sub", "c", x=result(first), y=result(second)))
    to_fp16 = Op("cast", "x_to_fp16", {"x": X, "dtype": Value("", "str", (), data="fp16")}, (Value("h", "float16", (2, 3)),))
    second, first = op("tanh", "p", x=result(to_fp16)), op("exp", "q", x=result(to_fp16))
    assert is_same_function(ours, graph(to_fp16, second, first, op("sub", "r", x=result(first), y=result(second))))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: graph(op("sub", "y", x=constant(WEIGHT), y=X)), id="operands exchanged"),
        pytest.param(lambda: graph(op("add", "y", x=X, y=constant(WEIGHT))), id="another op"),
        pytest.param(lambda: graph(op("sub", "y", x=X, y=constant(WEIGHT + 1e-6))), id="another constant"),
        pytest.param(lambda: graph(op("sub", "y", x=X, y=constant(WEIGHT.reshape(3, 2)))), id="another shape"),
        pytest.param(lambda: graph(op("sub", "y", x=X, y=constant(WEIGHT.astype(np.int32)))), id="whole numbers"),
        pytest.param(lambda: replace(graph(op("sub", "y", x=X, y=constant(WEIGHT))), opset="CoreML8"), id="another opset"),
        pytest.param(
            lambda: graph(twice := op("sub", "y", x=X, y=constant(WEIGHT)), outputs=(twice, twice)), id="another number of outputs"
        ),
    ],
)
def test_what_differs_is_another_function(other: Callable[[], Graph]) -> None:
    ours = graph(op("sub", "y", x=X, y=constant(WEIGHT)))
    assert is_same_function(ours, graph(op("sub", "z", x=X, y=constant(WEIGHT.astype(np.float64)))))
    assert not is_same_function(ours, other())


def test_a_constant_is_compared_to_its_last_element() -> None:
    weight = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    changed = weight.copy()
    changed[4321] += 1e-3
    assert not is_same_function(graph(op("add", "y", x=X, y=constant(weight))), graph(op("add", "y", x=X, y=constant(changed))))


def test_of_states_nothing_is_known() -> None:
    state = Value("cache", "float32", (2, 3), kind="state")
    read = Op("read_state", "r", {"input": state}, (Value("r", "float32", (2, 3)),))
    keeping = replace(graph(read), inputs=(state,))
    assert not is_same_function(keeping, keeping)
