"""Casts and epsilons inside a module, in the precision of its run.

``x.float()``, ``x.half()``, ``dtype=torch.float32`` of a constructor, an autocast: a module that computes in several precisions is one
function, and the precision of a run is the run's. The reference is float64 throughout; the simulation of fp16 rounds every result, as a
program at FLOAT16 does, whose converter takes such casts out.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_EPSILON = torch.finfo(torch.float32).eps


class CastsTo(TorchDispatchMode):
    """Takes every floating dtype that an operation names for ``dtype``, and every floating tensor that it reads.

    >>> with CastsTo(torch.float64):
    ...     module(x.double())  # and a x.float() in it rounds nothing

    Complex dtypes become the one whose parts are ``dtype``.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run ``func`` in the precision of the run."""
        kwargs = kwargs or {}
        if func is torch.ops.aten.view.dtype:  # the bits of a tensor as other numbers: no cast
            return func(*args, **kwargs)
        if func is torch.ops.aten.lift_fresh.default:  # torch.tensor(..., dtype=...)
            return self._cast(func(*args, **kwargs))
        # A copy in the place of an argument that is written to, or of which a view is taken, would not follow later writes.
        is_new = all(entry.alias_info is None for entry in (*func._schema.arguments, *func._schema.returns))
        args, kwargs = tree_map(self._cast if is_new else self._named, (args, kwargs))
        return func(*args, **kwargs)

    def _named(self, value: Any) -> Any:
        """A dtype as the run has it."""
        if not isinstance(value, torch.dtype):
            return value
        return self._dtype if value.is_floating_point else self._dtype.to_complex() if value.is_complex else value

    def _cast(self, value: Any) -> Any:
        """A dtype, or the elements of a floating tensor, as the run has them."""
        if isinstance(value, Tensor):
            return value.to(self._dtype) if value.is_floating_point() and value.dtype != self._dtype else value
        return self._named(value)


class Float32Epsilon(TorchFunctionMode):
    """Gives an RMS norm without an epsilon float32's, which the exported module has; it would take that of the run's precision.

    >>> with Float32Epsilon():
    ...     nn.RMSNorm(64)(x.double())
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run ``func``, an RMS norm with an epsilon."""
        kwargs = kwargs or {}
        if func in (functional.rms_norm, torch.rms_norm):
            named = dict(zip(("input", "normalized_shape", "weight", "eps"), args, strict=False)) | kwargs
            args, kwargs = (), {**named, "eps": _EPSILON if named.get("eps") is None else named["eps"]}
        return func(*args, **kwargs)
