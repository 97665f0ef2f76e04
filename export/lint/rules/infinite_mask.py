"""A mask by a product with the least fp32 number, which is infinite in fp16: 0 * -inf is NaN."""

from typing import TYPE_CHECKING

import numpy as np

from coreflow.export.engine.rule import Context
from coreflow.export.lint.rule import Rule
from coreflow.export.package.graph import Op
from coreflow.export.targets.finite_masks import INFINITE
from coreflow.models.arrays import Arrays

if TYPE_CHECKING:
    from torch import Tensor

    from coreflow.export.lint.calls import Call


def _draw(seed: int) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal((2, 8)).astype(np.float16)}


def _by_finfo(x: "Tensor") -> "Tensor":
    import torch

    return (x + (x < 0).to(x.dtype) * torch.finfo(torch.float32).min).softmax(-1)


def _by_ten_thousand(x: "Tensor") -> "Tensor":
    return (x + (x < 0).to(x.dtype) * -1e4).softmax(-1)


def _is_product(call: "Call") -> bool:
    factor = call.arguments.get("other")
    return call.operation == "aten::mul" and isinstance(factor, int | float) and INFINITE <= abs(factor) < np.inf


def _is_product_with_infinity(op: Op, context: Context) -> bool:
    factors = [value.data for name in ("x", "y") for value in op.argument(name)] if op.type == "mul" else []
    return any(data is not None and bool(np.isinf(np.asarray(data, np.float32)).any()) for data in factors)


RULE = Rule(
    id="infinite-mask",
    title="(1 - mask) * finfo.min is NaN in fp16 where the mask is one: the number becomes infinite",
    source="seen with coremltools 9.0: its pass add_fp16_cast takes numbers beyond 1e38 for infinity",
    remedy="coreflow export keeps it finite, -3e4; elsewhere write -1e4",
    case=_by_finfo,
    healthy=_by_ten_thousand,
    draw=_draw,
    finds=_is_product,
    finds_in_program=_is_product_with_infinity,
    precision="fp16",
)
