"""Resizing, resampling, compressed constants, suppression and random numbers, against other people's implementations or definitions."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.runtime.lift.ops.resize import sampling_grid

Evaluate = Callable[..., Any]
RNG = np.random.default_rng(5)


def normal(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


class TestResize:
    # The examples in the documentation of MIL's resize_bilinear, for two pixels; it cuts the places to the image afterwards.
    @pytest.mark.parametrize(
        ("mode", "count", "reference"),
        [
            ("UNALIGN_CORNERS", 5, [0, 0.1, 0.5, 0.9, 1]),
            ("STRICT_ALIGN_CORNERS", 5, [0, 0.25, 0.5, 0.75, 1]),
            ("ALIGN_CORNERS", 5, [0, 0.25, 0.5, 0.75, 1]),
            ("DEFAULT", 5, [0, 0.4, 0.8, 1, 1]),
            ("OFFSET_CORNERS", 5, [0.1, 0.3, 0.5, 0.7, 0.9]),
            ("UNALIGN_CORNERS", 6, [0, 0, 1 / 3, 2 / 3, 1, 1]),
            ("DEFAULT", 6, [0, 1 / 3, 2 / 3, 1, 1, 1]),
            ("ALIGN_CORNERS", 1, [0.5]),
            ("STRICT_ALIGN_CORNERS", 1, [0]),
        ],
    )
    def test_samples_lie_where_the_documentation_puts_them(self, mode: str, count: int, reference: list[float]) -> None:
        np.testing.assert_allclose(np.clip(sampling_grid(mode, 2, count), 0, 1), reference, atol=1e-12)

    @pytest.mark.parametrize("size", [(3, 4), (9, 5), (12, 14), (1, 1)], ids=str)
    @pytest.mark.parametrize(("mode", "align"), [("STRICT_ALIGN_CORNERS", True), ("UNALIGN_CORNERS", False)])
    def test_bilinear_is_torchs(self, evaluate: Evaluate, mode: str, align: bool, size: tuple[int, int]) -> None:
        x = normal(2, 3, 6, 7)
        reference = F.interpolate(torch.from_numpy(x), size, mode="bilinear", align_corners=align).numpy()
        arguments = {"target_size_height": size[0], "target_size_width": size[1], "sampling_mode": mode}
        np.testing.assert_allclose(evaluate("resize_bilinear", x=x, **arguments), reference, rtol=1e-4, atol=1e-5)
        general = evaluate("resize", x=x, shape=list(size), resized_dims=2, sampling_mode=mode, interpolation_mode="LINEAR")
        np.testing.assert_allclose(general, reference, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("factor", [2, 1.5, 2.6])
    @pytest.mark.parametrize("align", [False, True])
    def test_bilinear_upsampling_is_torchs_with_recomputed_scale(self, evaluate: Evaluate, align: bool, factor: float) -> None:
        x = normal(1, 2, 5, 4)
        reference = F.interpolate(
            torch.from_numpy(x), scale_factor=factor, mode="bilinear", align_corners=align, recompute_scale_factor=True
        ).numpy()
        actual = evaluate("upsample_bilinear", x=x, scale_factor_height=factor, scale_factor_width=factor, align_corners=align)
        np.testing.assert_allclose(actual, reference, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("size", [(12, 14), (9, 10), (4, 3)], ids=str)
    def test_nearest_is_torchs(self, evaluate: Evaluate, size: tuple[int, int]) -> None:
        x = normal(2, 3, 6, 7)
        reference = F.interpolate(torch.from_numpy(x), size, mode="nearest").numpy()
        actual = evaluate("resize_nearest_neighbor", x=x, target_size_height=size[0], target_size_width=size[1])
        np.testing.assert_allclose(actual, reference)

    @pytest.mark.parametrize("size", [(12, 14), (9, 10), (4, 3)], ids=str)
    def test_the_general_nearest_takes_the_closest_pixel(self, evaluate: Evaluate, size: tuple[int, int]) -> None:
        x = normal(2, 3, 6, 7)
        reference = F.interpolate(torch.from_numpy(x), size, mode="nearest-exact").numpy()
        arguments = {"shape": [0, *size], "resized_dims": 2, "interpolation_mode": "NEAREST_NEIGHBOR"}
        np.testing.assert_allclose(evaluate("resize", x=x, sampling_mode="UNALIGN_CORNERS", **arguments), reference)

    def test_the_general_nearest_rounds_its_default_samples_too(self, evaluate: Evaluate) -> None:
        # The samples lie at 0, 2/3 and 4/3; the expectation is that of coremltools' own test of the op.
        actual = evaluate("resize", x=[[-6.0], [9.0]], shape=[3, 1], resized_dims=2, interpolation_mode="NEAREST_NEIGHBOR")
        assert actual.ravel().tolist() == [-6, 9, 9]

    def test_nearest_upsampling_repeats_pixels(self, evaluate: Evaluate) -> None:
        x = normal(1, 2, 3, 4)
        actual = evaluate("upsample_nearest_neighbor", x=x, scale_factor_height=2, scale_factor_width=3)
        np.testing.assert_allclose(actual, x.repeat(2, -2).repeat(3, -1))

    def test_a_zero_extent_leaves_the_axis(self, evaluate: Evaluate) -> None:
        assert evaluate("resize", x=normal(1, 2, 3, 4), shape=[1, 0, 8], resized_dims=2).shape == (1, 2, 3, 8)

    def test_crop_cuts_the_borders(self, evaluate: Evaluate) -> None:
        x = normal(1, 2, 5, 6)
        np.testing.assert_allclose(evaluate("crop", x=x, crop_height=[1, 2], crop_width=[0, 3]), x[:, :, 1:3, 0:3])


class TestSampling:
    @pytest.mark.parametrize("align", [False, True])
    @pytest.mark.parametrize("mode", ["bilinear", "nearest"])
    @pytest.mark.parametrize("padding", ["constant", "border", "reflection", "symmetric"])
    def test_resample_is_torchs_grid_sample(self, evaluate: Evaluate, padding: str, mode: str, align: bool) -> None:
        if padding in ("reflection", "symmetric") and align != (padding == "reflection"):
            pytest.skip("torch ties the kind of reflection to align_corners")
        x, grid = normal(2, 3, 5, 6), RNG.uniform(-1.7, 1.7, (2, 4, 7, 2)).astype(np.float32)
        torchs = {"constant": "zeros", "border": "border"}.get(padding, "reflection")
        reference = F.grid_sample(torch.from_numpy(x).double(), torch.from_numpy(grid).double(), mode, torchs, align)
        actual = evaluate(
            "resample", x=x, coordinates=grid, sampling_mode=mode, padding_mode=padding, padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one", align_corners=align,
        )  # fmt: skip
        np.testing.assert_allclose(actual, reference.numpy(), rtol=1e-5, atol=1e-6)

    def test_units_of_coordinates_name_the_same_pixels(self, evaluate: Evaluate) -> None:
        x, pixels = normal(1, 2, 5, 6), np.array([[[[0, 0], [5, 4], [2, 3]]]], np.float32)
        fixed = {"sampling_mode": "bilinear", "padding_mode": "border", "padding_value": 0.0, "align_corners": True}
        reference = x[:, :, [0, 4, 3], [0, 5, 2]][:, :, None]
        for mode, grid in (
            ("unnormalized", pixels),
            ("normalized_zero_to_one", pixels / [5, 4]),
            ("normalized_minus_one_to_one", pixels / [2.5, 2] - 1),
        ):
            actual = evaluate("resample", x=x, coordinates=grid.astype(np.float32), coordinates_mode=mode, **fixed)
            np.testing.assert_allclose(actual, reference, atol=1e-5)

    def test_outside_the_image_lies_the_padding_value(self, evaluate: Evaluate) -> None:
        actual = evaluate(
            "resample", x=normal(1, 1, 3, 3), coordinates=np.full((1, 1, 1, 2), 9, np.float32), sampling_mode="bilinear",
            padding_mode="constant", padding_value=2.5, coordinates_mode="unnormalized", align_corners=True,
        )  # fmt: skip
        assert actual.item() == pytest.approx(2.5)

    def test_affine_is_torchs_affine_grid(self, evaluate: Evaluate) -> None:
        x, matrix = normal(2, 3, 5, 6), normal(2, 6)
        grid = F.affine_grid(torch.from_numpy(matrix).double().reshape(2, 2, 3), [2, 3, 4, 7], align_corners=True)
        reference = F.grid_sample(torch.from_numpy(x).double(), grid, align_corners=True)
        actual = evaluate(
            "affine", x=x, transform_matrix=matrix, output_height=4, output_width=7, sampling_mode="bilinear", padding_mode="constant",
            padding_value=0.0, coordinates_mode="normalized_minus_one_to_one", align_corners=True,
        )  # fmt: skip
        np.testing.assert_allclose(actual, reference.numpy(), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("mode", "box"),
        [
            ("CORNERS_HEIGHT_FIRST", [1, 0, 3, 4]),
            ("CORNERS_WIDTH_FIRST", [0, 1, 4, 3]),
            ("CENTER_SIZE_HEIGHT_FIRST", [2, 2, 2, 4]),
            ("CENTER_SIZE_WIDTH_FIRST", [2, 2, 4, 2]),
        ],
    )
    def test_a_box_is_the_same_in_every_notation(self, evaluate: Evaluate, mode: str, box: list[float]) -> None:
        x = normal(2, 3, 5, 6)
        options = {"target_height": 3, "target_width": 5, "box_coordinate_mode": mode, "sampling_mode": "ALIGN_CORNERS"}
        reference = x[:, :, 1:4, 0:5]
        actual = evaluate("crop_resize", opset="CoreML8", x=x, boxes=np.array([box, box], np.float32), box_indices=[1, 0], **options)
        np.testing.assert_allclose(actual, reference[::-1], atol=1e-6)
        roi = np.array(box, np.float32).reshape(1, 1, 4, 1, 1)
        np.testing.assert_allclose(evaluate("crop_resize", opset="CoreML5", x=x, roi=roi, **options)[0], reference, atol=1e-6)


@pytest.fixture(scope="module")
def ops() -> dict[int, Any]:
    quiet_coremltools()
    from coremltools.converters.mil.mil.ops.defs.iOS16 import constexpr_ops
    from coremltools.converters.mil.mil.ops.defs.iOS18 import compression

    return {16: constexpr_ops, 18: compression}


class TestConstantExpressions:
    """coremltools' own numpy decompression is the oracle."""

    @pytest.mark.parametrize("per_channel", [False, True])
    def test_affine(self, evaluate: Evaluate, ops: dict[int, Any], per_channel: bool) -> None:
        data = RNG.integers(-128, 128, (4, 3)).astype(np.int8)
        scale, zero = (np.abs(normal(3)), np.arange(3, dtype=np.int8)) if per_channel else (np.float32(0.3), np.int8(5))
        reference = ops[16].constexpr_affine_dequantize.decompress(data, zero, scale, 1)
        actual = evaluate("constexpr_affine_dequantize", quantized_data=data, zero_point=zero, scale=scale, axis=1)
        np.testing.assert_allclose(actual, reference, rtol=1e-5)

    @pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
    def test_packed_palettes(self, evaluate: Evaluate, ops: dict[int, Any], bits: int) -> None:
        shape, lut = np.array([3, 5, 7], np.uint32), normal(1 << bits)
        packed = RNG.integers(0, 256, math.ceil(bits * 105 / 8)).astype(np.uint8)
        reference = ops[16].constexpr_lut_to_dense.decompress(lut, packed, shape)
        actual = evaluate("constexpr_lut_to_dense", opset="CoreML6", indices=packed, lut=lut, shape=shape)
        np.testing.assert_allclose(actual, reference, rtol=1e-6)

    def test_packed_masks(self, evaluate: Evaluate, ops: dict[int, Any]) -> None:
        shape, mask = np.array([4, 5], np.uint32), np.array([0b10110001, 0b00011110, 0b1001], np.uint8)
        values = normal(10)
        reference = ops[16].constexpr_sparse_to_dense.decompress(values, mask, shape)
        np.testing.assert_allclose(
            evaluate("constexpr_sparse_to_dense", opset="CoreML6", nonzero_data=values, mask=mask, shape=shape), reference, rtol=1e-6
        )

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_grouped_and_vector_palettes(self, evaluate: Evaluate, ops: dict[int, Any], data: Any) -> None:
        rank = data.draw(st.integers(1, 3))
        blocks = [data.draw(st.integers(1, 3)) for _ in range(rank)]
        extents = [b * data.draw(st.integers(1, 3)) for b in blocks]
        length = data.draw(st.sampled_from([1, 1, 2, 3]))
        axis = data.draw(st.integers(-rank, rank - 1)) if length > 1 else None
        indices, lut = RNG.integers(0, 4, extents).astype(np.uint8), normal(*blocks, 4, length)
        reference = ops[18].constexpr_lut_to_dense.decompress(indices, lut, axis)
        np.testing.assert_allclose(evaluate("constexpr_lut_to_dense", indices=indices, lut=lut, vector_axis=axis), reference, rtol=1e-6)

    @pytest.mark.parametrize("offset", [None, "int", "float"])
    def test_blocks_of_scales(self, evaluate: Evaluate, ops: dict[int, Any], offset: str | None) -> None:
        data, scale = RNG.integers(-8, 8, (4, 6)).astype(np.int8), np.abs(normal(2, 3))
        shift = {None: None, "int": np.arange(6, dtype=np.int8).reshape(2, 3), "float": normal(2, 3)}[offset]
        reference = ops[18].constexpr_blockwise_shift_scale.decompress(data, scale, shift)
        actual = evaluate("constexpr_blockwise_shift_scale", data=data, scale=scale, offset=shift)
        np.testing.assert_allclose(actual, reference, rtol=1e-5, atol=1e-6)

    def test_sparse_forms(self, evaluate: Evaluate, ops: dict[int, Any]) -> None:
        mask = RNG.integers(0, 2, (4, 6)).astype(np.uint8)
        count = int(mask.sum())
        indices, lut = RNG.integers(0, 4, count).astype(np.uint8), normal(1, 2, 4, 1)
        references = ops[18].constexpr_lut_to_sparse.decompress(mask, indices, lut, None)
        actual = evaluate("constexpr_lut_to_sparse", results=2, indices_mask=mask, indices_nonzero_data=indices, lut=lut)
        for got, reference in zip(actual, references, strict=True):
            np.testing.assert_allclose(got, reference, rtol=1e-6)
        data, scale = RNG.integers(-8, 8, count).astype(np.int8), np.abs(normal(2, 1))
        references = ops[18].constexpr_sparse_blockwise_shift_scale.decompress(mask, data, scale, None)
        actual = evaluate("constexpr_sparse_blockwise_shift_scale", results=2, data_mask=mask, nonzero_data=data, scale=scale)
        for got, reference in zip(actual, references, strict=True):
            np.testing.assert_allclose(got, reference, rtol=1e-6)
        values = normal(count)
        reference = ops[18].constexpr_sparse_to_dense.decompress(values, mask)
        np.testing.assert_allclose(evaluate("constexpr_sparse_to_dense", nonzero_data=values, mask=mask), reference, rtol=1e-6)

    def test_dequantize_undoes_quantize_within_half_a_step(self, evaluate: Evaluate) -> None:
        x, scale, zero = normal(3, 4), np.array([0.1, 0.2, 0.05], np.float32), np.array([3, -2, 0], np.int8)
        coded = evaluate("quantize", input=x, scale=scale, zero_point=zero, axis=0, output_dtype="int8")
        back = evaluate("dequantize", input=coded.astype(np.int8), scale=scale, zero_point=zero, axis=0)
        assert (np.abs(back - x) <= scale[:, None] / 2 + 1e-6).all()


class TestSuppression:
    BOXES = np.array([[[0, 0, 2, 2], [0.2, 0, 2, 2], [5, 5, 2, 2], [5.1, 5, 2, 2]]], np.float32)
    SCORES = np.array([[[0.5, 0.1], [0.9, 0.2], [0.3, 0.8], [0.75, 0.1]]], np.float32)

    def test_boxes_that_overlap_a_better_one_are_left_out(self, evaluate: Evaluate) -> None:
        boxes, scores, numbers, counts = evaluate(
            "non_maximum_suppression", results=4, opset="CoreML5", boxes=self.BOXES, scores=self.SCORES, iou_threshold=0.5,
            score_threshold=0.0, max_boxes=3,
        )  # fmt: skip
        assert numbers.tolist() == [[1, 2, -1]] and counts.tolist() == [2]
        np.testing.assert_allclose(boxes[0, :2], self.BOXES[0, [1, 2]])
        np.testing.assert_allclose(scores[0, 2], 0)

    def test_classes_suppress_only_their_own(self, evaluate: Evaluate) -> None:
        actual = evaluate(
            "non_maximum_suppression", results=3, boxes=self.BOXES.transpose(0, 2, 1), scores=self.SCORES.transpose(0, 2, 1),
            iou_threshold=0.5, max_boxes=4, per_class_suppression=True,
        )  # fmt: skip
        assert actual[2].tolist() == [[1, 2, 3, -1]] and actual[0].shape == (1, 4, 4)


class TestRandom:
    @pytest.mark.parametrize(
        ("op", "arguments", "mean", "deviation"),
        [
            ("random_normal", {"mean": 2.0, "stddev": 3.0}, 2.0, 3.0),
            ("random_uniform", {"low": -1.0, "high": 3.0}, 1.0, 4 / math.sqrt(12)),
            ("random_bernoulli", {"prob": 0.3}, 0.3, math.sqrt(0.21)),
        ],
    )
    def test_draws_have_the_moments_of_their_distribution(
        self, evaluate: Evaluate, op: str, arguments: dict[str, Any], mean: float, deviation: float
    ) -> None:
        drawn = evaluate(op, shape=[200, 500], seed=1, **arguments)
        assert drawn.mean() == pytest.approx(mean, abs=5 * deviation / math.sqrt(1e5))
        assert drawn.std() == pytest.approx(deviation, rel=0.02)
        np.testing.assert_array_equal(drawn, evaluate(op, shape=[200, 500], seed=1, **arguments))
        assert (drawn != evaluate(op, shape=[200, 500], seed=2, **arguments)).any()

    @pytest.mark.parametrize("mode", ["probs", "logits"])
    def test_categories_come_as_often_as_they_should(self, evaluate: Evaluate, mode: str) -> None:
        shares = np.array([[0.1, 0.6, 0.3]], np.float32)
        x = shares if mode == "probs" else np.log(shares)
        drawn = evaluate("random_categorical", x=x, mode=mode, size=20000, seed=4)
        np.testing.assert_allclose([(drawn == k).mean() for k in range(3)], shares[0], atol=0.02)
