"""The check of inputs: what counts as a number."""

import numpy as np
import pytest

from coreflow.models.errors import InputError
from coreflow.models.spec import TensorSpec
from coreflow.runtime.interface import _all_finite, checked_state


def test_every_pattern_of_fp16_is_a_number_or_not_as_numpy_says() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    assert [_all_finite(one) for one in every.reshape(-1, 1)] == np.isfinite(every).tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, -np.nan])
def test_one_bad_element_is_found_wherever_it_lies(dtype: type, bad: float) -> None:
    limits = np.finfo(dtype)
    array = np.random.default_rng(0).choice([limits.max, limits.min, limits.tiny, -limits.tiny, 0.0, -0.0, 1.0], (7, 10)).astype(dtype)
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
        checked_state("x", value, {"x": TensorSpec((2, 3), "float16")})
