"""Sweeps lie within the bounds, are the same every time, and reach what they are named after."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Array, Arrays, Draw
from coreflow.models.draws import draw_inputs
from coreflow.models.spec import TensorSpec
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.inputs.sweeps import sweep_samples

X = TensorSpec((2, 5))
IDS = TensorSpec((1, 8), "int32", (3, 42))
MASK = TensorSpec((1, 8), bounds=(0, 1))
ADDITIVE = TensorSpec((1, 1, 1, 8), bounds=(-1e4, 0))
GAIN = TensorSpec((4,), "float32", (-2, 5))
PICTURE = TensorSpec((1, 3, 4, 4), bounds=(0, 1))
ALL = {"x": X, "ids": IDS, "mask": MASK, "additive": ADDITIVE, "gain": GAIN, "picture": PICTURE}


def draw_for(specs: Mapping[str, TensorSpec]) -> Draw:
    return partial(draw_inputs, specs)


def sweeps(**specs: TensorSpec) -> dict[str, Sample]:
    samples = sweep_samples(specs, draw_for(specs))
    labels = [sample.label.removeprefix("sweep: ") for sample in samples]
    assert len(set(labels)) == len(labels) and all(sample.label.startswith("sweep: ") for sample in samples)
    return dict(zip(labels, samples, strict=True))


def test_every_sample_keeps_shapes_dtypes_and_bounds() -> None:
    for sample in sweep_samples(ALL, draw_for(ALL)):
        assert list(sample.inputs) == list(ALL) and sample.seed is None
        for name, spec in ALL.items():
            array = sample.inputs[name]
            assert (array.shape, str(array.dtype)) == (spec.shape, spec.dtype), (sample.label, name)
            assert np.isfinite(array).all(), (sample.label, name)
            if spec.bounds is not None:
                assert array.min() >= spec.bounds[0] and array.max() <= spec.bounds[1], (sample.label, name)


def test_the_same_samples_come_every_time_and_no_two_are_alike() -> None:
    first, second = (sweep_samples(ALL, draw_for(ALL)) for _ in range(2))
    content = [b"".join(array.tobytes() for array in sample.inputs.values()) for sample in first]
    assert content == [b"".join(array.tobytes() for array in sample.inputs.values()) for sample in second]
    assert len(set(content)) == len(content) > 20


def test_the_drawn_inputs_stay_as_they_were() -> None:
    drawn = draw_for(ALL)(0)
    before = {name: array.copy() for name, array in drawn.items()}
    sweep_samples(ALL, lambda seed: drawn)
    assert all(np.array_equal(drawn[name], before[name]) for name in ALL)


class TestRanges:
    def test_bounds_are_reached_by_all_inputs_that_have_them(self) -> None:
        samples = sweeps(x=X, gain=GAIN, ids=IDS)
        for side, value in (("lower", (-2, 3)), ("upper", (5, 42))):
            inputs = samples[f"inputs at their {side} bounds"].inputs
            assert (set(inputs["gain"].tolist()), set(inputs["ids"].ravel().tolist())) == ({value[0]}, {value[1]})
            np.testing.assert_array_equal(inputs["x"], draw_for({"x": X})(0)["x"])

    @pytest.mark.parametrize("factor", [0.0, 1e-4, 1e-2, 10.0, 100.0])
    def test_drawn_values_are_scaled_and_cut_to_the_bounds(self, factor: float) -> None:
        drawn = draw_for({"x": X, "gain": GAIN})(0)
        inputs = sweeps(x=X, gain=GAIN)[f"{factor:g} times the drawn values"].inputs
        np.testing.assert_array_equal(inputs["x"], (drawn["x"].astype(np.float64) * factor).astype(np.float16))
        np.testing.assert_array_equal(inputs["gain"], np.clip(drawn["gain"].astype(np.float64) * factor, -2, 5).astype(np.float32))

    @pytest.mark.parametrize("magnitude", [1e3, 1e4])
    def test_inputs_without_bounds_grow_to_the_magnitude(self, magnitude: float) -> None:
        inputs = sweeps(x=X, gain=GAIN)[f"values up to {magnitude:g}"].inputs
        assert np.abs(inputs["x"]).max() == magnitude and np.abs(inputs["gain"]).max() <= 5

    def test_one_element_is_a_spike(self) -> None:
        inputs = sweeps(x=X, gain=GAIN)["one spike of 10000 in x"].inputs
        assert np.count_nonzero(inputs["x"] == 1e4) == 1 and np.count_nonzero(inputs["x"] != draw_for({"x": X})(0)["x"]) == 1

    def test_large_draws_are_cut_to_the_range_of_fp16(self) -> None:
        samples = sweep_samples({"x": X}, lambda seed: {"x": np.full((2, 5), 3e3, np.float16)})
        assert max(float(sample.inputs["x"].max()) for sample in samples) == 65504


class TestMasks:
    @pytest.mark.parametrize(
        ("label", "kept"),
        [("nothing masked", 8), ("all masked", 0), ("1 token", 1), ("2 tokens", 2), ("half of the tokens", 4), ("all tokens but one", 7)],
    )
    def test_every_mask_keeps_a_prefix(self, label: str, kept: int) -> None:
        inputs = sweeps(x=X, mask=MASK, additive=ADDITIVE)[f"masks: {label}"].inputs
        assert inputs["mask"].ravel().tolist() == [1.0] * kept + [0.0] * (8 - kept)
        assert inputs["additive"].ravel().tolist() == [0.0] * kept + [-1e4] * (8 - kept)
        np.testing.assert_array_equal(inputs["x"], draw_for({"x": X})(0)["x"])

    def test_every_other_token_is_masked(self) -> None:
        assert sweeps(mask=MASK)["masks: every other token"].inputs["mask"].ravel().tolist() == [1.0, 0.0] * 4

    def test_a_mask_is_not_scaled(self) -> None:
        samples = sweeps(mask=MASK, x=X)
        np.testing.assert_array_equal(samples["0.01 times the drawn values"].inputs["mask"], draw_for({"mask": MASK})(0)["mask"])

    def test_an_input_that_is_drawn_between_its_bounds_is_no_mask(self) -> None:
        features = {"features": np.linspace(0, 1, 8).reshape(1, 8).astype(np.float16)}
        samples = [sample.label for sample in sweep_samples({"features": MASK}, lambda seed: features)]
        assert "sweep: 0.01 times the drawn values" in samples and not any("mask" in label for label in samples)

    def test_inputs_of_a_few_values_only_go_to_their_ends(self) -> None:
        kinds = TensorSpec((1, 8), "int32", values=(0, 2, 5))
        for label, sample in sweeps(x=X, kinds=kinds).items():
            assert set(sample.inputs["kinds"].ravel().tolist()) <= {0, 2, 5}, label

    def test_a_picture_from_0_to_1_is_scaled_all_the_same(self) -> None:
        assert float(sweeps(picture=PICTURE)["0.01 times the drawn values"].inputs["picture"].max()) <= 0.0101


class TestIds:
    def test_extreme_repeated_and_permuted_ids(self) -> None:
        samples, drawn = sweeps(x=X, ids=IDS), draw_for({"x": X, "ids": IDS})(0)["ids"].ravel().tolist()
        ids = {label: sample.inputs["ids"].ravel().tolist() for label, sample in samples.items()}
        assert set(ids["ids: one, repeated"]) == {drawn[0]}
        permuted = ids["ids: the drawn ones in another order"]
        assert sorted(permuted) == sorted(drawn) and permuted != drawn
        assert len(set(ids["ids: all different"])) == 8

    def test_ids_at_their_bounds_are_there_once(self) -> None:
        values = [sample.inputs["ids"].ravel().tolist() for sample in sweep_samples({"ids": IDS}, draw_for({"ids": IDS}))]
        assert values.count([3] * 8) == values.count([42] * 8) == 1

    def test_few_ids_are_all_used(self) -> None:
        few = TensorSpec((1, 8), "int32", (5, 7))
        assert set(sweeps(ids=few)["ids: all different"].inputs["ids"].ravel().tolist()) == {5, 6, 7}

    def test_whole_numbers_without_bounds_are_left_as_drawn(self) -> None:
        free = {"n": TensorSpec((4,), "int32"), "x": X}
        drawn: dict[str, Array] = {"n": np.arange(4, dtype=np.int32), "x": np.ones((2, 5), np.float16)}
        assert all(np.array_equal(sample.inputs["n"], drawn["n"]) for sample in sweep_samples(free, lambda seed: drawn))


class Softplus(nn.Module):
    """log(1 + exp(x)) with the limit of a kernel that gives 0 above it."""

    def forward(self, x: Tensor) -> Tensor:
        softplus = nn.functional.softplus(x)
        return torch.where(x > 10.4, torch.zeros_like(softplus), softplus)


def test_a_softplus_that_vanishes_for_large_inputs_is_seen_by_sweeps_and_not_by_inputs_from_0_to_1() -> None:
    recipe = Recipe(name="softplus", module=Softplus(), inputs={"x": TensorSpec((1, 64))}, outputs=("y",))

    def is_off(sample: Arrays) -> bool:
        x = torch.from_numpy(sample["x"].astype(np.float32))
        return not torch.allclose(recipe.module(x), nn.functional.softplus(x))

    assert not is_off({"x": np.random.default_rng(0).random((1, 64))})
    assert sum(is_off(sample.inputs) for sample in sweep_samples(recipe.inputs, recipe.inputs_for)) >= 4
