"""Indices of a module: whether they may be negative, which decides whether a package needs a guard."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from coreflow.models.spec import TensorSpec

# Only x[i] counts negative indices from the end; embedding, gather and index_select refuse them.
_INDEXING = frozenset({"aten::index", "aten::_unsafe_index"})


class IndexWatch(TorchDispatchMode):
    """Sees every tensor by which a module indexes.

    >>> with IndexWatch() as watch:
    ...     module(ids)
    >>> watch.may_be_negative(recipe.inputs.values())
    """

    def __init__(self) -> None:
        super().__init__()
        self.indexes = self._negative = False  # whether tensors were indices

    def may_be_negative(self, inputs: Iterable[TensorSpec]) -> bool:
        """Whether an index was negative, or may become so by ``inputs``: whole numbers without a lower bound, or with one below 0."""
        is_open = any(spec.dtype == "int32" and (spec.bounds is None or spec.bounds[0] < 0) for spec in inputs)
        return self._negative or (self.indexes and is_open)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run ``func`` and look at its indices."""
        if func._schema.name in _INDEXING:
            indices = [index for index in args[1] if isinstance(index, Tensor) and index.dtype not in (torch.bool, torch.uint8)]
            self.indexes |= bool(indices)
            self._negative |= any(bool((index < 0).any()) for index in indices)
        return func(*args, **(kwargs or {}))
