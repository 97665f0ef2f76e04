"""``var(correction=2)``, whose correction coremltools takes for True."""

from typing import TYPE_CHECKING

import numpy as np

from coreflow.export.lint.rule import Rule
from coreflow.models.arrays import Arrays

if TYPE_CHECKING:
    from torch import Tensor

    from coreflow.export.lint.calls import Call


def _draw(seed: int) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal((3, 5)).astype(np.float32)}


def _corrected(x: "Tensor") -> "Tensor":
    return x.std(1, correction=2)


def _unbiased(x: "Tensor") -> "Tensor":
    return x.std(1, unbiased=True)


def _has_other_correction(call: "Call") -> bool:
    return call.operation in ("aten::var", "aten::std") and call.arguments.get("correction") not in (None, 0, 1)


RULE = Rule(
    id="variance-correction",
    title="var and std with a correction other than 0 and 1 are those with 1",
    source="seen with coremltools 9.0, torch.jit.trace",
    remedy="coreflow export divides by the size less the correction; elsewhere scale x.var(unbiased=False)",
    case=_corrected,
    healthy=_unbiased,
    draw=_draw,
    finds=_has_other_correction,
)
