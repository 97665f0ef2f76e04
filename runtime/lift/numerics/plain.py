"""What happens to a value after each op: the arithmetic that the lifted backend stands for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from coreflow.export.package.graph import Op, Value
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.backend import NumericsName

Rounding = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Numerics:
    """Floats are computed in ``dtype`` and left as they come."""

    name: NumericsName
    dtype: torch.dtype

    def rounding(self, op: Op | None, output: Value, exact: bool) -> Rounding | None:
        """What to do with ``output`` of ``op`` (None: an input of the function); decided once, before anything runs."""
        return None


@dataclass(frozen=True, slots=True)
class HalfStorage(Numerics):
    """Every value that is declared fp16 is rounded to fp16 where an op can make one that fp16 does not hold.

    The op itself accumulates in fp32: fp16 kernels on a CPU are 6 to 30 times slower and round inside as no device does.
    Overflow becomes inf, as it does in fp16.
    """

    def rounding(self, op: Op | None, output: Value, exact: bool) -> Rounding | None:
        """Rounding to fp16 unless the op only moves values."""
        return None if exact or output.dtype != "float16" else _to_half_and_back


def _to_half_and_back(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float16).to(tensor.dtype)


NUMERICS: dict[NumericsName, Numerics] = {
    "fp64": Numerics("fp64", torch.float64),
    "fp32": Numerics("fp32", torch.float32),
    "fp16": HalfStorage("fp16", torch.float32),
}


@contextmanager
def whole_products(device: torch.device) -> Iterator[None]:
    """CUDA's products of fp32 numbers as such: by default cuDNN drops 13 of their 23 bits (TF32), and a text encoder was off by 2.6e-4."""
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


def numerics_named(name: NumericsName) -> Numerics:
    """The numerics of that name."""
    if name not in NUMERICS:
        raise UnsupportedError(f"numerics {name!r}; choose one of {', '.join(NUMERICS)}", expected=NUMERICS)
    return NUMERICS[name]
