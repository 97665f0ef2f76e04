"""``log_softmax``, which coremltools makes the log of a softmax: of 0 where fp16 ends."""

import numpy as np
from torch import Tensor
from torch.nn import functional

from coreflow.export.lint.calls import Call
from coreflow.export.lint.rule import Rule
from coreflow.export.package.graph import Graph, Op
from coreflow.models.arrays import Arrays


def _draw(seed: int) -> Arrays:
    return {"x": (20 * np.random.default_rng(seed).standard_normal((2, 8))).astype(np.float16)}


def _log_softmax(x: Tensor) -> Tensor:
    return functional.log_softmax(x, 1)


def _by_hand(x: Tensor) -> Tensor:
    less = x - x.amax(1, keepdim=True)
    return less - less.exp().sum(1, keepdim=True).log()


def _is_log_softmax(call: Call) -> bool:
    return call.operation in ("aten::log_softmax", "aten::_log_softmax")


def _is_log_of_softmax(op: Op, graph: Graph) -> bool:
    return op.type == "log" and any(
        maker.type == "softmax" and any(value is op.argument("x")[0] for value in maker.outputs) for maker in graph.walk()
    )


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
