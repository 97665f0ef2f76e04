"""Writes of a module through views of a tensor, of which a trace loses most on its way through the converter.

The converter takes an operation in place for one that gives a new value: the view has it, and the tensor behind the view stays as it was.
It understands assignments to slices and items (``y[:, 1] = x``), and writes to whole tensors. Core ML Tools 9.0.
"""

import sys
import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from coreflow.export.capture.places import Place, place_on_stack

_ASSIGNED = frozenset({"aten::copy_", "aten::fill_"})
_SLICES = frozenset({"aten::select", "aten::slice"})


class WriteWatch(TorchDispatchMode):
    """Sees every write that a trace would lose.

    >>> with WriteWatch(module) as writes:
    ...     module(x)
    >>> [str(place) for place in writes.lost]
    ['model.py:12 (decoder)']
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._lost: dict[Place | None, None] = {}
        self._views: dict[int, tuple[weakref.ref[Tensor], bool]] = {}  # id of a view -> itself, and whether it is a slice of slices

    @property
    def lost(self) -> tuple[Place | None, ...]:
        """The places of the writes, in the order of execution; None of one outside of any source."""
        return tuple(self._lost)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run ``func``, and look at what it writes to and whether it makes a view."""
        result, name, schema = func(*args, **(kwargs or {})), func._schema.name, func._schema
        if any(self._is_lost(name, target, args) for target in _written(schema, args, kwargs or {})):
            self._lost[place_on_stack(sys._getframe(1), self._module)] = None
        elif not schema.is_mutable and any(entry.alias_info is not None for entry in schema.returns) and isinstance(args[0], Tensor):
            is_slice = name in _SLICES and self._is_slice(args[0])
            for view in result if isinstance(result, list | tuple) else (result,):
                self._views[id(view)] = weakref.ref(view), is_slice
        return result

    def _is_lost(self, name: str, target: Tensor, args: tuple[Any, ...]) -> bool:
        if target._base is None:
            # Of an index for some axes only (``y[:, [3]] = x``), the converter reads none.
            return name == "aten::index_put_" and any(index is None for index in args[1])
        return name not in _ASSIGNED or not self._is_slice(target)

    def _is_slice(self, tensor: Tensor) -> bool:
        """Whether it is a whole tensor, or a slice or an item of one."""
        if tensor._base is None:
            return True
        reference, is_slice = self._views.get(id(tensor), (None, False))
        return is_slice and reference is not None and reference() is tensor


def _written(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    if not schema.is_mutable:
        return []
    values = [
        args[place] if place < len(args) else kwargs.get(argument.name)
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return [value for value in values if isinstance(value, Tensor)]
