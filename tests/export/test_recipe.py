"""A recipe is checked when it is made."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from coreflow.export import ImageSpec, Range, Recipe, TensorSpec
from coreflow.export.shapes import Shapes
from coreflow.models.errors import ConfigError
from coreflow.models.images import spec_from_json

GOOD: dict[str, Any] = {"name": "head", "module": nn.Linear(4, 2), "inputs": {"x": TensorSpec((1, 4))}, "outputs": ("y",)}


def with_buffer(buffer: Tensor) -> nn.Module:
    module = nn.Linear(4, 2)
    module.register_buffer("h", buffer)
    return module


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "iOS14"}, "target 'iOS14'; choose one of iOS16"),
        ({"precision": "int8"}, "choose fp16 or fp32"),
        ({"module": "head"}, "module is of type str"),
        ({"outputs": ()}, "at least one input and one output"),
        ({"name": "my-head"}, "name 'my-head'"),
        ({"inputs": {"x.1": TensorSpec((1, 4))}}, "name 'x.1'"),
        ({"outputs": ("x",)}, "x named twice"),
        ({"outputs": ("y", "y")}, "y named twice"),
        ({"name": "../escape"}, "name '../escape'"),
        ({"states": ("h",)}, "state 'h' is no buffer of the module; its buffers are none; states need target='iOS18'"),
        ({"states": ("h",), "module": with_buffer(torch.ones(2)), "target": "iOS18"}, "'h' does not start at zero"),
        ({"states": ("h",), "module": with_buffer(torch.zeros(2, dtype=torch.int32)), "target": "iOS18"}, "'h' is torch.int32"),
        ({"shapes": {"z": [(2, 4)]}}, "shapes of 'z', which is no input"),
        ({"shapes": {"x": [(2, 4, 4)]}}, r"shape \(2, 4, 4\) for an input of shape \(1, 4\); 2 extents"),
        ({"shapes": {"x": [(1, 4)]}}, "no shape but the default"),
        ({"shapes": {"x": (Range(2, 8), 4)}}, r"default shape \(1, 4\) is outside \(2..8, 4\)"),
        ({"shapes": {"x": 7}}, "7 for an input of shape"),
        ({"shapes": {"x": [(2, 4)], "z": [(2, 4)]}, "inputs": dict.fromkeys("xz", TensorSpec((1, 4)))}, "x and z need target='iOS18'"),
        ({"labels": ("cat", "cat")}, "label 'cat' is given twice"),
        ({"labels": (1, 2)}, "labels are strings"),
        ({"functions": (1,)}, "functions are recipes"),
        ({"functions": (Recipe(**GOOD),)}, "two functions are named head; several functions need target='iOS18', head, head have"),
        ({"compute_dtype": {"layer": "fp32"}}, "compute_dtype of 'layer', which is no submodule"),
        ({"metadata": {"version": 1}}, "metadata 'version': 1; names and values are strings"),
        ({"metadata": {"coreflow.bounds": "{}"}}, "coreflow's own"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_modules_that_cannot_be_converted_as_named_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe(**{**GOOD, **change})


def test_drawn_inputs_have_the_declared_shapes_dtypes_and_bounds_and_repeat_for_a_seed() -> None:
    specs = {"ids": TensorSpec((1, 50), "int32", (3, 9)), "mask": TensorSpec((1, 50), bounds=(0, 1)), "x": TensorSpec((2, 3), "float32")}
    recipe = Recipe(name="any", module=nn.Identity(), inputs=specs, outputs=("y",))
    first, again, other = recipe.inputs_for(1), recipe.inputs_for(1), recipe.inputs_for(2)
    for name, spec in specs.items():
        assert (first[name].shape, first[name].dtype) == (spec.shape, np.dtype(spec.dtype))
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])
    assert set(np.unique(first["ids"])) == set(range(3, 10))
    assert first["mask"].min() >= 0 and first["mask"].max() <= 1


def test_integers_without_bounds_are_not_guessed() -> None:
    recipe = Recipe(name="any", module=nn.Identity(), inputs={"ids": TensorSpec((1, 5), "int32")}, outputs=("y",))
    with pytest.raises(ConfigError, match="bounds=\\(0, vocabulary - 1\\)"):
        recipe.inputs_for(0)


def test_a_draw_that_does_not_fit_the_inputs_is_refused() -> None:
    recipe = Recipe(**{**GOOD, "draw": lambda seed: {"x": np.zeros((1, 5), np.float16)}})
    with pytest.raises(ConfigError, match="draw gives"):
        recipe.inputs_for(0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"colour": "CMYK"}, "colour 'CMYK'; choose one of RGB, BGR, GRAYSCALE"),
        ({"scale": (1.0, 2.0)}, r"scale \(1.0, 2.0\) of a RGB image; one number or 3"),
        ({"scale": 2.0, "mean": 0.5}, "scale and bias beside mean and std"),
        ({"std": (1.0, 0.0, 1.0)}, "numbers above 0 are right"),
    ],
    ids=str,
)
def test_images_of_other_forms_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageSpec.of(4, 4, **fields)


@given(st.integers(1, 5), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.booleans())
def test_shapes_and_images_survive_a_manifest(extent: int, others: list[int], named: bool) -> None:
    spec = TensorSpec((extent, 4))
    listed = [(other, 4) for other in others if other != extent] or [(10, 4)]
    for given_shapes in (listed, (Range(1, 9, "batch" if named else ""), 4)):
        shapes = Shapes.of(spec, given_shapes)
        assert Shapes.from_json(json.loads(json.dumps(shapes.to_json()))) == shapes
    image = ImageSpec.of(extent, 4, std=tuple(map(float, (others * 3)[:3])))
    assert spec_from_json(json.loads(json.dumps(image.to_json()))) == image
