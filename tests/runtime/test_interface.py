"""The check of inputs: what counts as a number."""

from typing import Literal

import numpy as np
import pytest

from coreflow.export.package.graph import Feature
from coreflow.models.errors import InputError
from coreflow.models.spec import TensorSpec
from coreflow.runtime.interface import _all_finite, _check_input, check_state


def test_every_pattern_of_fp16_is_a_number_or_not_as_numpy_says() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    assert [_all_finite(one) for one in every.reshape(-1, 1)] == np.isfinite(every).tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, -np.nan])
def test_one_bad_element_is_found_wherever_it_lies(dtype: type[np.floating], bad: float) -> None:
    limits = np.finfo(dtype)
    numbers = np.array([limits.max, limits.min, limits.tiny, -limits.tiny, 0.0, -0.0, 1.0], dtype)
    array = np.random.default_rng(0).choice(numbers, (7, 10))
    assert _all_finite(array) and _all_finite(array[:0]) and _all_finite(array[0, 0].reshape(()))
    for place in np.ndindex(array.shape):
        changed = array.copy()
        changed[place] = bad
        assert not _all_finite(changed) and not _all_finite(changed.T) and not _all_finite(changed[:, ::-1])
    array[:, 1::2] = bad
    assert _all_finite(array[:, ::2])


def test_the_refusal_says_where() -> None:
    value = np.zeros((2, 3), np.float16)
    value[1, 2] = -np.inf
    with pytest.raises(InputError, match=r"'x' holds -inf at \[1, 2\]; a number from -65504 to 65504 is right"):
        check_state("x", value, {"x": TensorSpec((2, 3), "float16")})


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_bounds_may_be_wider_than_the_dtype(dtype: Literal["float16", "float32"]) -> None:
    spec, feature = TensorSpec((3,), dtype, (-1e6, 1.0)), Feature("x", "array", dtype, (3,))
    assert _check_input("x", np.array([-9.0, 0.5, 1.0], dtype), spec, feature).tolist() == [-9.0, 0.5, 1.0]
    with pytest.raises(InputError, match=r"'x' holds 2 at \[2\]; -1e\+06 to 1 is right"):
        _check_input("x", np.array([-9.0, 0.5, 2.0], dtype), spec, feature)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", ">i4", "bool"])
def test_whole_numbers_of_every_width_become_int32(dtype: str) -> None:
    spec, feature = TensorSpec((2,), "int32", (0, 1)), Feature("x", "array", "int32", (2,))
    actual = _check_input("x", np.array([0, 1]).astype(dtype), spec, feature)
    assert actual.dtype == np.int32 and actual.dtype.isnative and actual.tolist() == [0, 1]
