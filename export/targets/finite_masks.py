"""A pass: masks whose stand-in for infinity is finite in fp32 stay finite in fp16."""

from typing import Any

import numpy as np

# No quantity is as large: it is ``torch.finfo(torch.float32).min``, or -1e30 and the like, which a softmax turns into nothing.
INFINITE = 1e30
# Two of them, of a causal mask and one of padding, add up within fp16.
FINITE = 3e4
_ON_MASKS = {"add", "sub", "mul", "select"}


def finite_masks(program: Any) -> None:
    """Bring numbers of masks into fp16, where the converter would make them infinite.

    Given::

        %masked = select(cond=%mask, a=-3.4e38, b=%scores)

    Result::

        %masked = select(cond=%mask, a=-3e4, b=%scores)

    A row of which everything is masked is NaN behind the softmax of the first and even behind that of the second, as it is in fp32. Numbers
    that are infinite in the module stay so, and those that bound values, as in ``clip``, are left alone.
    """
    for function in program.functions.values():
        for block in (function, *_inner_blocks(function)):
            _rewrite(block)


def to_finite(value: Any) -> Any:
    """A number, or an array of them, with ``FINITE`` in the place of what stands for infinity.

    >>> to_finite(np.float32(-3.4e38)), to_finite(np.float32(-np.inf)), to_finite(np.float32(7))
    (np.float32(-30000.0), np.float32(-inf), np.float32(7.0))
    """
    return np.where(_stands_for_infinity(value), np.copysign(value.dtype.type(FINITE), value), value)[()]


def _inner_blocks(block: Any) -> list[Any]:
    inner = [block for op in block.operations for block in op.blocks]
    return [*inner, *(block for outer in inner for block in _inner_blocks(outer))]


def _rewrite(block: Any) -> None:
    from coremltools.converters.mil import Builder as mb

    with block:
        for op in list(block.operations):
            if op.op_type == "const" and _is_mask(variable := op.outputs[0]):
                finite = mb.const(val=to_finite(variable.val), before_op=op)
                block.replace_uses_of_var_after_op(anchor_op=op, old_var=variable, new_var=finite)


def _is_mask(variable: Any) -> bool:
    value, readers = variable.val, {op.op_type for op in variable.child_ops}
    is_read = bool(readers) and readers <= _ON_MASKS
    return is_read and getattr(value, "dtype", None) == np.float32 and bool(_stands_for_infinity(value).any())


def _stands_for_infinity(value: Any) -> Any:
    return np.isfinite(value) & (np.abs(value) >= INFINITE)
