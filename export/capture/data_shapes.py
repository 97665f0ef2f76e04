"""Operations whose result has a shape that depends on values: a package has fixed shapes, or those that its inputs decide."""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from coreflow.export.capture.places import Place, place_on_stack


class DataShapes(TorchDispatchMode):
    """Sees every operation whose result is as long as the values say: ``nonzero``, ``masked_select``, ``unique``, ``x[mask]``.

    >>> with DataShapes(module) as shapes:
    ...     module(x)
    >>> shapes.places
    {'aten::nonzero': model.py:12 (decoder)}
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self.places: dict[str, Place | None] = {}

    def __str__(self) -> str:
        return ", ".join(f"{name.removeprefix('aten::')}{f' at {place}' if place else ''}" for name, place in self.places.items())

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run ``func``, and look at whether the shape of its result was known before."""
        if torch.Tag.dynamic_output_shape in func.tags and _is_dynamic(func, args):
            self.places.setdefault(func._schema.name, place_on_stack(sys._getframe(1), self._module))
        return func(*args, **(kwargs or {}))


def _is_dynamic(func: Any, args: tuple[Any, ...]) -> bool:
    """An index is so by bools only."""
    if func._schema.name != "aten::index":
        return True
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
