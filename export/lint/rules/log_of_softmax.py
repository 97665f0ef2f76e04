"""``log_softmax``, which coremltools makes the log of a softmax: of 0 where fp16 ends."""

from typing import TYPE_CHECKING

import numpy as np

from coreflow.export.engine.rule import Context
from coreflow.export.lint.rule import Rule
from coreflow.export.package.graph import Op
from coreflow.models.arrays import Arrays

if TYPE_CHECKING:
    from torch import Tensor

    from coreflow.export.lint.calls import Call


def _draw(seed: int) -> Arrays:
    return {"x": (20 * np.random.default_rng(seed).standard_normal((2, 8))).astype(np.float16)}


def _log_softmax(x: "Tensor") -> "Tensor":
    from torch.nn import functional

    return functional.log_softmax(x, 1)


def _by_hand(x: "Tensor") -> "Tensor":
    less = x - x.amax(1, keepdim=True)
    return less - less.exp().sum(1, keepdim=True).log()


def _is_log_softmax(call: "Call") -> bool:
    return call.operation in ("aten::log_softmax", "aten::_log_softmax")


def _is_log_of_softmax(op: Op, context: Context) -> bool:
    maker = context.maker(op.argument("x")[0]) if op.type == "log" else None
    return maker is not None and maker.type == "softmax"


RULE = Rule(
    id="log-of-softmax",
    title="log_softmax in fp16 is infinite where the probability is below the least fp16 number",
    source="coremltools issue 2728",
    remedy="coreflow export subtracts the maximum and the log of the sum; elsewhere write that in forward",
    case=_log_softmax,
    healthy=_by_hand,
    draw=_draw,
    finds=_is_log_softmax,
    finds_in_program=_is_log_of_softmax,
    precision="fp16",
)
