"""Whether the Neural Engine takes an op, by the published rules of a target, with the reason where it does not."""

from dataclasses import dataclass
from typing import Literal

from coreflow.export.engine.features import Features
from coreflow.export.engine.targets import Evidence, Limits, Target, op_evidence

# What of an op the engine refuses: the op whatever its shapes, element types, an index or a weight that is computed, or a size.
Refusal = Literal[
    "", "op", "unknown", "integer", "fp32", "cast", "index", "weight", "rank", "extent", "kernel", "conv_3d", "window", "inner"
]  # fmt: skip
_Problem = tuple[Refusal, str] | None
_CASTABLE = ("float16", "float32", "bool", "int8")
# Ops that only move elements; K saw squeeze and the gathers of int16 on the engine, and no arithmetic of it.
_MOVES_INT16 = (
    "squeeze",
    "expand_dims",
    "reshape",
    "gather",
    "gather_nd",
    "gather_along_axis",
    "transpose",
    "slice_by_index",
    "concat",
    "split",
)


@dataclass(frozen=True, slots=True)
class Support:
    """Whether the engine takes an op; ``reason`` says why not, ``is_sure`` whether such an op is in what was published.

    ``refusal`` is the kind of the reason.

    >>> support(Features(type="cumsum", inputs=(x,), outputs=(x,)), target).reason
    'the engine has no such op ("Unsupported MIL operation")'
    """

    engine: bool
    reason: str = ""
    is_sure: bool = True
    evidence: Evidence | None = None
    refusal: Refusal = ""


def support(features: Features, target: Target) -> Support:
    """What the tables of ``target`` say of the op; the CPU takes every op."""
    listed = _by_type(features.type, target)
    if listed is not None:
        return listed
    limits, known = target.limits, target.evidence["limits"]
    problem = _types(features, limits) or _index(features) or _extents(features, limits) or _operator(features, limits)
    if problem:
        return Support(False, problem[1], True, known, problem[0])
    if reason := _small_integers(features):
        return Support(False, reason, False, None, "integer")
    unsure = op_evidence("unsure").get(features.type)
    return Support(True, "", unsure is None and not features.is_open, unsure[1] if unsure else known)


def _by_type(op_type: str, target: Target) -> Support | None:
    """The refusal of an op whatever its shapes; None where they decide."""
    if op_type in op_evidence("never"):
        reason, evidence = op_evidence("never")[op_type]
        return Support(False, reason, evidence.label != "inference", evidence, "op")
    if op_type in target.limits.never:
        return Support(False, f"{target.key} has no {op_type} on the engine", True, target.evidence["limits"], "op")
    if op_type not in op_evidence("taken") and op_type not in op_evidence("unsure"):
        return Support(False, "an op that no table knows", False, None, "unknown")
    return None


def _types(features: Features, limits: Limits) -> _Problem:
    """Element types of what runs through the op; constants may be of any type."""
    # The second result of topk is int32, and topk is taken all the same.
    tensors = (*features.inputs, *(features.outputs[:1] if features.type == "topk" else features.outputs))
    dtypes = {tensor.dtype for tensor in tensors}
    if integers := dtypes & {"int32", "uint32", "int64", "uint64"}:
        return "integer", f'{", ".join(sorted(integers))} operand or result ("Unsupported tensor data type: int32")'
    if features.type == "cast":
        if "float32" in dtypes and not limits.edge_casts:
            return "cast", 'a cast of fp32 ("Invalid input tensor format: fp32")'
        strange = sorted(dtypes - set(_CASTABLE))
        return ("cast", f"a cast of {', '.join(strange)}") if strange else None
    return ("fp32", "fp32 operand or result: the engine computes in fp16") if dtypes & {"float32", "float64"} else None


def _small_integers(features: Features) -> str:
    """int16 in arithmetic: no plan was read, and neighbours of it (the guard of a gather) stay on the CPU."""
    dtypes = {tensor.dtype for tensor in (*features.inputs, *features.outputs[:1])}
    if dtypes & {"int16", "uint16"} and features.type not in _MOVES_INT16:
        return "16-bit integers in arithmetic; no plan was read"
    return ""


def _index(features: Features) -> _Problem:
    if not features.run_time_index:
        return None
    if features.type == "gather":
        return "index", 'its indices are known at run time only ("Unsupported gather index type")'
    return "index", "its begin is known at run time only"


def _extents(features: Features, limits: Limits) -> _Problem:
    for tensor in (*features.inputs, *features.outputs):
        rank = len(tensor.shape)
        if rank > limits.rank:
            return "rank", f"rank {rank}; at most {limits.rank}"
        for axis, extent in enumerate(tensor.shape):
            # The batch, and the channels of (batch, channels, height, width); a lower rank is filled up in front.
            limit = limits.outer_extent if axis <= rank - 3 else limits.extent
            if extent > limit:
                return "extent", f'an extent of {extent}; at most {limit} ("not within supported range")'
    return None


def _operator(features: Features, limits: Limits) -> _Problem:
    if features.type in ("conv", "conv_transpose"):
        return _convolution(features, limits)
    if features.type == "max_pool" and features.kernel:
        width = features.kernel[-1]
        if width > limits.pool_window and width != 32:
            return "window", f"a window {width} wide; at most {limits.pool_window}, or 32"
    if features.type == "matmul" and features.contraction > limits.matmul_inner:
        return "inner", f'an inner extent of {features.contraction}; at most {limits.matmul_inner} ("can not fit the Kmem")'
    return None


def _convolution(features: Features, limits: Limits) -> _Problem:
    if len(features.kernel) == 3 and not limits.conv_3d:
        return "conv_3d", "a convolution over three axes"
    if features.run_time_weight and not limits.run_time_weight:
        return "weight", "its weight is known at run time only"
    kernel = features.kernel[-2:]
    width, height = kernel[-1] if kernel else 1, kernel[0] if len(kernel) == 2 else 1
    if width == height <= limits.conv_square:
        return None
    if width > limits.conv_width or height > limits.conv_height:
        allowed = f"up to {limits.conv_width} wide and {limits.conv_height} high, or {limits.conv_square} x {limits.conv_square}"
        return "kernel", f'a kernel of {height} x {width}; {allowed} ("conv with large kernel")'
    return None
