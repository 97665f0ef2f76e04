"""Torch executed as fp16 hardware would: every floating result of an aten operation is rounded to fp16.

Rounded are weights, floating buffers and inputs once, and then every floating result of every aten operation, overflow to inf included.
An operation accumulates in fp32, as the engine's matrix unit and every fp16 library do. Composite operations that torch keeps whole
(``native_layer_norm``, ``_softmax``, ``gelu``, ``convolution``, ``addmm`` with its bias) are one operation here, as they are one in a
saved program: their result is rounded, not what happens inside. Fused attention is taken apart, because a saved program holds its
products and its softmax one by one.

A Python number in the code (``0.1 * x``) is rounded as weights are, since a saved program stores both alike; unrounded numbers would put
a healthy lattice step, all of whose elements have the same number in them, 1.52 times its budget off (measured; 1.00 with the rounding).
Numbers below the smallest normal fp16 number, epsilons as a rule, are not rounded: a program that loses one is at fault. Numbers of masks
that stand for infinity are finite, as our passes keep them in a program.
"""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from coreflow.export.capture.precision import round_to_fp16
from coreflow.export.targets.finite_masks import to_finite
from coreflow.models import fp16

# Operations on two operands, of which a number may be one.
_BINARY_OPERATIONS = frozenset({"aten::add", "aten::sub", "aten::rsub", "aten::mul", "aten::div", "aten::pow"})
# Operations that put a number, of a mask perhaps, into a tensor.
_FILLS = frozenset(f"aten::{name}" for name in ("masked_fill", "where", "full", "full_like", "new_full", "fill", "scalar_tensor"))
_TENSORS = frozenset({"aten::lift_fresh", "aten::lift_fresh_copy"})  # of numbers that the code holds: torch.tensor(...)


class Fp16Rounding(TorchDispatchMode):
    """Rounds every fp32 or fp64 result of an aten operation to fp16.

    >>> with Fp16Rounding():
    ...     module(round_to_fp16(x))
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run ``func`` and round its results."""
        kwargs = kwargs or {}
        operation = func._schema.name.rstrip("_")  # in place too
        if operation in _BINARY_OPERATIONS | _FILLS:
            args = tuple(_rounded_number(argument) for argument in args)
        result = func(*args, **kwargs)
        if operation in _TENSORS and _is_fp32_or_fp64(result):
            result = torch.from_numpy(np.asarray(to_finite(result.numpy())))
        names, written, is_view = _schema_facts(func)
        if not written:
            # A view is nothing new, and a rounded copy would not follow later writes.
            return result if is_view else _rounded(result) if isinstance(result, Tensor) else tree_map(_rounded, result)
        touched: set[int] = set()
        by_name = dict(zip(names, args, strict=False)) | kwargs
        tree_map(lambda value: _round_in_place(value, touched), [by_name.get(name) for name in written])
        return tree_map(lambda value: value if id(value) in touched else _rounded(value), result)


@functools.cache
def _schema_facts(func: Any) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Of an operation: its arguments, those that it writes to, and whether a result shares memory with one of them."""
    arguments, returns = func._schema.arguments, func._schema.returns
    written = tuple(argument.name for argument in arguments if argument.alias_info is not None and argument.alias_info.is_write)
    return tuple(argument.name for argument in arguments), written, any(result.alias_info is not None for result in returns)


def _rounded_number(value: Any) -> Any:
    """A Python number of the code as a program stores it."""
    if not isinstance(value, float):
        return value
    return float(np.float16(value)) if fp16.SMALLEST_NORMAL <= abs(value) <= fp16.MAX else float(to_finite(np.float64(value)))


def _is_fp32_or_fp64(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float64)


def _rounded(value: Any) -> Any:
    return round_to_fp16(value) if _is_fp32_or_fp64(value) else value


def _round_in_place(value: Any, touched: set[int]) -> None:
    if _is_fp32_or_fp64(value):
        value.copy_(round_to_fp16(value))
        touched.add(id(value))
