"""What Core ML's planner looks at of an op: its type, shapes, element types, and a few constants."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from coreflow.export.package.graph import Graph, Op, Value

_BITS = {"bool": 8, "string": 0}
_INDEX_ARGUMENTS = {
    "gather": ("indices",),
    "slice_by_size": ("begin",),
    "slice_by_index": ("begin", "end"),
    "slice_update": ("begin", "end"),
}
# Constants that the planner does not count: the cost column of plans with layer_norm, and published estimates of pools show it.
_POOLS = ("avg_pool", "max_pool", "l2_pool")
_POOL_SETTINGS = ("kernel_sizes", "strides", "pad", "pad_type", "ceil_mode", "exclude_padding_from_average")
_UNCOUNTED = {"layer_norm": ("gamma", "beta"), **dict.fromkeys(_POOLS, _POOL_SETTINGS)}


@dataclass(frozen=True, slots=True)
class Tensor:
    """Shape and element type (as numpy spells it) of one value; an open extent counts as 1.

    >>> Tensor((1, 64, 32, 32), "float16").bytes
    131072
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes in memory; sub-byte types are rounded up to whole ones."""
        return math.ceil(self.elements * bits_of(self.dtype) / 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """One op as the planner sees it.

    >>> x = Tensor((1, 64, 32, 32), "float16")
    >>> Features(type="relu", inputs=(x,), outputs=(x,)).bytes
    262144

    ``inputs`` are given at run time, ``constants`` in the file (compressed weights as what they stand for). ``kernel``, ``groups`` and
    ``dilations`` are those of convolutions and pools, ``contraction`` the extent that a matmul sums over, ``permutation`` a transpose's.
    """

    type: str
    inputs: tuple[Tensor, ...] = ()
    constants: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    kernel: tuple[int, ...] = ()
    groups: int = 1
    dilations: tuple[int, ...] = ()
    contraction: int = 0
    permutation: tuple[int, ...] = ()
    has_bias: bool = False
    run_time_weight: bool = False
    run_time_index: bool = False
    is_open: bool = False  # some extent is known only when a prediction runs

    @property
    def bytes(self) -> int:
        """Bytes of all inputs, all constants and the first output."""
        moved = sum(tensor.bytes for tensor in (*self.inputs, *self.constants))
        result = self.outputs[0].bytes if self.outputs else 0
        return moved + (result // 2 if self.type == "stack" else result)

    @property
    def elements(self) -> int:
        """Elements of all inputs and constants."""
        return sum(tensor.elements for tensor in (*self.inputs, *self.constants))


def bits_of(dtype: str) -> int:
    """Bits of one element of a type, such as ``float16`` or ``int4``."""
    if dtype in _BITS:
        return _BITS[dtype]
    digits = dtype.lstrip("abcdefghijklmnopqrstuvwxyz")
    return int(digits) if digits.isdigit() else 0


def features_of(graph: Graph) -> Iterator[tuple[Op, Features]]:
    """Every op of a function that gets a device, in the order of the file, with its features.

    Constants, constant expressions and ``identity`` get none, and an op with blocks is one op.
    """
    constants = {id(value) for op in graph.ops if _is_constant(op) for value in op.outputs}
    for op in graph.ops:
        if not _is_constant(op) and op.type != "identity":
            yield op, _features(op, constants)


def _is_constant(op: Op) -> bool:
    return op.type.startswith("constexpr_")


def _features(op: Op, constants: set[int]) -> Features:
    def is_constant(value: Value) -> bool:
        return value.data is not None or id(value) in constants

    uncounted = _UNCOUNTED.get(op.type, ())
    # A package lists arguments in no order; the planner's first input is what runs through the op.
    names = sorted((name for name in op.inputs if name not in uncounted), key=lambda name: name not in ("x", "data", "query", "values"))
    values = [value for name in names for value in op.argument(name)]
    weight = op.inputs.get("weight")
    indices = (value for name in _INDEX_ARGUMENTS.get(op.type, ()) if name in op.inputs for value in op.argument(name))
    return Features(
        type=op.type,
        inputs=tuple(_tensor(value) for value in values if not is_constant(value)),
        constants=tuple(_tensor(value) for value in values if is_constant(value)),
        outputs=tuple(_tensor(value) for value in op.outputs),
        kernel=_kernel(op),
        groups=(_integers(op, "groups") or (1,))[0],
        dilations=_integers(op, "dilations"),
        contraction=_contraction(op),
        permutation=_integers(op, "perm"),
        has_bias="bias" in op.inputs,
        run_time_weight=isinstance(weight, Value) and not is_constant(weight),
        run_time_index=any(not is_constant(value) for value in indices),
        is_open=any(value.shape is None or None in value.shape for value in (*values, *op.outputs)),
    )


def _tensor(value: Value) -> Tensor:
    return Tensor(tuple(1 if extent is None else extent for extent in value.shape or ()), value.dtype)


def _integers(op: Op, name: str) -> tuple[int, ...]:
    """A constant argument as integers; empty where there is none."""
    value = op.inputs.get(name)
    if not isinstance(value, Value) or not isinstance(value.data, np.ndarray) or value.data.dtype.kind not in "iub":
        return ()
    return tuple(int(number) for number in value.data.reshape(-1))


def _kernel(op: Op) -> tuple[int, ...]:
    return _shape_of(op, "weight")[2:] if op.type in ("conv", "conv_transpose") else _integers(op, "kernel_sizes")


def _contraction(op: Op) -> int:
    shape = _shape_of(op, "x")
    if op.type != "matmul" or not shape:
        return 0
    return shape[-2] if len(shape) > 1 and any(_integers(op, "transpose_x")) else shape[-1]


def _shape_of(op: Op, name: str) -> tuple[int, ...]:
    value = op.inputs.get(name)
    return _tensor(value).shape if isinstance(value, Value) else ()
