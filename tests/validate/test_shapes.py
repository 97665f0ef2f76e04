"""Packages of several shapes: every enumerated one, and the least and the greatest of a range, is compared by itself."""

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.graph import Feature, Interface
from coreflow.models.spec import TensorSpec
from coreflow.validate.inputs.shapes import other_shapes
from coreflow.validate.package import validate


class Mean(nn.Module):
    """Convolution over (1, 8, L), and its mean; ``frozen`` keeps the length of the trace."""

    def __init__(self, *, frozen: bool = False) -> None:
        super().__init__()
        self.mix, self.out = nn.Conv1d(8, 16, 3, padding=1), nn.Linear(16, 4)
        self.frozen = frozen

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mixed = torch.tanh(self.mix(x))
        length: Any = int(x.shape[-1]) if self.frozen else x.shape[-1]
        return mixed, self.out(mixed.sum(-1) / length)


Convert = Callable[..., Path]


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    """A package of ``module``, traced at (1, 8, 16), whose input has this flexible shape."""

    def run(module: nn.Module, shape: Any, precision: str = "FLOAT16") -> Path:
        ct = quiet_coremltools()
        path = tmp_path / "model.mlpackage"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dtype = np.float16 if precision == "FLOAT16" else np.float32
            model = ct.convert(
                torch.jit.trace(module.eval(), torch.zeros(1, 8, 16), check_trace=False),
                inputs=[ct.TensorType(name="x", shape=shape, dtype=dtype)],
                outputs=[ct.TensorType(name="mixed", dtype=dtype), ct.TensorType(name="mean", dtype=dtype)],
                convert_to="mlprogram",
                minimum_deployment_target=ct.target.iOS17,
                compute_precision=getattr(ct.precision, precision),
                skip_model_load=True,
            )
            model.save(str(path))
            del model
            gc.collect()
        return path

    return run


def enumerated(*lengths: int) -> Any:
    ct = quiet_coremltools()
    return ct.EnumeratedShapes([(1, 8, length) for length in lengths], default=(1, 8, lengths[0]))


def between(low: int, high: int, default: int) -> Any:
    ct = quiet_coremltools()
    return ct.Shape((1, 8, ct.RangeDim(low, high, default=default)))


def in_range(low: int, high: int, default: int) -> Callable[[], Any]:
    return lambda: between(low, high, default)


SHAPES: dict[str, tuple[Callable[[], Any], list[int]]] = {
    "enumerated": (lambda: enumerated(16, 8, 32), [16, 8, 32]),
    "a range": (in_range(4, 64, 16), [16, 4, 64]),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("precision", ["FLOAT16", pytest.param("FLOAT32", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("shape", "lengths"), SHAPES.values(), ids=SHAPES)
def test_every_shape_is_compared(convert: Convert, shape: Callable[[], Any], lengths: list[int], precision: str) -> None:
    module = Mean()
    report = validate(convert(module, shape(), precision), module)
    assert report.verdict == "pass", (report.text, report.notes)
    for length in lengths:
        assert any(note.startswith(f"x [1, 8, {length}]: pass") for note in report.notes), report.notes


@pytest.mark.sampled(1)
@pytest.mark.parametrize("precision", ["FLOAT16", pytest.param("FLOAT32", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("shape", "lengths"), SHAPES.values(), ids=SHAPES)
def test_a_length_that_a_trace_kept_fails_at_the_others(
    convert: Convert, shape: Callable[[], Any], lengths: list[int], precision: str
) -> None:
    module = Mean(frozen=True)
    report = validate(convert(module, shape(), precision), module)
    assert report.verdict == "fail", report.text
    assert any(report.text.startswith(f"at x [1, 8, {length}]: mean: ") for length in lengths[1:]), report.text
    assert any(note.startswith("x [1, 8, 16]: pass") for note in report.notes), report.notes


def test_samples_of_several_shapes_are_compared_by_shape(convert: Convert) -> None:
    module, random = Mean(), np.random.default_rng(0)
    package = convert(module, enumerated(16, 8, 32))
    samples = [{"x": random.standard_normal((1, 8, length)).astype(np.float16)} for length in (8, 16, 8, 16)]
    report = validate(package, module, samples)
    assert report.verdict == "pass", report.text
    assert report.samples.given == 4 and sum("2 samples" in note for note in report.notes) == 2
    assert any(note == "x [1, 8, 32]: not compared, no sample has that shape" for note in report.notes), report.notes


def test_a_shape_on_which_only_the_package_does_not_run_is_not_passed(convert: Convert) -> None:
    class Fixed(Mean):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mixed, mean = super().forward(x)
            return mixed.reshape(1, int(mixed.shape[-1]), 16).transpose(1, 2), mean

    module = Fixed()
    report = validate(convert(module, enumerated(16, 8)), module)
    assert report.verdict == "incomplete" and "seed 0 at x [1, 8, 8]" in report.text, report.text


@pytest.mark.slow
def test_a_shape_that_the_reference_does_not_take_is_a_warning(convert: Convert) -> None:
    class Deep(Mean):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv1d(8, 16, 6)

    module = Deep()
    report = validate(convert(module, between(2, 32, 16)), module)
    assert report.verdict == "warn" and any("seed 0 at x [1, 8, 2]" in problem for problem in report.problems), report.text
    assert any(note.startswith("x [1, 8, 32]: ") for note in report.notes)


def interface(*features: Feature) -> Interface:
    return Interface(inputs=features, outputs=(), states=())


def test_inputs_of_several_shapes_change_together() -> None:
    specs = {"ids": TensorSpec((1, 8), "int32", (0, 9)), "mask": TensorSpec((1, 8), values=(0, 1)), "x": TensorSpec((3,))}
    lists = tuple((1, length) for length in (8, 16, 4))
    features = (Feature("ids", "array", "int32", (1, 8), enumerated=lists), Feature("mask", "array", "float16", (1, 8), enumerated=lists))
    shapes = other_shapes(specs, interface(*features, Feature("x", "array", "float16", (3,))))
    assert [[spec.shape for spec in shape.values()] for shape in shapes] == [[(1, 16), (1, 16), (3,)], [(1, 4), (1, 4), (3,)]]
    assert all(shape["ids"].bounds == (0, 9) and shape["mask"].values == (0, 1) for shape in shapes)


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        (((1, 1), (2, 64)), [(1, 2), (1, 64)]),
        (((1, 1), (0, None)), [(1, 1), (1, 16)]),
        (((1, 4), (8, 8)), [(4, 8)]),
        (((1, 1), (1, 10**6)), [(1, 1), (1, 1024)]),
        (((1, 1), (8, 8)), []),
    ],
)
def test_ranges_stand_for_their_ends(ranges: tuple[tuple[int, int | None], ...], expected: list[tuple[int, ...]]) -> None:
    feature = Feature("x", "array", "float16", (1, 8), ranges=ranges)
    assert [shape["x"].shape for shape in other_shapes({"x": TensorSpec((1, 8))}, interface(feature))] == expected


def test_an_image_keeps_its_channels() -> None:
    feature = Feature("image", "image", shape=(8, 8), ranges=((4, 16), (4, 32)), colour="RGB")
    shapes = other_shapes({"image": TensorSpec((1, 3, 8, 8), bounds=(0, 255))}, interface(feature))
    assert [shape["image"].shape for shape in shapes] == [(1, 3, 4, 4), (1, 3, 16, 32)]
