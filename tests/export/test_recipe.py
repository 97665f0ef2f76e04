"""A recipe is checked when it is made."""

from typing import Any

import numpy as np
import pytest
from torch import nn

from coreflow.export import Recipe, TensorSpec
from coreflow.models.errors import ConfigError

GOOD: dict[str, Any] = {"name": "head", "module": nn.Linear(4, 2), "inputs": {"x": TensorSpec((1, 4))}, "outputs": ("y",)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "iOS14"}, "target 'iOS14'; choose one of iOS16"),
        ({"precision": "int8"}, "choose fp16 or fp32"),
        ({"module": "head"}, "module is a str"),
        ({"outputs": ()}, "at least one input and one output"),
        ({"name": "my-head"}, "name 'my-head'"),
        ({"inputs": {"x.1": TensorSpec((1, 4))}}, "name 'x.1'"),
        ({"outputs": ("x",)}, "x named twice"),
        ({"outputs": ("y", "y")}, "y named twice"),
        ({"name": "../escape"}, "name '../escape'"),
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
