"""The lowerings of one opset as functions, for lifted source code.

>>> ops = opset("CoreML7")
>>> y = ops.linear(x, weight=weight, bias=bias)
"""

from types import SimpleNamespace
from typing import Any

from coreflow.models.errors import UnsupportedError
from coreflow.runtime.lift.ops.state import StateBuffer
from coreflow.runtime.lift.plan.arguments import convert
from coreflow.runtime.lift.registry import OPSETS, find, load_lowerings, supported_ops

__all__ = ["StateBuffer", "as_number", "as_numbers", "opset"]


def opset(name: str) -> SimpleNamespace:
    """Every lowering that the opset ``name`` (CoreML5 is iOS15's, CoreML8 iOS18's) has, as an attribute of that name."""
    if name not in OPSETS:
        raise UnsupportedError(f"opset {name!r}; known are {', '.join(OPSETS)}")
    load_lowerings()
    lowerings = {op: find(op, name) for op in supported_ops()}
    return SimpleNamespace(**{op: lowering.function for op, lowering in lowerings.items() if lowering is not None})


def as_number(value: Any) -> Any:
    """A computed tensor of one element as the Python number that an op's attribute takes."""
    return convert("scalar", value)


def as_numbers(*values: Any) -> Any:
    """A computed vector, or several scalars, as a tuple of Python numbers."""
    return convert("sequence", values[0] if len(values) == 1 else values)
