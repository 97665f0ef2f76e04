"""Specs say which values have a meaning, and say so again after JSON."""

import pytest

from coreflow.models.errors import ConfigError
from coreflow.models.spec import Dtype, TensorSpec


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec((1, 8)),
        TensorSpec((1, 8), "int32", (0, 9)),
        TensorSpec((1, 8), "int32", values=(0, 1)),
        TensorSpec((), "float32", values=(-1, 0.5)),
    ],
)
def test_a_spec_comes_back_from_json(spec: TensorSpec) -> None:
    assert TensorSpec.from_json(spec.to_json()) == spec


def test_specs_without_values_are_written_as_they_were() -> None:
    """Their JSON is part of fingerprints and of the manifests of older bundles."""
    assert TensorSpec((1, 8), "int32", (0, 9)).to_json() == {"shape": [1, 8], "dtype": "int32", "bounds": [0.0, 9.0]}
    assert TensorSpec((1, 8)).to_json() == {"shape": [1, 8], "dtype": "float16"}
    assert TensorSpec.from_json({"shape": [1, 8], "dtype": "float16", "bounds": [0, 1]}) == TensorSpec((1, 8), bounds=(0, 1))


def test_values_are_in_order_once_and_have_bounds() -> None:
    spec = TensorSpec((1, 8), "int32", values=(2, 0, 1, 1))
    assert (spec.values, spec.bounds) == ((0, 1, 2), (0, 2))
    assert TensorSpec((1, 8), "int32", bounds=(0, 2), values=(0, 1, 2)) == spec


@pytest.mark.parametrize(
    ("dtype", "values", "said"),
    [
        ("float16", (), "one or more"),
        ("float16", (0, -1e9), "that float16 holds"),
        ("float32", (0, float("nan")), "that float32 holds"),
        ("float32", (0, float("-inf")), "that float32 holds"),
        ("int32", (0, 2**31), "that int32 holds"),
        ("int32", (0, 0.5), "whole numbers are right"),
    ],
)
def test_values_that_the_dtype_does_not_hold_are_refused(dtype: Dtype, values: tuple[float, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TensorSpec((1, 8), dtype, values=values)


def test_bounds_beside_other_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="give the values alone"):
        TensorSpec((1, 8), bounds=(0, 2), values=(0, 1))
