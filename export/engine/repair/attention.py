"""Fused attention in parts, which the engine computes right."""

import math

import numpy as np

from coreflow.export.engine.repair.facts import Facts
from coreflow.export.engine.repair.finite_masks import FINITE
from coreflow.export.engine.repair.rewrite import Builder, argument, known_shape, rewrite
from coreflow.export.package.graph import Graph, Op, Value


def separate_attention(graph: Graph, facts: Facts) -> Graph:
    """Attention as products and a softmax.

    Given::

        %y = scaled_dot_product_attention(query=%q, key=%k, value=%v, attn_mask=%m)

    Result::

        %scores = matmul(x=%q, y=%k, transpose_y=True) * scale + %m
        %y = matmul(x=softmax(x=%scores, axis=-1), y=%v)

    The fused op is wrong on the engine of iOS26 (executorch 16057, 16144; measured), and for long rows on M1 and M5 (ANEForge,
    op-quirks). The scale, one over the root of the width of a head, is a number of fp16 for a width of 16, 64 or 256. Others take two
    factors, whose product is the scale to 1e-6, where one would be off by as much as 5e-4. A mask of truth values has ``FINITE`` below
    zero in place of minus infinity; rows that it masks altogether are NaN in the fused op alone.
    """

    def rule(op: Op, new: Builder) -> bool:
        query, key, value = (argument(op, name) for name in ("query", "key", "value"))
        shapes = [known_shape(part) for part in (query, key, value)]
        if op.type != "scaled_dot_product_attention" or query is None or key is None or value is None or None in shapes:
            return False
        width, length = (key.shape or ())[-1], (key.shape or ())[-2]
        scale, further = scale_factors(float(width or 1) ** -0.5, query.dtype)
        if further != 1:
            query = new("mul", x=query, y=further)
        products = new("matmul", x=query, y=key, transpose_x=False, transpose_y=True, shape=(*(query.shape or ())[:-1], length))
        scores = _masked(new("mul", x=products, y=scale), argument(op, "attn_mask"), new)
        new("matmul", x=new("softmax", x=scores, axis=-1), y=value, transpose_x=False, transpose_y=False, gives=op.outputs[0])
        return True

    return rewrite(graph, rule)


def scale_factors(scale: float, dtype: str) -> tuple[float, float]:
    """Two numbers of ``dtype`` whose product is nearest to ``scale``; the second is 1 where the first is ``scale``, and below 2 else.

    >>> scale_factors(0.125, "float16"), scale_factors(32**-0.5, "float16")
    """
    kind = np.dtype(dtype)
    if float(kind.type(scale)) == scale or kind != np.float16:
        return scale, 1.0
    pairs = [(float(np.float16(scale * 1024 / part)), part / 1024) for part in range(1024, 2048)]
    return min(pairs, key=lambda pair: math.fabs(pair[0] * pair[1] - scale))


def _masked(scores: Value, mask: Value | None, new: Builder) -> Value:
    if mask is None:
        return scores
    if mask.dtype == "bool":
        return new("select", cond=mask, a=scores, b=-FINITE, shape=scores.shape, as_dtype=scores.dtype)
    return new("add", x=scores, y=mask)
