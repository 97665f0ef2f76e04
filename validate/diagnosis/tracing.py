"""Traces of torch modules: every result of every aten operation on one sample, with its place in the source."""

import functools
import sys
import sysconfig
import weakref
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from coreflow.export.capture.calls import call
from coreflow.export.capture.casts import CastsTo
from coreflow.export.capture.evaluation import tensors
from coreflow.export.capture.places import short_name
from coreflow.export.capture.precision import converted_copy, plain_torch, round_to_fp16
from coreflow.models.arrays import Arrays
from coreflow.models.errors import ConfigError, CoreflowError
from coreflow.runtime import lift
from coreflow.validate.diagnosis.fingerprints import Fingerprint, fingerprint, scaled
from coreflow.validate.inputs.states import StatelessModule
from coreflow.validate.report.model import Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedValue:
    """A result of one torch operation, in the order of execution.

    >>> value = trace_values(module, {"x": x})[0]
    >>> f"{value.origin.operation} at line {value.origin.line}"
    'aten.mm.default at line 31'
    """

    index: int
    origin: Origin
    fingerprint: Fingerprint
    constant: bool = False  # the same for all inputs; a converter computes most of these itself
    write: "Write | None" = None  # of a whole tensor, after a write into it or into a part of it


@dataclass(frozen=True, slots=True)
class Write:
    """An operation in place, or one that is told where to put its result.

    >>> [value.write for value in trace_values(module, inputs) if value.write]
    [Write(number=0, before=4)]
    """

    number: int  # in the order of execution
    before: int  # index of the whole tensor's value until then; -1 if that is an input or a constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """All values of one execution, what it was given and what it returned.

    >>> trace(module, inputs).outputs[0].shape
    torch.Size([4, 16])
    """

    inputs: tuple[Fingerprint, ...]
    values: tuple[TracedValue, ...]
    outputs: tuple[Tensor, ...]


def trace_values(module: nn.Module, inputs: Arrays, *, fp16_weights: bool = False) -> tuple[TracedValue, ...]:
    """The values of ``trace``."""
    return trace(module, inputs, fp16_weights=fp16_weights).values


def trace(module: nn.Module, inputs: Arrays, *, names: Sequence[str] = (), fp16_weights: bool = False, lost: Collection[int] = ()) -> Trace:
    """Every result of every aten operation of ``module`` on one sample, in float64 on the CPU; the module is left as it was.

    ``names`` are those of the outputs, where the module returns them by name.
    ``fp16_weights`` rounds weights and buffers to fp16 first, as an fp16 package does.
    Views count as operations, unless they are views of constants. A write into a part of a tensor also gives the whole of it.
    The writes of the numbers in ``lost`` are done as a converter that loses them does: they reach the view that they are done through, and
    not the tensor that it is a view of; without a view, nothing.
    Raises ``ConfigError`` when the module cannot be copied or does not run.
    """
    copied = converted_copy(module, (lambda tensor: round_to_fp16(tensor).double()) if fp16_weights else Tensor.double)
    arguments = {name: tensor.clone() for name, tensor in tensors(inputs, torch.float64).items()}  # a module may write to them
    given = tuple(map(fingerprint, arguments.values()))
    recorder = _Recorder(copied, lost)
    with plain_torch(torch.float64), recorder, CastsTo(torch.float64):
        try:
            outputs = call(copied, arguments, names)
        except CoreflowError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise ConfigError(f"the reference {type(module).__name__} does not run in float64 on {shapes}: {error}") from error
    return Trace(inputs=given, values=tuple(recorder.traced), outputs=recorder.with_stand_ins(outputs))


def _aten(names: str) -> frozenset[str]:
    return frozenset(f"aten::{name}" for name in names.split())


# Views that hold every element of their source once, provided that they hold as many: their source need not be summed again.
_REARRANGING = _aten("_reshape_alias _unsafe_view alias detach permute select slice squeeze t transpose unsqueeze view")
_UNINITIALISED = _aten("empty empty_like empty_strided new_empty new_empty_strided")
# Operations that read nothing of their tensor but the shape.
_OF_SHAPES = _UNINITIALISED | _aten("full_like new_full new_ones new_zeros ones_like zeros_like")


class _Recorder(TorchDispatchMode):
    """Records every result of an aten operation."""

    def __init__(self, module: nn.Module, lost: Collection[int]) -> None:
        super().__init__()
        self.traced: list[TracedValue] = []
        self._lost, self._writes = lost, 0
        self._stand_ins: dict[int, tuple[Tensor, Tensor]] = {}  # id of a view -> itself, and what it holds after a write that was lost
        self._wholes: dict[int, int] = {}  # storage -> index of the latest value of the tensor that is all of it
        whole = module.module if isinstance(module, StatelessModule) else module
        self._paths = {id(part): path for path, part in whole.named_modules()}  # a module used twice has its first name
        self._constants = {_storage(tensor) for tensor in _constants(module)}  # storages of tensors that depend on no input
        self._known: dict[int, tuple[weakref.ref[Tensor], int, Fingerprint]] = {}  # id of a tensor -> itself, its version, ...

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run ``func`` and record its results and what it wrote."""
        args, kwargs = self.with_stand_ins((args, kwargs or {}))
        name, writes, is_view = _schema_facts(func)
        if not writes:
            return self._run(func, args, kwargs, name, is_view)
        targets = [tensor for place, key in writes for tensor in _tensors_in(args[place] if place < len(args) else kwargs.get(key))]
        self._writes += 1
        if self._writes - 1 not in self._lost:
            return self._run(func, args, kwargs, name, is_view, targets)
        copies = {id(tensor): tensor.clone() for tensor in targets}
        args, kwargs = tree_map_only(Tensor, lambda tensor: copies.get(id(tensor), tensor), (args, kwargs))
        self._run(func, args, kwargs, name, is_view)
        self._stand_ins.update((id(tensor), (tensor, copies[id(tensor)])) for tensor in targets if tensor._base is not None)
        return targets[0] if len(targets) == 1 else tuple(targets)

    def with_stand_ins(self, values: Any) -> Any:
        """``values`` with the stand-ins of views whose writes were lost."""
        if not self._stand_ins:
            return values
        return tree_map_only(Tensor, lambda tensor: self._stand_ins.get(id(tensor), (tensor, tensor))[1], values)

    def _run(self, func: Any, args: Any, kwargs: Any, name: str, is_view: bool, written: Sequence[Tensor] = ()) -> Any:
        result = func(*args, **kwargs)
        bases = [tensor._base for tensor in written if tensor._base is not None]
        made = {id(tensor): tensor for tensor in (*_tensors_in(result), *written, *bases)}
        constant = name in _OF_SHAPES or all(_storage(tensor) in self._constants for tensor in _tensors_in((*args, *kwargs.values())))
        # A new storage may lie where another one was.
        (self._constants.update if constant else self._constants.difference_update)(map(_storage, made.values()))
        if name in _UNINITIALISED:
            self._wholes.update((_storage(tensor), -1) for tensor in made.values())
        if name in _UNINITIALISED or (constant and is_view):
            return result
        source = args[0] if name in _REARRANGING else None
        origin = self._origin(str(func), sys._getframe(2))
        for tensor in (tensor for tensor in made.values() if tensor.numel()):
            index, sums, write = len(self.traced), self._fingerprint(tensor, source), None
            if tensor._base is None and not is_view:  # the result of a view has no base yet
                if written:
                    write = Write(self._writes - 1, self._wholes.get(_storage(tensor), -1))
                self._wholes[_storage(tensor)] = index
            self.traced.append(TracedValue(index=index, origin=origin, fingerprint=sums, constant=constant, write=write))
            if func is torch.ops.aten.mul.Scalar:
                # Torch's attention scales queries and keys by the root of its factor each, and nothing else calls this overload.
                # Programs scale the queries by the whole factor.
                sums = scaled(sums, float(args[1]))
                self.traced.append(TracedValue(index=index + 1, origin=origin, fingerprint=sums, constant=constant))
        return result

    def _fingerprint(self, tensor: Tensor, source: Tensor | None) -> Fingerprint:
        known = None if source is None or source.numel() != tensor.numel() else self._recall(source)
        sums = known or fingerprint(tensor)
        if not tensor.is_inference():  # those have no version
            self._known[id(tensor)] = weakref.ref(tensor), tensor._version, sums
        return sums

    def _recall(self, tensor: Tensor) -> Fingerprint | None:
        """The fingerprint that ``tensor`` had and still has."""
        reference, version, sums = self._known.get(id(tensor), (None, 0, None))
        return sums if reference is not None and reference() is tensor and tensor._version == version else None

    def _origin(self, operation: str, frame: FrameType | None) -> Origin:
        """From the Python stack, innermost first: the first frame that belongs to a submodule, and the first one of the user's code.

        Not from hooks, which see calls of ``forward`` only: models call other methods of their parts as well.
        """
        module: str | None = None
        user: FrameType | None = None
        layer: FrameType | None = None
        while frame is not None and frame.f_code.co_filename != _HERE:
            code = frame.f_code
            kind = _kind(code.co_filename)
            user = user or (frame if kind == "user" else None)
            layer = layer or (frame if kind == "layer" else None)
            if module is None and code.co_argcount:
                module = self._paths.get(id(frame.f_locals.get(code.co_varnames[0])))
            if module is not None and user is not None:
                break
            frame = frame.f_back
        place = user or layer
        file, line = (short_name(place.f_code.co_filename), place.f_lineno) if place is not None else ("", 0)
        return Origin(module=module or "", operation=operation, file=file, line=line)


def _constants(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers and plain tensor attributes."""
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        yield from (value for value in vars(part).values() if isinstance(value, Tensor))


def _tensors_in(values: Any) -> Iterator[Tensor]:
    for value in values if isinstance(values, tuple | list) else (values,):
        if isinstance(value, Tensor):
            if value.layout == torch.strided:
                yield value
        elif isinstance(value, tuple | list):
            yield from _tensors_in(value)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@functools.cache
def _schema_facts(func: Any) -> tuple[str, tuple[tuple[int, str], ...], bool]:
    """Of an operation: its name, place and name of every argument that it writes to, and whether its result is a view."""
    schema = func._schema
    aliases = [(place, argument.name, argument.alias_info) for place, argument in enumerate(schema.arguments)]
    writes = tuple((place, name) for place, name, alias in aliases if alias is not None and alias.is_write)
    return schema.name, writes, not writes and any(result.alias_info is not None for result in schema.returns)


_HERE = trace_values.__code__.co_filename
_TORCH = Path(torch.__file__).parent
_LIBRARIES = ("site-packages", "dist-packages")
# Code that runs a module without being its source: `validate`, `export`, and the walks of lifted programs.
_MACHINERY = (
    Path(_HERE).parents[1],
    Path(call.__code__.co_filename).parents[1],
    *(Path(lift.__path__[0]) / room for room in ("plan", "engines", "numerics")),
)


@functools.cache
def _kind(file: str) -> Literal["user", "layer", "other"]:
    """Owner of the code in a file: user, torch.nn (a layer) or another library."""
    path = Path(file)
    if path.is_relative_to(_TORCH):
        return "layer" if path.is_relative_to(_TORCH / "nn" / "modules") else "other"
    standard = path.is_relative_to(sysconfig.get_path("stdlib")) and not any(library in path.parts for library in _LIBRARIES)
    return "other" if standard or any(path.is_relative_to(folder) for folder in _MACHINERY) else "user"
