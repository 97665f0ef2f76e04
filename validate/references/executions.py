"""The error that fp16 itself makes: the user's own torch module, executed as fp16 would, against its execution in float64.

This simulation shares nothing with the lifted programs: neither their lowerings nor the converter's graph. A program judged
by the rounding of its own interpreter could not fail.

What is rounded: weights, floating buffers and inputs once, and then every floating result of every aten operation, overflow
to inf included. An operation accumulates in fp32, as the engine's matrix unit and every fp16 library do. Composite
operations that torch keeps whole (``native_layer_norm``, ``_softmax``, ``gelu``, ``convolution``, ``addmm`` with its bias) are
one operation here, as they are one in a saved program: their result is rounded, not what happens inside. Fused attention
is taken apart, because a saved program holds its products and its softmax one by one.

A Python number in the code (``0.1 * x``) is rounded as weights are, since a saved program holds it as it holds those; if it stayed exact,
a healthy lattice step, all of whose elements have the same number in them, would be 1.52 times as far off as its budget (measured; 1.00
with the rounding). Numbers below what fp16 holds with all its bits, epsilons as a rule, stay exact: a program that loses one is at fault.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from coreflow.export.capture import tensors
from coreflow.models.errors import ConfigError, CoreflowError
from coreflow.validate.references.choices import Choice, Choices

Array = np.ndarray[Any, Any]
Precision = Literal["fp16", "fp32"]


# Operations on two operands, of which a number may be one.
_OPERATIONS = frozenset({"aten::add", "aten::sub", "aten::rsub", "aten::mul", "aten::div", "aten::pow"})
_SMALLEST_NORMAL, _LARGEST = 2.0**-14, 65504.0


def round_to_half(values: Tensor) -> Tensor:
    """The nearest numbers that fp16 holds, in the dtype of ``values``; beyond 65504 inf."""
    return values.to(torch.float16).to(values.dtype)


class HalfRounding(TorchDispatchMode):
    """Inside, every fp32 or fp64 result of an aten operation is rounded to fp16."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run ``func`` and round what it made."""
        kwargs = kwargs or {}
        if func._schema.name.rstrip("_") in _OPERATIONS:  # in place too
            args = tuple(_held(each) for each in args)
        result = func(*args, **kwargs)
        names, written, views = _effects(func)
        if not written:
            # A view is nothing new, and a rounded copy would not follow later writes.
            return result if views else _rounded(result) if isinstance(result, Tensor) else tree_map(_rounded, result)
        touched: set[int] = set()
        by_name = dict(zip(names, args, strict=False)) | kwargs
        tree_map(lambda value: _round_in_place(value, touched), [by_name.get(each) for each in written])
        return tree_map(lambda value: value if id(value) in touched else _rounded(value), result)


@functools.cache
def _effects(func: Any) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """The arguments of an operation, those that it writes to, and whether what it gives shares memory with one."""
    arguments, returns = func._schema.arguments, func._schema.returns
    written = tuple(each.name for each in arguments if each.alias_info is not None and each.alias_info.is_write)
    return tuple(each.name for each in arguments), written, any(each.alias_info is not None for each in returns)


def _held(value: Any) -> Any:
    """A number of the code as a program holds it."""
    return float(np.float16(value)) if isinstance(value, float) and _SMALLEST_NORMAL <= abs(value) <= _LARGEST else value


def _is_wide(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float64)


def _rounded(value: Any) -> Any:
    return round_to_half(value) if _is_wide(value) else value


def _round_in_place(value: Any, touched: set[int]) -> None:
    if _is_wide(value):
        value.copy_(round_to_half(value))
        touched.add(id(value))


class Executions:
    """A module executed twice: in float64, and in the arithmetic whose error is the budget. The module itself is left as it was.

    It is what a package is compared with by default (``references.Reference``).

    ``precision`` is the package's: its inputs and weights are rounded to it, and fp32's own execution is the budget of an
    fp32 package.
    """

    label = "torch in float64"

    def __init__(self, module: nn.Module, precision: Precision = "fp16", *, notes_choices: bool = False) -> None:
        self.budget = f"torch's own {precision}"
        self._exact = converted_copy(module, lambda tensor: tensor.double())
        self._simulated = converted_copy(module, lambda tensor: round_to_half(tensor.float()) if precision == "fp16" else tensor.float())
        self._source, self._single = module, None if precision == "fp16" else self._simulated
        self._precision = precision
        self._notes_choices = notes_choices
        self.choices: list[Choice] = []  # of the latest call, if they are noted
        self.decides = callable(getattr(module, "decision_margins", None))

    def exact(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """The outputs in float64: R0. ``inputs`` are passed in their order."""
        return self._call(self._exact, inputs, torch.float64)

    def simulated(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """The outputs of the simulated arithmetic."""
        return self._call(self._simulated, inputs, torch.float32)

    def single(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """The outputs in float32, nothing rounded further: R1."""
        if self._single is None:
            self._single = converted_copy(self._source, lambda tensor: tensor.float())
        return self._call(self._single, inputs, torch.float32, rounds=False)

    def exact_margins(self, inputs: Mapping[str, Array]) -> Array:
        """What the module's ``decision_margins`` gives in float64."""
        return self._call(self._exact, inputs, torch.float64, "decision_margins")[0]

    def simulated_margins(self, inputs: Mapping[str, Array]) -> Array:
        """What it gives in the simulated arithmetic."""
        return self._call(self._simulated, inputs, torch.float32, "decision_margins")[0]

    def _call(
        self, module: nn.Module, inputs: Mapping[str, Array], dtype: torch.dtype, method: str = "__call__", *, rounds: bool = True
    ) -> tuple[Array, ...]:
        # Cloned: a module may write to its inputs, and they are the caller's.
        given = [tensor.clone() for tensor in tensors(inputs, dtype).values()]
        rounding = HalfRounding() if rounds and self._precision == "fp16" and dtype == torch.float32 else contextlib.nullcontext()
        if not isinstance(rounding, contextlib.nullcontext):
            given = [round_to_half(each) if each.is_floating_point() else each for each in given]
        noting = Choices() if self._notes_choices else contextlib.nullcontext()
        with plainly(dtype), rounding, noting:
            try:
                result = getattr(module, method)(*given)
            except CoreflowError:
                raise
            except Exception as error:
                shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
                raise ConfigError(f"the reference {type(module).__name__} does not run in {dtype} on {shapes}: {error}") from error
        self.choices = noting.found if isinstance(noting, Choices) else []
        return tuple(each.detach().numpy() for each in _as_tuple(result, type(module).__name__))


def _as_tuple(result: object, label: str) -> Sequence[Tensor]:
    if isinstance(result, Mapping):
        result = tuple(result.values())
    found = (result,) if isinstance(result, Tensor) else result
    if not isinstance(found, tuple | list) or not all(isinstance(each, Tensor) for each in found):
        raise ConfigError(f"the reference {label} returns {type(result).__name__}; a tensor or a tuple of tensors can be compared")
    return found


def converted_copy(module: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy on the CPU in eval mode, with every floating parameter, buffer and plain tensor attribute converted.

    One tensor used twice stays one. Raises ``ConfigError`` when the module cannot be copied.
    """
    try:
        copied = copy.deepcopy(module).cpu().eval()
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"the reference {type(module).__name__} cannot be copied: {error}") from error
    made: dict[int, Tensor] = {}
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.is_floating_point():
                parameter.data = convert(parameter.data)
        for part in copied.modules():
            for place in (part._buffers, vars(part)):
                for name, value in place.items():
                    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.is_floating_point():
                        place[name] = made.setdefault(id(value), convert(value))
    return copied


@contextlib.contextmanager
def plainly(dtype: torch.dtype) -> Iterator[None]:
    """No gradients, no fused fast paths that would hide operations, and new tensors in ``dtype``; all put back afterwards."""
    default, fast, onednn = torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled(), bool(torch.backends.mkldnn.enabled)
    torch.backends.mha.set_fastpath_enabled(False)
    _set_onednn(False)  # it runs a whole LSTM as one operation
    torch.set_default_dtype(dtype)
    try:
        # Not inference mode, in which composite operations reach the rounding whole.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.set_default_dtype(default)
        torch.backends.mha.set_fastpath_enabled(fast)
        _set_onednn(onednn)


def _set_onednn(enabled: bool) -> None:
    # Not torch.backends.mkldnn.flags, which also touches an option of Intel GPUs and warns where there is none.
    torch.backends.mkldnn.enabled = enabled  # type: ignore[assignment]
