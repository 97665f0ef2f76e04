"""Registry of lowerings: a torch operation as operations of MIL, for both front ends of the converter.

A lowering is a function of the operation's arguments, in the order and with the defaults of torch's schema. Its annotations say what it
takes: ``Var``, or none, stays a variable of the program; ``int``, ``float``, ``bool``, ``str`` and ``Ints`` are numbers known at
conversion, and an argument that is not known then is refused by name. A lowering that returns ``NotImplemented`` leaves the operation
to coremltools. Trailing arguments without meaning for a program are caught by ``*_`` and ``**_``.
"""

import contextlib
import inspect
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.models.errors import ConfigError, ExportError

Function = TypeVar("Function", bound=Callable[..., Any])
Ints = Sequence[int]  # of an argument that is a list of whole numbers

_FAMILIES = ("arithmetic", "creation", "indexing", "logic", "normalisation", "reductions", "resampling", "spectra", "structure")
_HERE = Path(__file__).resolve().parent
_LOCK = threading.RLock()  # the converter's registry is one for the whole process
_BESIDE_OVERLOADS = ("__{}__", "__i{}__", "{}", "i{}")  # the forms of ``&`` and the like, under which the front ends look it up


@dataclass(frozen=True, slots=True)
class Lowering:
    """A torch operation and the function that builds it of MIL operations.

    >>> LOWERINGS["aten::roll"].summary
    """

    operation: str  # aten::roll, or library::name of an operation of one's own
    function: Callable[..., Any]
    file: Path

    @property
    def summary(self) -> str:
        """First line of its docstring: what the operation becomes."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def is_own(self) -> bool:
        """Whether it is coreflow's, not of a user's file."""
        return self.file.parent == _HERE

    @property
    def source(self) -> str:
        """Text of its file, functions that it calls included; of the function alone where that was typed in and has no file."""
        return self.file.read_text(encoding="utf-8") if self.file.is_file() else inspect.getsource(self.function)


LOWERINGS: dict[str, Lowering] = {}


def torch_lowering(*operations: str) -> Callable[[Function], Function]:
    """Decorator: the function lowers these torch operations, in every conversion of this process.

    >>> from coremltools.converters.mil import Builder as mb
    >>> @torch_lowering("my_library::scale")
    ... def scale(x: Var, factor: float = 2.0) -> Var:
    ...     "x * factor"
    ...     return mb.mul(x=x, y=factor)

    A name without ``::`` is one of torch's own. A user's lowering stands in for one of coreflow or of coremltools, and its text is part of
    the fingerprint. ``ConfigError`` for a second function of one operation within one file.
    """
    if not operations:
        raise ConfigError("torch_lowering() names no operation; give one, as in torch_lowering('aten::roll')")

    def register(function: Function) -> Function:
        file = Path(inspect.getfile(function)).resolve()
        for name in operations:
            operation = name if "::" in name else f"aten::{name}"
            other = LOWERINGS.get(operation)
            if other is not None and other.file == file and other.function.__qualname__ != function.__qualname__:
                raise ConfigError(f"{file.name}: both {other.function.__name__} and {function.__name__} lower {operation}; keep one")
            LOWERINGS[operation] = Lowering(operation, function, file)
        return function

    return register


def user_lowerings() -> list[Lowering]:
    """Those of users' files, by operation."""
    return [lowering for _, lowering in sorted(LOWERINGS.items()) if not lowering.is_own]


def user_sources(operations: str) -> list[str]:
    """Texts of users' lowerings that a program of these operations, in words, may be converted by."""
    return [f"{one.operation} {one.source}" for one in user_lowerings() if one.operation.rpartition("::")[2] in operations]


def load_families() -> None:
    """Make sure that coreflow's own lowerings are in ``LOWERINGS``, behind those of users."""
    users = dict(LOWERINGS)
    quiet_coremltools()
    for family in _FAMILIES:
        import_module(f"coreflow.export.targets.lowerings.{family}")
    LOWERINGS.update({name: lowering for name, lowering in users.items() if not lowering.is_own})


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Within it coremltools converts by our lowerings; afterwards its registry is as it was."""
    with _LOCK:
        load_families()
        from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

        table = _TORCH_OPS_REGISTRY.name_to_func_mapping
        before = dict(table)
        try:
            for lowering in LOWERINGS.values():
                for kind in _kinds(lowering.operation):
                    _TORCH_OPS_REGISTRY.set_func_by_name(_translation(lowering, before.get(kind)), kind)
            yield
        finally:
            table.clear()
            table.update(before)


def _kinds(operation: str) -> set[str]:
    """Every name under which the converter's front ends look an operation up: a trace's has no overload, an exported program's has."""
    import torch
    from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind

    library, _, name = operation.partition("::")
    packet = getattr(getattr(torch.ops, library), name, None)
    names = {operation, *(f"{operation}.{overload}" for overload in (packet.overloads() if packet is not None else ()))}
    kinds = {sanitize_op_kind(name) for name in names}
    if operation.startswith("aten::__"):
        # The trace's own spelling; a name between underscores is stripped twice for a trace, once for an exported program.
        kinds |= {form.format(name.strip("_")) for form in _BESIDE_OVERLOADS}
    return kinds


def _translation(lowering: Lowering, otherwise: Callable[[Any, Any], None] | None) -> Callable[[Any, Any], None]:
    """The lowering as the converter calls it; ``otherwise`` is the converter's own."""

    def translate(context: Any, node: Any) -> None:
        given = [_read(context, argument) for argument in node.inputs]
        # A keyword that means nothing to a program, as a device, arrives as an empty tuple.
        keywords = {name: _read(context, values[0]) for name, values in (node.kwinputs or {}).items() if values}
        bound = _bind(lowering, given, keywords)
        result = lowering.function(*bound.args, **bound.kwargs)
        if result is NotImplemented:
            if otherwise is None:
                raise ExportError(f"{lowering.operation} of these arguments has no lowering, neither in coreflow nor in coremltools")
            otherwise(context, node)
            return
        if len(node.outputs) == 1:
            context.add(_as_result(result, node.name, given), torch_name=node.name)
            return
        for name, value in zip(node.outputs, result, strict=True):  # a trace names each
            context.add(_as_result(value, name, given), torch_name=name)

    return translate


def _bind(lowering: Lowering, given: Sequence[Any], keywords: dict[str, Any]) -> inspect.BoundArguments:
    signature = inspect.signature(lowering.function)
    try:
        bound = signature.bind(*given, **keywords)
    except TypeError as error:
        raise ExportError(f"lowering of {lowering.operation}: {error}; its function takes {signature}") from error
    for name, value in bound.arguments.items():
        parameter = signature.parameters[name]
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.annotation is not parameter.empty and not re.search("Var|Any", str(parameter.annotation)):
            bound.arguments[name] = known(value, f"{lowering.operation}: {name}")
    return bound


def _read(context: Any, argument: Any) -> Any:
    """An argument of a node: names are looked up, numbers are as they are."""
    if isinstance(argument, str) and argument in context:
        return context[argument]
    if isinstance(argument, tuple | list):
        return [_read(context, part) for part in argument]
    return argument


def known(value: Any, what: str) -> Any:
    """The Python value of an argument, lists as tuples; ``ExportError``, which begins with ``what``, where the program computes it."""
    if isinstance(value, list | tuple):
        return tuple(known(part, what) for part in value)
    if not hasattr(value, "sym_type"):
        return value
    if value.val is None:
        raise ExportError(f"{what} is computed from the inputs; a constant is needed")
    array = np.asarray(value.val)
    # The converter keeps floats in fp32: 1.7 of the source is the shortest number that rounds to it.
    plain = [float(str(number)) if array.dtype == np.float32 else number.item() for number in array.flat]
    return tuple(plain) if array.ndim else plain[0]


def _as_result(result: Any, name: str, given: Sequence[Any]) -> Any:
    """The result under the name of the torch node, by which reports find the line of the source. An argument is handed on as a copy: as an
    output it would lend the input its name."""
    if isinstance(result, list | tuple):
        return [_as_result(part, f"{name}_{place}", given) for place, part in enumerate(result)]
    if any(result is argument for argument in given):
        from coremltools.converters.mil import Builder as mb

        return mb.identity(x=result, name=name)
    result.name = result.op.name = name
    return result
