"""Arguments in the forms that lowerings ask for: constants as tensors, tensors as Python numbers."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coreflow.export.package.graph import Constant, Op, Value
from coreflow.export.package.weights import release_pages
from coreflow.models.arrays import Array
from coreflow.models.errors import BundleError
from coreflow.runtime.lift.registry import Form

_FLOATS = ("float16", "float32", "float64")
_WORTH_RELEASING = 1 << 16  # bytes of a constant; giving pages of the weight file back takes a call of the system


class Constants:
    """The constants of one program as tensors, made once for every dtype in which they are needed.

    >>> constants = Constants(torch.device("cpu"), "encoder.mlpackage", copies=True)
    >>> constants.tensor(op.inputs["weight"], torch.float32)

    With ``copies``, no float constant shares memory with the weight file, unless it is asked for in its stored dtype. Results of constant
    expressions are constants, too.
    """

    def __init__(self, device: torch.device, package: str, *, copies: bool) -> None:
        self._device = device
        self._package = package
        self._copies = copies
        self._tensors: dict[tuple[int, torch.dtype | None], tuple[Tensor, str]] = {}  # by id of a Value and dtype; with a name

    def __contains__(self, value: Value) -> bool:
        return value.data is not None or (id(value), None) in self._tensors

    def add(self, value: Value, tensor: Tensor) -> None:
        """Makes the result of a constant expression a constant."""
        self._tensors[id(value), None] = tensor, value.name

    def named(self) -> Iterator[tuple[Tensor, str]]:
        """Every tensor with its name in the package, in the order in which they came up."""
        yield from self._tensors.values()

    def tensor(self, value: Value, dtype: torch.dtype | None, op: Op | None = None, argument: str = "") -> Tensor:
        """``value`` as a tensor; floats in ``dtype``, or in their stored dtype for None. ``op`` takes it as ``argument``."""
        key = id(value), dtype if value.dtype in _FLOATS else None
        if key not in self._tensors:
            name = value.name or (f"{op.name}_{argument}" if op else "constant")
            self._tensors[key] = self._converted(value, dtype, op, argument), name
        return self._tensors[key][0]

    def _converted(self, value: Value, dtype: torch.dtype | None, op: Op | None, argument: str) -> Tensor:
        if value.data is None:
            return self._tensors[id(value), None][0].to(dtype)
        if not isinstance(value.data, np.ndarray):
            user = value.name if op is None else f"{op.type} {op.name!r}, argument {argument!r}"
            raise BundleError(f"{self._package}: {user} needs a tensor and is {value.data!r}")
        tensor = as_tensor(value.data, dtype, copy=self._copies).to(self._device)
        if dtype is not None:
            release(value)
        return tensor


def as_tensor(data: Array, float_dtype: torch.dtype | None, *, copy: bool = False) -> Tensor:
    """``data`` as a tensor: floats in ``float_dtype`` (None: as they are), integers of every width as int32, booleans as bool.

    It shares the memory of ``data`` where nothing had to be converted, floats of a given ``float_dtype`` only without ``copy``.
    """
    if data.dtype.kind in "iu" and data.dtype != np.int32:
        data = data.astype(np.int32)
    elif data.dtype == np.float64 and float_dtype != torch.float64:
        data = data.astype(np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to a constant
        tensor = torch.from_numpy(np.ascontiguousarray(data).reshape(data.shape))
    return tensor.to(float_dtype, copy=copy) if float_dtype is not None and tensor.is_floating_point() else tensor


def release(value: Value) -> None:
    """Frees the pages of the weight file after a constant was copied."""
    if isinstance(value.data, np.ndarray) and value.data.nbytes > _WORTH_RELEASING:
        release_pages(value.data)


def convert(form: Form, value: Any) -> Any:
    """A computed argument in the form that a lowering asks for."""
    if form in ("tensor", "raw"):
        return value
    if form == "tensors":
        return value if isinstance(value, tuple) else (value,)
    if isinstance(value, tuple):
        return tuple(part.item() if isinstance(part, Tensor) else part for part in value)
    numbers = value.tolist()
    if form == "scalar":
        return numbers[0] if isinstance(numbers, list) else numbers
    return tuple(numbers) if isinstance(numbers, list) else (numbers,)


def plain(form: Form, data: Constant) -> Any:
    """Constant data as a Python scalar or a tuple of them."""
    numbers = data.tolist() if isinstance(data, np.ndarray) else data
    if form == "scalar":
        return numbers[0] if isinstance(numbers, list | tuple) and len(numbers) == 1 else numbers
    return tuple(numbers) if isinstance(numbers, list | tuple) else (numbers,)
