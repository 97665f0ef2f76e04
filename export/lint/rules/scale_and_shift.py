"""x * gamma + beta, of which a pass makes a batch norm with an epsilon of its own."""

from typing import TYPE_CHECKING

import numpy as np

from coreflow.export.engine.rule import Context, number
from coreflow.export.lint.rule import Rule
from coreflow.export.package.graph import Op
from coreflow.models.arrays import Arrays

if TYPE_CHECKING:
    from torch import Tensor


def _draw(seed: int) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal((1, 3, 4, 4)).astype(np.float32)}


def _scale_and_shift(x: "Tensor") -> "Tensor":
    import torch

    return x * torch.tensor([1.0, 2.0, 3.0])[:, None, None] + torch.tensor([0.5, 1.0, 1.5])[:, None, None]


def _scale(x: "Tensor") -> "Tensor":
    import torch

    return x * torch.tensor([1.0, 2.0, 3.0])[:, None, None]


def _is_of_variance_one(op: Op, context: Context) -> bool:
    """Whether a batch norm has no statistics and yet scales or shifts; one that was never trained does neither."""
    if op.type != "batch_norm":
        return False
    statistics = {
        name: np.asarray(value) for name in ("mean", "variance", "gamma", "beta") if (value := context.constant(op, name)) is not None
    }
    neutral = {"mean": 0, "variance": 1, "gamma": 1, "beta": 0}
    is_neutral = {name: bool(np.all(statistics.get(name, value) == value)) for name, value in neutral.items()}
    epsilon = number(context.constant(op, "epsilon"))
    has_epsilon = epsilon is None or epsilon > 0  # 1e-5 where none is given
    return is_neutral["mean"] and is_neutral["variance"] and has_epsilon and not (is_neutral["gamma"] and is_neutral["beta"])


RULE = Rule(
    id="scale-and-shift",
    title="x * gamma + beta of channels is 5e-6 too small: a batch norm of variance 1 with the default epsilon",
    source="seen with coremltools 9.0: its pass fuse_elementwise_to_batchnorm does not say epsilon",
    remedy="coreflow export leaves the pass out; elsewhere remove common::fuse_elementwise_to_batchnorm from the pipeline",
    case=_scale_and_shift,
    healthy=_scale,
    draw=_draw,
    finds_in_program=_is_of_variance_one,
)
