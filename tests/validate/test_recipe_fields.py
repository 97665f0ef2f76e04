"""Classifiers, pictures, states and functions, as a recipe declares them, are judged like any other package."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export import ImageSpec, Recipe, TensorSpec, build, export_bundle
from coreflow.export.package.mlpackage import read_program
from coreflow.models.errors import UnsupportedError
from coreflow.runtime import load_model
from coreflow.validate import validate, validate_bundle
from coreflow.validate.inputs.classifiers import ClassifierModel, without_labels


class Network(nn.Module):
    """A convolution, its mean, a total over calls, and class probabilities."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.convolution, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, photo: Tensor) -> Tensor:
        return self.linear(self.convolution(photo).relu().mean((2, 3))).softmax(-1)


class Total(nn.Module):
    """A sum over calls, twice."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.register_buffer("total", torch.zeros(1, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.get_buffer("total").add_(x) * self.factor


def classifier(seed: int = 0) -> Recipe:
    image = ImageSpec.of(8, 8, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return Recipe(name="photo", module=Network(seed), inputs={"photo": image}, outputs=("scores",), labels=tuple("abcde"))


def totals() -> Recipe:
    fields: dict[str, Any] = {"inputs": {"x": TensorSpec((1, 32))}, "outputs": ("y",), "states": ("total",), "target": "iOS18"}
    return Recipe(name="twice", module=Total(2.0), **fields, functions=(Recipe(name="half", module=Total(0.5), **fields),))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "fields"
    list(export_bundle([classifier(), totals()], out, jobs=1))
    return out


@pytest.mark.slow
def test_a_bundle_of_them_passes(bundle: Path) -> None:
    report = validate_bundle(bundle, recipes=[classifier(), totals()], backend="lifted")
    assert {name: stage.verdict for name, stage in report.stages.items()} == dict.fromkeys(("photo", "twice", "half"), "pass")
    assert list(report.stages["photo"].outputs) == ["scores"] and list(report.stages["half"].outputs) == ["y", "total_out"]


@pytest.mark.sampled(1)
def test_another_function_than_the_recipe_fails(bundle: Path) -> None:
    package = next(bundle.rglob("twice.mlpackage"))
    half = totals().functions[0]
    assert validate(package, half, backend="lifted", quick=True, function_name="half").verdict == "pass"
    assert validate(package, half, backend="lifted", quick=True).verdict == "fail"


@pytest.mark.slow
def test_a_classifier_of_other_weights_fails(bundle: Path) -> None:
    report = validate(next(bundle.rglob("photo.mlpackage")), classifier(seed=1), backend="lifted", quick=True)
    assert (report.verdict, report.cause) == ("fail", "weights")


def test_the_probabilities_of_a_classifier_are_an_array_in_the_order_of_its_labels(bundle: Path) -> None:
    package = next(bundle.rglob("photo.mlpackage"))
    program, classify = without_labels(read_program(package))
    assert classify is not None
    model = ClassifierModel(load_model(package, "lifted", numerics="fp32"), classify, program.function()[1])
    photo = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        reference = classifier().module(torch.from_numpy(photo)).numpy()
    np.testing.assert_allclose(model.predict({"photo": photo})["scores"], reference, rtol=5e-3, atol=1e-4)


def test_a_program_that_is_no_classifier_stays_as_it_is(bundle: Path) -> None:
    program = read_program(next(bundle.rglob("twice.mlpackage")))
    assert without_labels(program) == (program, None)


def test_a_function_that_is_not_there_is_refused_with_those_that_are(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no function 'third'; it has half, twice"):
        validate(next(bundle.rglob("twice.mlpackage")), None, function_name="third")
    alone = build(classifier(), tmp_path)
    with pytest.raises(UnsupportedError, match="no function 'third'; it has main"):
        validate(alone, None, function_name="third")
