"""``add(alpha=)`` of an exported program, which coremltools ignores."""

from typing import TYPE_CHECKING

import numpy as np

from coreflow.export.lint.rule import Rule
from coreflow.models.arrays import Arrays

if TYPE_CHECKING:
    from torch import Tensor

    from coreflow.export.lint.calls import Call


def _draw(seed: int) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal((2, 4)).astype(np.float32)}


def _scaled(x: "Tensor") -> "Tensor":
    import torch

    return torch.add(x, x, alpha=0.5)


def _multiplied(x: "Tensor") -> "Tensor":
    return x + x * 0.5


def _has_alpha(call: "Call") -> bool:
    return call.operation in ("aten::add", "aten::sub") and call.arguments.get("alpha") not in (None, 1)


RULE = Rule(
    id="ignored-alpha",
    title="add and sub of an exported program ignore alpha",
    source="seen with coremltools 9.0: torch.export passes alpha as a keyword, which it does not read",
    remedy="coreflow export multiplies first; elsewhere write x + alpha * y",
    case=_scaled,
    healthy=_multiplied,
    draw=_draw,
    finds=_has_alpha,
    front_end="export",
)
