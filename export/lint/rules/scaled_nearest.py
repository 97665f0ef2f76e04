"""``interpolate(scale_factor=0.6)`` by nearest neighbours, of which coremltools picks others."""

from typing import TYPE_CHECKING

import numpy as np

from coreflow.export.lint.rule import Rule
from coreflow.models.arrays import Arrays

if TYPE_CHECKING:
    from torch import Tensor

    from coreflow.export.lint.calls import Call


def _draw(seed: int) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal((1, 2, 8, 9)).astype(np.float32)}


def _scaled(x: "Tensor") -> "Tensor":
    from torch.nn import functional

    return functional.interpolate(x, scale_factor=0.6)


def _doubled(x: "Tensor") -> "Tensor":
    from torch.nn import functional

    return functional.interpolate(x, scale_factor=2)


def _is_scaled_by_a_fraction(call: "Call") -> bool:
    scales = call.arguments.get("scale_factors") or [call.arguments.get("scales_h"), call.arguments.get("scales_w")]
    return call.operation == "aten::upsample_nearest2d" and any(scale is not None and scale % 1 for scale in scales)


RULE = Rule(
    id="scaled-nearest",
    title="nearest neighbours by a scale that is no whole number are those by the quotient of the sizes",
    source="seen with coremltools 9.0, torch.jit.trace",
    remedy="coreflow export gathers torch's own places; elsewhere give size= or recompute_scale_factor=True",
    case=_scaled,
    healthy=_doubled,
    draw=_draw,
    finds=_is_scaled_by_a_fraction,
)
