"""``nn.RMSNorm``, of which coremltools divides by the largest magnitude first."""

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
    x = np.random.default_rng(seed).standard_normal((3, 4)).astype(np.float32)
    x[seed % 3] = 0  # as of a token that is padding
    return {"x": x}


def _rms_norm(x: "Tensor") -> "Tensor":
    from torch.nn import functional

    return functional.rms_norm(x, (4,), eps=1e-5)


def _by_hand(x: "Tensor") -> "Tensor":
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def _is_rms_norm(call: "Call") -> bool:
    return call.operation == "aten::rms_norm"


def _divides_by_the_maximum(op: Op, context: Context) -> bool:
    """x / reduce_max(abs(x)), which is squared."""
    largest = context.maker(op.argument("y")[0]) if op.type == "real_div" else None
    if largest is None or largest.type != "reduce_max":
        return False
    magnitude = context.maker(largest.argument("x")[0])
    is_squared = any(reader.type == "square" for reader in context.readers(op.outputs[0]))
    return is_squared and magnitude is not None and magnitude.type == "abs" and magnitude.argument("x")[0] is op.argument("x")[0]


RULE = Rule(
    id="rms-norm",
    title="RMSNorm of a row of zeros is NaN, and epsilon is another one for every row",
    source="seen with coremltools 9.0: it divides by the largest magnitude, and adds epsilon afterwards",
    remedy="coreflow export takes the layer norm of [x, -x]; elsewhere write it so in forward",
    case=_rms_norm,
    healthy=_by_hand,
    draw=_draw,
    finds=_is_rms_norm,
    finds_in_program=_divides_by_the_maximum,
)
