"""``cosine_similarity`` of short vectors, where coremltools has another epsilon."""

from typing import TYPE_CHECKING

import numpy as np

from coreflow.export.lint.rule import Rule
from coreflow.models.arrays import Arrays

if TYPE_CHECKING:
    from torch import Tensor

    from coreflow.export.lint.calls import Call


def _draw(seed: int) -> Arrays:
    return {"x": 1e-6 * np.random.default_rng(seed).standard_normal((3, 4)).astype(np.float32)}


def _similarity(x: "Tensor") -> "Tensor":
    from torch.nn import functional

    return functional.cosine_similarity(x, x.flip(1), dim=1)


def _by_hand(x: "Tensor") -> "Tensor":
    unit = x / x.square().sum(1, keepdim=True).sqrt()
    return (unit * unit.flip(1)).sum(1)


def _is_similarity(call: "Call") -> bool:
    return call.operation == "aten::cosine_similarity"


RULE = Rule(
    id="cosine-similarity",
    title="cosine_similarity of vectors shorter than 1e-3 is far too small",
    source="seen with coremltools 9.0",
    remedy="coreflow export divides by the norms; elsewhere write (normalize(x) * normalize(y)).sum(dim)",
    case=_similarity,
    healthy=_by_hand,
    draw=_draw,
    finds=_is_similarity,
)
