"""Examples with which laws once failed, kept so that few random examples need not find them again."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.runtime.lift.laws.conftest import RunOp

Case = tuple[str, dict[str, Any], Any]

COUNTEREXAMPLES: dict[str, Case] = {
    "a scalar index of a vector gives a scalar": ("gather", {"x": np.array([3, 4, 5], np.float32), "indices": np.int32(1), "axis": 0}, 4.0),
    "a constant goes through identity": ("identity", {"x": np.float32(2.5)}, 2.5),
    "three steps of 0.1 lead to 0.3": (
        "range_1d",
        {"start": np.float32(0), "end": np.float32(0.3), "step": np.float32(0.1)},
        [0, 0.1, 0.2],
    ),
    "NaN has no sign": ("sign", {"x": np.array([np.nan, -2, 0], np.float32)}, [np.nan, -1, 0]),
    "NaN is not below the threshold": ("thresholded_relu", {"x": np.array([np.nan, 0.1, 2], np.float32), "alpha": 0.5}, [np.nan, 0, 2]),
    "an open begin is the first element of a squeezed axis": (
        "slice_by_index",
        {"x": np.array([7, 8, 9], np.float32), "begin": [1], "end": [2], "begin_mask": [True], "squeeze_mask": [True]},
        7.0,
    ),
}


@pytest.mark.parametrize("what", COUNTEREXAMPLES)
def test_counterexamples_of_the_laws_stay_fixed(run_op: "RunOp", what: str) -> None:
    op, arguments, reference = COUNTEREXAMPLES[what]
    for how in ("constants", "computed", "module"):
        (actual,) = run_op(op, arguments, opset="CoreML7", how=how)
        assert actual.shape == np.shape(reference)
        np.testing.assert_allclose(actual, reference, rtol=1e-6)
