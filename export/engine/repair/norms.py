"""Norms that neither overflow nor vanish: RMSNorm as layer norm, and rows scaled before they are squared."""

import math
from typing import Any

import numpy as np

from coreflow.export.engine.repair.facts import Facts, Magnitude
from coreflow.export.engine.repair.rewrite import Builder, Uses, argument, integers, number, rewrite
from coreflow.export.package.graph import Graph, Op, Value
from coreflow.models import fp16

_ROOT_EPSILON = 1e-12  # of rsqrt where it has none of its own
_NORM_EPSILON = 1e-5  # of layer_norm
# Rows within these have squares, and means of them, that fp16 holds well; others are brought to 64 at most, a quarter of what it squares.
_LEAST, _MOST, _GOAL = 1.0, 128.0, 64.0
_OPSETS_OF_ONE_TYPE = ("CoreML5", "CoreML6")  # where an epsilon is of the type of x


def rms_as_layer_norm(graph: Graph, facts: Facts) -> Graph:
    """x over the root of its mean square, as the layer norm of x and -x, whose mean is 0.

    Given::

        %y = %x * rsqrt(x=reduce_mean(x=square(x=%x), axes=[-1], keep_dims=True) + eps)

    Result::

        %norm = layer_norm(x=concat(values=(%x, %x * -1), axis=-1), axes=[-1], epsilon=eps)
        %y = slice_by_size(x=%norm, begin=[0, ...], size=shape of %x)

    Squares leave fp16 from 256 on, and vanish below 2e-4; a layer norm is one op of the engine (Anemll, CoreML-LLM; practitioners). Whether
    it squares in fp16, too, nobody has measured: rows that were seen outside 1 to 128 are scaled by a power of two first, and the epsilon
    by its square. Epsilon and that of rsqrt are one number of fp32, rounded to 6e-8 of them.
    """
    uses = Uses(graph)

    def rule(op: Op, new: Builder) -> bool:
        if op.type not in ("mul", "real_div") or (norm := _root_mean_square(op, uses)) is None:
            return False
        x, axes, epsilon = norm
        if x.shape is None or x.shape[axes[-1]] is None:
            return False
        scale = _scale(facts.magnitudes.get(x.name), epsilon, graph.opset, x.dtype)
        row = x if scale == 1 else new("mul", x=x, y=scale)
        axis = axes[-1]
        doubled = tuple(None if e is None else 2 * e if i == axis % len(x.shape) else e for i, e in enumerate(x.shape))
        both = new("concat", values=(row, new("mul", x=x, y=-scale)), axis=axis, interleave=False, shape=doubled)
        epsilon_value = new.constant("epsilon", *_epsilon(epsilon * scale**2, graph.opset, x.dtype))
        normal = new("layer_norm", x=both, axes=axes, epsilon=epsilon_value)
        size = tuple(-1 if extent is None else extent for extent in x.shape)
        new("slice_by_size", x=normal, begin=(0,) * len(size), size=size, gives=op.outputs[0])
        return True

    return rewrite(graph, rule)


def scaled_layer_norms(graph: Graph, facts: Facts) -> Graph:
    """Layer norms of rows whose squares fp16 holds.

    Given::

        %y = layer_norm(x=%x, axes=[-1], gamma=%g, beta=%b, epsilon=eps)        # |x| to 2000

    Result::

        %y = layer_norm(x=%x * 0.03125, axes=[-1], gamma=%g, beta=%b, epsilon=eps * 0.0009765625)

    Where the engine squares in fp16, which nobody has measured, the square of 256 is infinite, and little is left of it below 2e-4. The
    scale is a power of two chosen from rows that were seen; without them nothing is done.
    """

    def rule(op: Op, new: Builder) -> bool:
        x, epsilon = argument(op, "x"), number(op.inputs.get("epsilon"))
        if op.type != "layer_norm" or x is None:
            return False
        epsilon = _NORM_EPSILON if epsilon is None else epsilon
        affine = {name: value for name in ("gamma", "beta") if (value := argument(op, name)) is not None}
        if graph.opset in _OPSETS_OF_ONE_TYPE or any(not isinstance(value.data, np.ndarray) for value in affine.values()):
            return False
        scale = _scale(facts.magnitudes.get(x.name), epsilon, graph.opset, x.dtype)
        if scale == 1:
            return False
        # gamma, beta and epsilon are of one type
        in_fp32: dict[str, Any] = {name: np.asarray(value.data, np.float32) for name, value in affine.items()}
        small = new.constant("epsilon", *_epsilon(epsilon * scale**2, graph.opset, x.dtype))
        new.again(op, x=new("mul", x=x, y=scale), epsilon=small, **in_fp32, gives=op.outputs[0])
        return True

    return rewrite(graph, rule)


def safe_epsilons(graph: Graph, facts: Facts) -> Graph:
    """Epsilons that fp16 holds in full, added to sums of squares before their root.

    Given::

        %y = rsqrt(x=reduce_sum(x=square(x=%x), axes=[-1], keep_dims=True) + 1e-6)

    Result::

        %y = rsqrt(x=reduce_sum(x=square(x=%x * 8), axes=[-1], keep_dims=True) + 6.4e-5) * 8

    Below 6.1e-5 fp16 has fewer digits, and an iPhone has been seen to take such numbers for 0, so that the root of nothing was infinite
    (CoreML-LLM, PROBE_GEMMA4_VISION_ANE). The scale is the least power of two that is enough; where rows that were seen would leave
    fp16 by it, or none were, the epsilon stays.
    """
    uses = Uses(graph)

    def rule(op: Op, new: Builder) -> bool:
        sum_of_squares = _sum_of_squares(op, uses) if op.type in ("rsqrt", "sqrt") else None
        if sum_of_squares is None:
            return False
        x, reduction, epsilon = sum_of_squares
        seen = facts.magnitudes.get(x.name)
        if seen is None or x.dtype != "float16" or not 0 < epsilon < fp16.SMALLEST_NORMAL:
            return False
        scale = 2.0 ** math.ceil(math.log2(fp16.SMALLEST_NORMAL / epsilon) / 2)
        length = max((seen.norms[axis] for axis in integers(reduction.inputs.get("axes")) or ()), default=math.inf)
        if scale * (seen.largest if reduction.type == "reduce_mean" else length) > _MOST:
            return False
        scaled = new("square", x=new("mul", x=x, y=scale))
        total = new("add", x=new.again(reduction, x=scaled), y=epsilon * scale**2)
        root = new.again(op, x=total)
        new("mul", x=root, y=scale if op.type == "rsqrt" else 1 / scale, gives=op.outputs[0])
        return True

    return rewrite(graph, rule)


def _scale(seen: Magnitude | None, epsilon: float, opset: str, dtype: str) -> float:
    """The power of two by which rows of this size are multiplied; 1 where nothing was seen, or where the epsilon could not follow."""
    if seen is None or not 0 < seen.largest < math.inf or _LEAST <= seen.largest <= _MOST:
        return 1.0
    scale = 2.0 ** math.floor(math.log2(_GOAL / seen.largest))
    array, _ = _epsilon(epsilon * scale**2, opset, dtype)
    return scale if epsilon == 0 or math.isclose(float(array), epsilon * scale**2, rel_tol=1e-7) else 1.0


def _epsilon(epsilon: float, opset: str, dtype: str) -> tuple[np.ndarray, str]:
    kind = dtype if opset in _OPSETS_OF_ONE_TYPE else "float32"
    return np.array(epsilon, kind), kind


def _root_mean_square(op: Op, uses: Uses) -> tuple[Value, tuple[int, ...], float] | None:
    """What ``op`` divides by its root mean square, over which axes, and the epsilon in it."""
    pairs = [(argument(op, "x"), argument(op, "y"))]
    if op.type == "mul":
        pairs.append((pairs[0][1], pairs[0][0]))
    for x, root in pairs:
        maker = uses.made_by(root, "rsqrt" if op.type == "mul" else "sqrt")
        parts = None if maker is None else _sum_of_squares(maker, uses)
        if parts is None or maker is None or parts[0] is not x or parts[1].type != "reduce_mean":
            continue
        axes, kept = integers(parts[1].inputs.get("axes")), number(parts[1].inputs.get("keep_dims"))
        own = number(maker.inputs.get("epsilon"))
        if axes and kept:
            of_root = 0.0 if maker.type == "sqrt" else _ROOT_EPSILON if own is None else own
            return parts[0], axes, parts[2] + of_root
    return None


def _sum_of_squares(root: Op, uses: Uses) -> tuple[Value, Op, float] | None:
    """What is squared before ``root``, the op that sums or averages it, and the epsilon that is added."""
    total, epsilon = argument(root, "x"), 0.0
    if (added := uses.made_by(total, "add")) is not None:
        pair = argument(added, "x"), argument(added, "y")
        total, constant = pair if number(pair[1]) is not None else pair[::-1]
        epsilon = number(constant) or 0.0
    reduction = uses.made_by(total, "reduce_mean", "reduce_sum")
    square = None if reduction is None else uses.made_by(argument(reduction, "x"), "square", "mul", "pow")
    if reduction is None or square is None:
        return None
    x = argument(square, "x")
    same = square.type == "square" or argument(square, "y") is x or (square.type == "pow" and number(square.inputs.get("y")) == 2)
    return (x, reduction, epsilon) if x is not None and same else None
