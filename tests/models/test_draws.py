"""Draws look like inputs in use: no row of a mask is empty or full, and every value has a meaning."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreflow.models.draws import draw_inputs, draw_tensor, is_mask, mask_of, token_axis
from coreflow.models.errors import ConfigError
from coreflow.models.spec import Dtype, TensorSpec

MASKS = {
    "ids' mask": TensorSpec((1, 8), "int32", (0, 1)),
    "a batch": TensorSpec((3, 8), bounds=(0, 1)),
    "over heads": TensorSpec((2, 1, 1, 8), bounds=(0, 1)),
    "over channels": TensorSpec((1, 8, 1), "float32", values=(0, 1)),
    "additive": TensorSpec((1, 1, 1, 8), bounds=(-1e4, 0)),
    "additive beyond fp16": TensorSpec((1, 1, 8, 8), bounds=(-1e9, 0)),
    "square": TensorSpec((1, 4, 6, 6), "int32", (0, 1)),
    "square floats": TensorSpec((6, 6), values=(0, 1)),
}
OTHERS = {
    "a picture": TensorSpec((1, 3, 8, 8), bounds=(0, 1)),
    "a grey picture": TensorSpec((1, 1, 8, 8), "float32", (0, 1)),
    "a spectrogram": TensorSpec((1, 80, 8), "float32", (0, 1)),
    "a flag": TensorSpec((1, 1, 1, 1), values=(0, 1)),
    "a number": TensorSpec((), "float32", (0, 1)),
    "kinds": TensorSpec((1, 8), "int32", values=(0, 1, 2)),
    "ids": TensorSpec((1, 8), "int32", (0, 9)),
    "positions": TensorSpec((1, 8), bounds=(-50, 0)),
    "free": TensorSpec((1, 8)),
}


@pytest.mark.parametrize("spec", MASKS.values(), ids=MASKS)
def test_every_row_of_a_mask_is_a_prefix_of_tokens_with_padding_behind_it(spec: TensorSpec) -> None:
    assert is_mask(spec) and spec.bounds is not None
    lengths = set()
    for seed in range(40):
        drawn = draw_tensor(spec, np.random.default_rng(seed))
        assert (drawn.shape, str(drawn.dtype)) == (spec.shape, spec.dtype) and np.isfinite(drawn).all()
        rows = np.moveaxis(drawn, token_axis(spec.shape), -1).reshape(-1, spec.shape[token_axis(spec.shape)]) == spec.bounds[1]
        assert set(drawn[drawn != spec.bounds[1]].tolist()) == {max(spec.bounds[0], -65504)}
        counts = rows.sum(-1)
        assert all(row[:count].all() for row, count in zip(rows, counts, strict=True))
        assert counts.min() >= 1 and counts.max() < rows.shape[-1]
        lengths.add(int(counts.max()))
    assert len(lengths) > 2


@pytest.mark.parametrize("spec", [MASKS["square"], MASKS["square floats"], MASKS["additive beyond fp16"]])
def test_no_row_of_a_square_mask_sees_a_place_behind_its_own(spec: TensorSpec) -> None:
    assert spec.bounds is not None
    drawn = draw_tensor(spec, np.random.default_rng(0)) == spec.bounds[1]
    assert not np.triu(drawn, 1).any() and drawn[..., 0].all()


def test_rows_of_a_batch_have_lengths_of_their_own() -> None:
    batches = [draw_tensor(MASKS["a batch"], np.random.default_rng(seed)).sum(-1).tolist() for seed in range(8)]
    assert any(len(set(lengths)) > 1 for lengths in batches)


@pytest.mark.parametrize("name", ["a picture", "a grey picture", "a spectrogram"])
def test_quantities_from_0_to_1_are_drawn_between_them(name: str) -> None:
    drawn = draw_tensor(OTHERS[name], np.random.default_rng(0))
    assert not is_mask(OTHERS[name]) and 0.4 < drawn.mean() < 0.6 and np.unique(drawn).size > 20


def test_a_picture_of_two_values_is_a_mask() -> None:
    assert is_mask(TensorSpec((1, 1, 8, 8), values=(0, 1)))


@pytest.mark.parametrize("spec", OTHERS.values(), ids=OTHERS)
def test_all_others_are_no_masks(spec: TensorSpec) -> None:
    assert not is_mask(spec)


def test_flags_and_kinds_take_all_of_their_values_and_no_other() -> None:
    for name, values in (("a flag", {0, 1}), ("kinds", {0, 1, 2})):
        drawn = np.concatenate([draw_tensor(OTHERS[name], np.random.default_rng(seed)).ravel() for seed in range(20)])
        assert set(drawn.tolist()) == values and str(drawn.dtype) == OTHERS[name].dtype


def test_several_masks_leave_no_row_empty_together() -> None:
    """A place that padding and causality both allow is left in every row."""
    for seed in range(20):
        drawn = draw_inputs({"padding": MASKS["ids' mask"], "causal": TensorSpec((1, 1, 8, 8), "int32", (0, 1))}, seed)
        assert (drawn["padding"] * drawn["causal"]).any(-1).all()


def test_a_mask_may_be_all_tokens_or_all_padding_where_it_is_asked_for() -> None:
    assert mask_of(MASKS["additive"], np.zeros(8, bool)).tolist() == [[[[-1e4] * 8]]]
    assert mask_of(MASKS["a batch"], np.ones(8, bool)).tolist() == [[1.0] * 8] * 3


@given(
    st.sampled_from(["float16", "float32", "int32"]),
    st.lists(st.integers(1, 5), max_size=4),
    st.lists(st.integers(-9, 9), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_drawn_values_are_among_those_of_the_spec(dtype: Dtype, shape: list[int], values: list[float], seed: int) -> None:
    spec = TensorSpec(tuple(shape), dtype, values=tuple(values))
    drawn = draw_tensor(spec, np.random.default_rng(seed))
    assert drawn.shape == spec.shape and set(drawn.ravel().tolist()) <= set(values)


def test_integers_without_bounds_are_not_guessed() -> None:
    with pytest.raises(ConfigError, match="bounds="):
        draw_inputs({"ids": TensorSpec((1, 8), "int32")}, 0)
