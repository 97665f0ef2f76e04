"""``any`` and ``all`` of numbers, which coremltools casts to whole numbers first."""

from typing import TYPE_CHECKING

import numpy as np

from coreflow.export.lint.rule import Rule
from coreflow.models.arrays import Arrays

if TYPE_CHECKING:
    from torch import Tensor

    from coreflow.export.lint.calls import Call


def _draw(seed: int) -> Arrays:
    return {"x": np.random.default_rng(seed).uniform(-1, 1, (4, 3)).astype(np.float32)}


def _any_of_numbers(x: "Tensor") -> "Tensor":
    return x.any(1)


def _any_of_comparisons(x: "Tensor") -> "Tensor":
    return (x != 0).any(1)


def _is_of_numbers(call: "Call") -> bool:
    return call.operation in ("aten::any", "aten::all") and call.dtype != "bool"


RULE = Rule(
    id="any-of-numbers",
    title="any and all of numbers are those of their whole parts: 0.5 is none of any, and -1 is less than 0",
    source="seen with coremltools 9.0: its converter of any casts to int32 and takes the maximum",
    remedy="coreflow export compares with 0 first; elsewhere write (x != 0).any()",
    case=_any_of_numbers,
    healthy=_any_of_comparisons,
    draw=_draw,
    finds=_is_of_numbers,
)
