"""Plain numerics: floats are computed in fp32 or fp64 and left as they come."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coreflow.export.package.graph import Op, Value
from coreflow.runtime.backend import NumericsName

Rounding = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Numerics:
    """The arithmetic that the lifted backend stands for: the dtype in which ops compute, and what happens to their results.

    >>> Numerics("fp64", torch.float64).rounding(op, op.outputs[0])  # None: results are left as they come
    """

    name: NumericsName
    dtype: torch.dtype

    def function(self, op: Op, function: Callable[..., Any]) -> Callable[..., Any]:
        """What computes ``op``: ``function``, its lowering, or another of the same arguments. Decided once, before anything runs."""
        return function

    def rounding(self, op: Op, output: Value) -> Rounding | None:
        """The rounding of ``output``, a result of ``op``; None for none. Decided once, before anything runs."""
        return None


@contextmanager
def without_tf32(device: torch.device) -> Iterator[None]:
    """Products of fp32 numbers in fp32 on CUDA: by default cuDNN drops 13 of their 23 bits (TF32), and a text encoder was off by 2.6e-4."""
    if device.type != "cuda":
        yield
        return
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before
