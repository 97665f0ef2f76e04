"""Values that a module reads of its tensors while it runs (``.item()``, ``int()``, ``if`` on a tensor): a trace freezes them."""

import ast
import functools
import linecache
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from coreflow.export.capture.places import short_name

_TORCH = str(Path(torch.__file__).parent)
_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
_OF_SHAPES = frozenset(
    f"aten::{name}" for name in ("empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like")
)


@dataclass(frozen=True, slots=True)
class ValueRead:
    """A line that reads a value of a tensor that depends on the inputs.

    >>> str(ValueRead(file="model.py", line=12, value=False))
    'model.py:12'
    """

    file: str
    line: int
    value: bool | int | float

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class ValueReads(TorchDispatchMode):
    """Records every value that is read of a tensor that depends on ``inputs``; those that only guard an error are left out.

    >>> with ValueReads(inputs) as reads:
    ...     module(*inputs)
    >>> [str(read) for read in reads.values]
    ['model.py:12']
    """

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.values: list[ValueRead] = []
        self._dependent = {StorageWeakRef(tensor.untyped_storage()) for tensor in inputs}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run ``func``; its results depend on the inputs if anything that it reads does."""
        result = func(*args, **(kwargs or {}))
        operands = list(_tensors_in((args, tuple((kwargs or {}).values()))))
        if any(StorageWeakRef(tensor.untyped_storage()) in self._dependent for tensor in operands):
            if func in _READS:
                self._record(result)
            elif func._schema.name not in _OF_SHAPES:
                written = operands[:1] if func._schema.is_mutable else []
                self._dependent |= {StorageWeakRef(tensor.untyped_storage()) for tensor in (*_tensors_in(result), *written)}
        return result

    def _record(self, value: Any) -> None:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code.co_filename.startswith(_TORCH):
            frame = frame.f_back
        if frame is not None and frame.f_lineno not in _lines_of_guards(frame.f_code.co_filename):
            self.values.append(ValueRead(short_name(frame.f_code.co_filename), frame.f_lineno, value))


def _tensors_in(values: Any) -> Iterator[Tensor]:
    for value in values if isinstance(values, tuple | list) else (values,):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors_in(value)


@functools.cache
def _lines_of_guards(file: str) -> frozenset[int]:
    """Lines of conditions without which the code raises an error and does nothing else: ``assert x``, ``if x: raise``."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return frozenset()
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert | ast.If) and (isinstance(node, ast.Assert) or isinstance(node.body[0], ast.Raise)):
            lines.update(range(node.test.lineno, (node.test.end_lineno or node.test.lineno) + 1))
    return frozenset(lines)
