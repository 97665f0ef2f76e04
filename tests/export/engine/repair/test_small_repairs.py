"""Repairs of single functions: softplus, logarithms of sums, masks, fused attention."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreflow.export.engine.repair.attention import scale_factors, separate_attention
from coreflow.export.engine.repair.finite_masks import finite_masks
from coreflow.export.engine.repair.log_sums import stable_log_sums
from coreflow.export.engine.repair.rewrite import Builder
from coreflow.export.engine.repair.softplus import stable_softplus
from coreflow.export.package.graph import Value
from coreflow.models.arrays import Array
from tests.export.engine.repair.law import drawn, facts, graph_of, off, repaired, run, types

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float16)


@drawn
@given(SHAPES, st.floats(0.1, 30))
def test_softplus_is_the_same_function(shape: tuple[int, ...], scale: float) -> None:
    graph = graph_of(lambda new, x: new("softplus", x=x), x=shape)
    after = repaired(graph, stable_softplus, {"x": normal(*shape, scale=scale)})
    assert types(after) == ["abs", "mul", "relu", "softplus", "add"]


def test_softplus_is_right_on_the_engine_wherever_fp16_is() -> None:
    graph = graph_of(lambda new, x: new("softplus", x=x), x=(2001,))
    x = {"x": np.linspace(-12, 40, 2001).astype(np.float16)}
    reference = run(graph, x)
    after = run(stable_softplus(graph, facts()), x, "engine-m4")
    assert off(reference, run(graph, x, "engine-m4")) > 0.2  # 0 above 10.4
    np.testing.assert_allclose(after[0], reference[0], rtol=1e-3, atol=1e-7)


@drawn
@given(SHAPES, st.data(), st.booleans())
def test_logarithms_of_sums_are_the_same_functions(shape: tuple[int, ...], data: st.DataObject, keep_dims: bool) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    inputs = {"x": normal(*shape, scale=3)}

    def log_softmax(new: Builder, x: Value) -> Value:
        return new("log", x=new("softmax", x=x, axis=axis))

    after = repaired(graph_of(log_softmax, x=shape), stable_log_sums, inputs)
    assert types(after) == ["reduce_max", "sub", "exp", "reduce_sum", "log", "sub"]

    def log_sum(new: Builder, x: Value) -> Value:
        reduced = [1 if i == axis % len(shape) else extent for i, extent in enumerate(shape)]
        left = tuple(extent for i, extent in enumerate(reduced) if keep_dims or i != axis % len(shape))
        return new("reduce_log_sum_exp", x=x, axes=(axis,), keep_dims=keep_dims, shape=left)

    repaired(graph_of(log_sum, x=shape), stable_log_sums, inputs)


def test_a_logarithm_of_a_softmax_that_others_read_leaves_it_in_place() -> None:
    def both(new: Builder, x: Value) -> list[Value]:
        softmax = new("softmax", x=x, axis=-1)
        return [new("log", x=softmax), softmax]

    after = repaired(graph_of(both, x=(2, 9)), stable_log_sums, {"x": normal(2, 9)})
    assert types(after).count("softmax") == 1


def test_an_epsilon_that_means_something_is_kept() -> None:
    graph = graph_of(lambda new, x: new("log", x=new("softmax", x=x, axis=-1), epsilon=1e-3), x=(2, 9))
    assert stable_log_sums(graph, facts()) is graph


def test_log_softmax_is_right_on_the_engine() -> None:
    graph = graph_of(lambda new, x: new("log", x=new("softmax", x=x, axis=-1)), x=(4, 64))
    x = {"x": normal(4, 64, scale=8)}
    reference = run(graph, x)
    assert off(reference, run(graph, x, "engine-m4")) > 0.1
    assert off(reference, run(stable_log_sums(graph, facts()), x, "engine-m4")) < 3e-3


@pytest.mark.parametrize("infinite", [-np.inf, -65504.0])
def test_masks_are_finite(infinite: float) -> None:
    def masked(new: Builder, scores: Value, kept: Value) -> Value:
        ones = new.constant("ones", np.ones((2, 1, 6), np.float16), "float16")
        causal = np.where(np.tri(6, dtype=bool), np.float16(0), np.float16(infinite))[None]
        hidden = new("mul", x=new("sub", x=ones, y=kept), y=infinite)
        return new("softmax", x=new("add", x=new("add", x=scores, y=causal), y=hidden), axis=-1)

    kept = np.ones((2, 1, 6), np.float16)
    kept[1, :, 4:] = 0
    inputs = {"scores": normal(2, 6, 6, scale=5), "kept": kept}
    after = repaired(graph_of(masked, scores=(2, 6, 6), kept=(2, 1, 6)), finite_masks, inputs)
    assert types(after) == ["sub", "mul", "add", "add", "softmax"]
    largest = max(float(np.abs(np.asarray(value.data)).max()) for value in after.constants if value.dtype == "float16")
    assert largest == 3e4
    assert np.isfinite(run(after, inputs)[0]).all()
    assert off(run(after, inputs), run(after, inputs, "engine-m4")) < 5e-3


def test_large_numbers_that_mask_nothing_are_left() -> None:
    graph = graph_of(lambda new, x: new("minimum", x=x, y=6e4), x=(4,))
    assert finite_masks(graph, facts()) is graph


@drawn
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.sampled_from([4, 16, 64]), st.integers(0, 2))
def test_attention_in_parts_is_the_same_function(b: int, h: int, rows: int, columns: int, width: int, masks: int) -> None:
    shapes: dict[str, Any] = {"query": (b, h, rows, width), "key": (b, h, columns, width), "value": (b, h, columns, 5)}
    inputs = {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    kept = np.arange(columns) <= np.arange(rows)[:, None]

    def fused(new: Builder, query: Value, key: Value, value: Value) -> Value:
        mask = {1: np.where(kept, np.float16(0), np.float16(-3e4)), 2: kept}.get(masks)
        further: dict[str, Any] = {} if mask is None else {"attn_mask": mask}
        return new("scaled_dot_product_attention", query=query, key=key, value=value, shape=(b, h, rows, 5), **further)

    after = repaired(graph_of(fused, **shapes), separate_attention, inputs)
    between = {0: [], 1: ["add"], 2: ["select"]}[masks]
    assert types(after) == ["matmul", "mul", *between, "softmax", "matmul"]


@pytest.mark.parametrize("width", [24, 32, 80, 96, 128])
def test_a_scale_that_fp16_does_not_hold_is_the_product_of_two(width: int) -> None:
    shapes: dict[str, Any] = {"query": (1, 2, 5, width), "key": (1, 2, 5, width), "value": (1, 2, 5, width)}
    inputs = {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}

    def fused(new: Builder, query: Value, key: Value, value: Value) -> Value:
        return new("scaled_dot_product_attention", query=query, key=key, value=value, shape=shapes["value"])

    repaired(graph_of(fused, **shapes), separate_attention, inputs, limit=2e-6)
    one, other = scale_factors(width**-0.5, "float16")
    assert (float(np.float16(one)), float(np.float16(other))) == (one, other)
    assert one * other == pytest.approx(width**-0.5, rel=1e-6)
