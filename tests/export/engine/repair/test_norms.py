"""Norms: RMSNorm as layer norm, rows scaled before they are squared, epsilons that fp16 holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreflow.export.engine.repair.facts import Facts, Magnitude
from coreflow.export.engine.repair.norms import rms_as_layer_norm, safe_epsilons, scaled_layer_norms
from coreflow.export.engine.repair.rewrite import Builder
from coreflow.export.package.graph import Graph, Value
from coreflow.models.arrays import Array
from tests.export.engine.repair.law import drawn, facts, graph_of, off, repaired, run, types

EPSILON = float(np.float16(1e-6))


def rms(form: str, shape: tuple[int, ...], axis: int, opset: str = "CoreML7") -> Graph:
    reduced = tuple(1 if i == axis % len(shape) else extent for i, extent in enumerate(shape))

    def body(new: Builder, x: Value) -> Value:
        square = {"square": lambda: new("square", x=x), "mul": lambda: new("mul", x=x, y=x), "pow": lambda: new("pow", x=x, y=2.0)}
        mean = new("reduce_mean", x=square[form](), axes=(axis,), keep_dims=True, shape=reduced)
        total = new("add", x=mean, y=EPSILON)
        if form == "pow":
            return new("real_div", x=x, y=new("sqrt", x=total))
        root = new("rsqrt", x=total)
        return new("mul", x=root, y=x) if form == "mul" else new("mul", x=x, y=root)

    return graph_of(body, opset, x=shape)


def seen(x: Array) -> Facts:
    """What calibration data of these rows show."""
    squares = np.square(x, dtype=np.float64)
    norms = tuple(float(np.sqrt(squares.sum(axis).max())) for axis in range(x.ndim))
    return facts(magnitudes={"x": Magnitude(float(np.abs(x).max()), float(np.sqrt(squares.mean())), norms)})


def rows(shape: tuple[int, ...], largest: float) -> Array:
    x = np.random.default_rng(0).standard_normal(shape)
    return (x * largest / np.abs(x).max()).astype(np.float16)


SHAPES = st.lists(st.integers(2, 6), min_size=2, max_size=4).map(tuple)


@drawn
@given(SHAPES, st.data(), st.sampled_from(["square", "mul", "pow"]), st.sampled_from([0.01, 1.0, 60.0, 2000.0]))
def test_rms_norm_is_the_same_function(shape: tuple[int, ...], data: st.DataObject, form: str, largest: float) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = rows(shape, largest)
    mean_square = np.square(x, dtype=np.float64).mean(axis).min()
    limit = 1e-12 + 2.0**-25 * EPSILON / (mean_square + EPSILON)  # epsilon and that of rsqrt are one number of fp32 now
    after = repaired(rms(form, shape, axis), rms_as_layer_norm, {"x": x}, seen(x), limit=limit)
    assert types(after)[-3:] == ["concat", "layer_norm", "slice_by_size"]


@pytest.mark.parametrize("opset", ["CoreML6", "CoreML7"])
@pytest.mark.parametrize("largest", [0.004, 40.0, 2000.0])
def test_a_residual_stream_keeps_its_digits_on_the_engine(largest: float, opset: str) -> None:
    """T5's reaches 2000: the square is infinite and its root 0."""
    x = rows((4, 512), largest)
    graph = rms("square", x.shape, -1, opset)
    reference, before = run(graph, {"x": x}), run(graph, {"x": x}, "engine-m4")
    after = run(rms_as_layer_norm(graph, seen(x)), {"x": x}, "engine-m4")
    if largest == 40.0:
        assert off(reference, before) < 3e-3
    else:
        assert not np.isfinite(before[0]).all() or off(reference, before) > 4e-3
    if opset == "CoreML7" or largest == 40.0:  # before it, an epsilon has to be fp16, and cannot follow a scale
        assert off(reference, after) < 3e-3


def test_what_is_no_root_mean_square_is_left() -> None:
    def other(new: Builder, x: Value, y: Value) -> Value:
        mean = new("reduce_mean", x=new("square", x=x), axes=(-1,), keep_dims=True, shape=(2, 1))
        return new("mul", x=y, y=new("rsqrt", x=mean))

    graph = graph_of(other, x=(2, 8), y=(2, 8))
    assert rms_as_layer_norm(graph, facts()) is graph


@drawn
@given(SHAPES, st.booleans(), st.sampled_from([0.01, 3.0, 2000.0]))
def test_scaled_layer_norms_are_the_same_function(shape: tuple[int, ...], is_affine: bool, largest: float) -> None:
    x = rows(shape, largest)
    gamma = np.random.default_rng(1).standard_normal(shape[-1]).astype(np.float16)

    def norm(new: Builder, x: Value) -> Value:
        if is_affine:
            return new("layer_norm", x=x, axes=(-1,), gamma=gamma, beta=gamma * 2, epsilon=1e-5)
        return new("layer_norm", x=x, axes=(-1,), epsilon=EPSILON)

    after = repaired(graph_of(norm, x=shape), scaled_layer_norms, {"x": x}, seen(x))
    assert types(after) == (["layer_norm"] if largest == 3.0 else ["mul", "layer_norm"])


def test_a_layer_norm_of_large_rows_keeps_its_digits_on_the_engine() -> None:
    x = rows((4, 512), 2000.0)
    graph = graph_of(lambda new, x: new("layer_norm", x=x, axes=(-1,), epsilon=1e-5), x=x.shape)
    reference = run(graph, {"x": x})
    assert not np.isfinite(run(graph, {"x": x}, "engine-m4")[0]).all() or off(reference, run(graph, {"x": x}, "engine-m4")) > 0.5
    assert off(reference, run(scaled_layer_norms(graph, seen(x)), {"x": x}, "engine-m4")) < 3e-3


@drawn
@given(SHAPES, st.sampled_from(["reduce_sum", "reduce_mean"]), st.sampled_from(["rsqrt", "sqrt"]), st.sampled_from([1e-6, 1e-7, 6e-8]))
def test_epsilons_are_the_same_function(shape: tuple[int, ...], reduction: str, root: str, epsilon: float) -> None:
    x = rows(shape, 0.5)

    def body(new: Builder, x: Value) -> Value:
        total = new(reduction, x=new("square", x=x), axes=(-1,), keep_dims=True, shape=(*shape[:-1], 1))
        return new(root, x=new("add", x=total, y=epsilon), **({"epsilon": 0.0} if root == "rsqrt" else {}))  # type: ignore[arg-type]

    after = repaired(graph_of(body, x=shape), safe_epsilons, {"x": x}, seen(x))
    (added,) = (float(value.data) for op in after.ops if op.type == "add" for value in op.argument("y"))  # type: ignore[arg-type]
    assert 6.1e-5 <= added <= 4 * 6.11e-5


def test_an_epsilon_stays_where_scaled_rows_would_leave_fp16_or_none_were_seen() -> None:
    def body(new: Builder, x: Value) -> Value:
        total = new("reduce_mean", x=new("square", x=x), axes=(-1,), keep_dims=True, shape=(2, 1))
        return new("rsqrt", x=new("add", x=total, y=1e-6))

    graph = graph_of(body, x=(2, 8))
    assert safe_epsilons(graph, seen(rows((2, 8), 100.0))) is graph
    assert safe_epsilons(graph, facts()) is graph
