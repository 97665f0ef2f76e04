"""Which torch operation each op of a saved program comes from, found by value: both run on one sample, and equal numbers belong together.

Names do not count: converters rename, fuse and reorder, and a package may come from any of them. An op into which several operations
were fused has the numbers of the last of them; one that lays a value out otherwise has its numbers in another order. Values are
compared by fingerprints, a few sums that do not depend on the order of the elements.
"""

import functools
import math
import sys
import sysconfig
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from coreflow.export.capture import tensors
from coreflow.models.arrays import Array, Arrays, Floats
from coreflow.models.errors import ConfigError, CoreflowError
from coreflow.runtime import lift
from coreflow.validate.inputs.states import StatelessModule
from coreflow.validate.references.fp16_rounding import round_to_fp16
from coreflow.validate.references.torch_module import converted_copy, plain_torch
from coreflow.validate.report.model import Origin

_BLOCK = 1 << 14  # elements summed at a time: 128 kB stay in the cache, and no temporary is as large as the tensor
_SQUARABLE = (1e-90, 1e90)  # sizes whose third powers float64 holds
_SAME = 1e-10  # values whose distances differ by less are the same values, summed in another order


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What is left of a tensor when the order of its elements is forgotten; moments and extremes are those of its finite elements."""

    count: int  # of elements
    non_finite: int
    mean: float
    rms: float
    mean_abs: float
    skew: float  # mean of the third powers / (largest |x| · rms²), within [-1, 1]: as well-conditioned as the rms, and it never overflows
    min: float
    max: float


def fingerprint(values: Tensor | Array) -> Fingerprint:
    """The fingerprint of a tensor of any dtype and layout; of complex numbers, that of their parts."""
    tensor = values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values, ndmin=1))
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    count = tensor.numel()
    # Expanded dimensions repeat every element alike, which changes no mean.
    for dim, (stride, extent) in enumerate(zip(tensor.stride(), tensor.shape, strict=True)):
        if stride == 0 and extent > 1:
            tensor = tensor.narrow(dim, 0, 1)
    flat: Floats = tensor.to("cpu", torch.float64).reshape(-1).numpy()
    repeats = count // flat.size if flat.size else 1
    finite = flat
    smallest, largest = (float(flat.min()), float(flat.max())) if flat.size else (0.0, 0.0)
    if not (smallest > -math.inf and largest < math.inf):
        finite = flat[np.isfinite(flat)]
        smallest, largest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    peak = max(-smallest, largest)
    unit = 1.0 if _SQUARABLE[0] <= peak <= _SQUARABLE[1] or peak == 0 else peak
    first, absolute, second, third = _sums(finite if unit == 1.0 else finite / unit)
    size = finite.size or 1
    return Fingerprint(
        count=count,
        non_finite=repeats * (flat.size - finite.size),
        mean=unit * (first / size),
        rms=unit * math.sqrt(second / size),
        mean_abs=unit * (absolute / size),
        skew=third / (peak / unit * second) if second else 0.0,
        min=smallest,
        max=largest,
    )


def _sums(flat: Floats) -> tuple[float, float, float, float]:
    """Sums of x, |x|, x² and x³."""
    first = absolute = second = third = 0.0
    buffer = np.empty(min(flat.size, _BLOCK))
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        spare = buffer[: block.size]
        first += float(block.sum())
        absolute += float(np.abs(block, out=spare).sum())
        second += float(block.dot(block))
        third += float(np.multiply(block, block, out=spare).dot(block))
    return first, absolute, second, third


def _scaled(print_: Fingerprint, factor: float) -> Fingerprint:
    """That of the values times a positive ``factor``."""
    by_size = {name: factor * getattr(print_, name) for name in ("mean", "rms", "mean_abs", "min", "max")}
    return replace(print_, **by_size)


def distance(a: Fingerprint, b: Fingerprint) -> float:
    """How far apart two tensors are at least: 0 the same, infinite for other counts of elements or of non-finite ones.

    If every element of one is off by at most e of its size in the other, the distance is at most about 2e. Moments are taken
    relative to the rms, extremes relative to the largest |x|: a rounding is relative to the element that it happens to.
    """
    if (a.count, a.non_finite) != (b.count, b.non_finite):
        return float("inf")
    return float(_distances(_moments(a)[None], _moments(b))[0])


def _moments(print_: Fingerprint) -> Floats:
    return np.array([print_.mean, print_.rms, print_.mean_abs, print_.skew, print_.min, print_.max])


def _distances(many: Floats, one: Floats) -> Floats:
    """(N, 6) moments against (6,) -> (N,)."""
    peaks = np.abs(many[:, 4:]).max(1), np.abs(one[4:]).max()
    scale, peak = np.maximum(many[:, 1], one[1]), np.maximum(*peaks)
    unit = np.stack([scale, scale, scale, np.ones_like(scale), peak, peak], 1)
    unit[unit == 0] = 1.0
    # Divided before they are subtracted: the difference of two masks of the largest float64 would be infinite.
    apart = np.abs(many / unit - one / unit)
    apart[:, 3] /= 3  # a third power is off by three times what its base is
    return apart.max(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedValue:
    """A result of one torch operation, in the order of execution."""

    index: int
    origin: Origin
    fingerprint: Fingerprint
    constant: bool = False  # the same for all inputs; a converter computes most of these itself


def trace_values(module: nn.Module, inputs: Arrays, *, weights: Literal["exact", "half"] = "exact") -> tuple[TracedValue, ...]:
    """Every result of every aten operation of ``module`` on one sample, in float64 on the CPU; the module is left as it was.

    ``inputs`` are passed in their order. ``weights="half"`` rounds weights and buffers to fp16 first, as an fp16 package does.
    Views count as operations, unless they are views of constants. A write into a part of a tensor also gives the whole of it.
    Raises ``ConfigError`` when the module cannot be copied or does not run.
    """
    copied = converted_copy(module, (lambda each: round_to_fp16(each).double()) if weights == "half" else Tensor.double)
    given = [each.clone() for each in tensors(inputs, torch.float64).values()]  # a module may write to them
    recorder = _Recorder(copied)
    with plain_torch(torch.float64), recorder:
        try:
            copied(*given)
        except CoreflowError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise ConfigError(f"the reference {type(module).__name__} does not run in float64 on {shapes}: {error}") from error
    return tuple(recorder.traced)


def _aten(names: str) -> frozenset[str]:
    return frozenset(f"aten::{name}" for name in names.split())


# Views that hold every element of their source once, provided that they hold as many: what they are made of need not be summed again.
_REARRANGING = _aten("_reshape_alias _unsafe_view alias detach permute select slice squeeze t transpose unsqueeze view")
_UNINITIALISED = _aten("empty empty_like empty_strided new_empty new_empty_strided")
# What takes nothing from its tensor but the shape.
_OF_SHAPES = _UNINITIALISED | _aten("full_like new_full new_ones new_zeros ones_like zeros_like")


class _Recorder(TorchDispatchMode):
    """Inside, every result of an aten operation is noted down."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.traced: list[TracedValue] = []
        whole = module.module if isinstance(module, StatelessModule) else module
        self._paths = {id(each): path for path, each in whole.named_modules()}  # a module used twice has its first name
        self._constants = {_storage(each) for each in _constants(module)}  # where tensors lie that no input decides
        self._folder = Path.cwd()
        self._known: dict[int, tuple[weakref.ref[Tensor], int, Fingerprint]] = {}  # id of a tensor -> itself, its version, ...

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run ``func`` and note down what it made and what it wrote."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name, writes, is_view = _facts(func)
        written = [each for place, key in writes for each in _tensors_in(args[place] if place < len(args) else kwargs.get(key))]
        found = {id(each): each for each in (*_tensors_in(result), *written, *(each._base for each in written if each._base is not None))}
        constant = name in _OF_SHAPES or all(_storage(each) in self._constants for each in _tensors_in((*args, *kwargs.values())))
        # A new storage may lie where another one was.
        (self._constants.update if constant else self._constants.difference_update)(map(_storage, found.values()))
        if name in _UNINITIALISED or (constant and is_view):
            return result
        source = args[0] if name in _REARRANGING else None
        origin = self._origin(str(func), sys._getframe(1))
        for each in (value for value in found.values() if value.numel()):
            print_ = self._fingerprint(each, source)
            self.traced.append(TracedValue(index=len(self.traced), origin=origin, fingerprint=print_, constant=constant))
            if func is torch.ops.aten.mul.Scalar:
                # Torch's attention scales queries and keys by the root of its factor each, and nothing else calls this overload.
                # Programs scale the queries by the whole factor.
                print_ = _scaled(print_, float(args[1]))
                self.traced.append(TracedValue(index=len(self.traced), origin=origin, fingerprint=print_, constant=constant))
        return result

    def _fingerprint(self, tensor: Tensor, source: Tensor | None) -> Fingerprint:
        found = None if source is None or source.numel() != tensor.numel() else self._recall(source)
        found = found or fingerprint(tensor)
        if not tensor.is_inference():  # those have no version
            self._known[id(tensor)] = weakref.ref(tensor), tensor._version, found
        return found

    def _recall(self, tensor: Tensor) -> Fingerprint | None:
        """The fingerprint that ``tensor`` had and still has."""
        reference, version, found = self._known.get(id(tensor), (None, 0, None))
        return found if reference is not None and reference() is tensor and tensor._version == version else None

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
        file, line = (_short_name(place.f_code.co_filename, self._folder), place.f_lineno) if place is not None else ("", 0)
        return Origin(module=module or "", operation=operation, file=file, line=line)


def _constants(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers and plain tensor attributes."""
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        yield from (value for value in vars(part).values() if isinstance(value, Tensor))


def _tensors_in(values: Any) -> Iterator[Tensor]:
    for each in values if isinstance(values, tuple | list) else (values,):
        if isinstance(each, Tensor):
            if each.layout == torch.strided:
                yield each
        elif isinstance(each, tuple | list):
            yield from _tensors_in(each)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@functools.cache
def _facts(func: Any) -> tuple[str, tuple[tuple[int, str], ...], bool]:
    """Of an operation: its name, place and name of every argument that it writes to, and whether it gives a view."""
    schema = func._schema
    writes = [(place, each.name) for place, each in enumerate(schema.arguments) if each.alias_info is not None and each.alias_info.is_write]
    return schema.name, tuple(writes), not writes and any(each.alias_info is not None for each in schema.returns)


_HERE = trace_values.__code__.co_filename
_TORCH = Path(torch.__file__).parent
_LIBRARIES = ("site-packages", "dist-packages")
# What runs a module without being its source: `validate`, and what walks a lifted program.
_MACHINERY = (Path(_HERE).parents[1], *(Path(lift.__path__[0]) / room for room in ("plan", "engines", "numerics")))


@functools.cache
def _kind(file: str) -> Literal["user", "layer", "other"]:
    """Whose code a file holds; a layer is torch.nn's."""
    path = Path(file)
    if path.is_relative_to(_TORCH):
        return "layer" if path.is_relative_to(_TORCH / "nn" / "modules") else "other"
    standard = path.is_relative_to(sysconfig.get_path("stdlib")) and not any(each in path.parts for each in _LIBRARIES)
    return "other" if standard or any(path.is_relative_to(each) for each in _MACHINERY) else "user"


@functools.cache
def _short_name(file: str, folder: Path) -> str:
    """The part after site-packages, else relative to ``folder``, else the last part."""
    path = Path(file).absolute()
    for place, part in enumerate(path.parts):
        if part in _LIBRARIES:
            return Path(*path.parts[place + 1 :]).as_posix()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


class Matcher:
    """Finds the torch operation that a value of the program comes from, among traced ones.

    >>> matcher = Matcher(trace_values(module, inputs), tolerance=1e-5)
    >>> interpreter.run(inputs, observe=lambda op, results: print(op.name, matcher.match(results[0])))
    """

    def __init__(self, traced: Sequence[TracedValue], tolerance: float) -> None:
        self._tolerance = tolerance
        groups: dict[tuple[int, int], list[TracedValue]] = {}
        for each in sorted(traced, key=lambda value: value.index):
            groups.setdefault((each.fingerprint.count, each.fingerprint.non_finite), []).append(each)
        self._groups = {
            key: (group, np.array([value.index for value in group]), np.stack([_moments(value.fingerprint) for value in group]))
            for key, group in groups.items()
        }

    def match(self, values: Tensor, after: int = -1) -> TracedValue | None:
        """The traced value with the same numbers in any order, the nearest one within the tolerance; None where there is none.

        Of equal values (zeros, copies) it is the first with an index above ``after``, else the first; constants come last.
        """
        wanted = fingerprint(values)
        if (wanted.count, wanted.non_finite) not in self._groups:
            return None
        group, indices, moments = self._groups[wanted.count, wanted.non_finite]
        apart = _distances(moments, _moments(wanted))
        nearest = apart.min()
        if not nearest <= self._tolerance:
            return None
        equal = np.flatnonzero(apart <= nearest + _SAME)
        computed = equal[[not group[place].constant for place in equal]]
        equal = computed if computed.size else equal
        later = equal[indices[equal] > after]
        return group[int((later if later.size else equal)[0])]
