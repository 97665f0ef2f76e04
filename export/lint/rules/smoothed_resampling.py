"""``interpolate(antialias=True)``, which coremltools converts without the smoothing."""

from typing import TYPE_CHECKING

import numpy as np

from coreflow.export.lint.rule import Rule
from coreflow.models.arrays import Arrays

if TYPE_CHECKING:
    from torch import Tensor

    from coreflow.export.lint.calls import Call


def _draw(seed: int) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal((1, 2, 8, 9)).astype(np.float32)}


def _smoothed(x: "Tensor") -> "Tensor":
    from torch.nn import functional

    return functional.interpolate(x, (3, 4), mode="bilinear", antialias=True)


def _plain(x: "Tensor") -> "Tensor":
    from torch.nn import functional

    return functional.interpolate(x, (3, 4), mode="bilinear")


def _smooths(call: "Call") -> bool:
    return call.operation == "aten::_upsample_bilinear2d_aa"


RULE = Rule(
    id="smoothed-resampling",
    title="bilinear resampling with antialias=True does not smooth",
    source="seen with coremltools 9.0: one converter for both operations",
    remedy="coreflow export multiplies with two fixed matrices; elsewhere do so in forward, or resample before the model",
    case=_smoothed,
    healthy=_plain,
    draw=_draw,
    finds=_smooths,
)
