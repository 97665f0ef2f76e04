"""``diagonal``, of which coremltools returns the whole matrix."""

from typing import TYPE_CHECKING

import numpy as np

from coreflow.export.lint.rule import Rule
from coreflow.models.arrays import Arrays

if TYPE_CHECKING:
    from torch import Tensor

    from coreflow.export.lint.calls import Call


def _draw(seed: int) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal((4, 4)).astype(np.float32)}


def _diagonal(x: "Tensor") -> "Tensor":
    return x.diagonal()


def _by_places(x: "Tensor") -> "Tensor":
    return x.reshape(16)[::5]


def _is_diagonal(call: "Call") -> bool:
    return call.operation == "aten::diagonal"


RULE = Rule(
    id="diagonal",
    title="diagonal of an exported program is the matrix with zeros beside the diagonal",
    source="coremltools issue 2565",
    remedy="coreflow export gathers the places of the diagonal; elsewhere write x.reshape(-1)[:: n + 1]",
    case=_diagonal,
    healthy=_by_places,
    draw=_draw,
    finds=_is_diagonal,
    front_end="export",
)
