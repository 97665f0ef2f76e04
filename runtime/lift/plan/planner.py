"""A graph made ready to be walked: which lowering, which arguments, which roundings, when a value dies; and the walk itself.

The interpreter walks a plan with constants in it; ``LiftedModule`` walks the same plan with its parameters in their place.
"""

import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coreflow.export.package.graph import Constant, Graph, Op, Value
from coreflow.export.package.weights import release_pages
from coreflow.models.arrays import Array
from coreflow.models.errors import BundleError, CoreflowError, UnsupportedError
from coreflow.runtime.lift.limits import refuse_absurd
from coreflow.runtime.lift.numerics.plain import Numerics, Rounding
from coreflow.runtime.lift.registry import Form, Lowering, find, require_all

_OF_TWO_TYPES = ("linear", "matmul")  # since iOS17 a constant may be of another type than the result
_LARGE = 1 << 20  # bytes of a constant after whose conversion its pages of the weight file go

Observer = Callable[[Op, tuple[Any, ...]], None]

_FAMILIES = (
    "activation",
    "constexpr",
    "control",
    "conv",
    "elementwise",
    "gather",
    "linear",
    "norm",
    "pool",
    "recurrent",
    "reduce",
    "resize",
    "shape",
    "state",
    "tensor",
)


def load_lowerings() -> None:
    """Imports every module of ``ops``; that is all of registration."""
    for family in _FAMILIES:
        importlib.import_module(f"coreflow.runtime.lift.ops.{family}")


@dataclass(frozen=True, slots=True)
class Step:
    """One op, ready to call: what never changes is in ``fixed``, the rest is read from slots of the environment."""

    op: Op
    function: Callable[..., Any]
    fixed: dict[str, Any]
    reads: tuple[tuple[str, int], ...]
    converts: tuple[tuple[str, Form, int | tuple[int, ...]], ...]
    blocks: tuple["Plan", ...]
    writes: tuple[tuple[int, Rounding | None], ...]
    frees: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a graph; nested blocks share the environment of the function around them."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: tuple[Step, ...]


class Planner:
    """Plans one function: ``plan``, and the ``environment`` that a walk starts from, with every constant in its slot.

    Constants become tensors once, and ``constexpr_*`` ops are evaluated once. ``constants`` tells which tensor stands for which value.
    """

    def __init__(self, graph: Graph, numerics: Numerics, device: torch.device, package: str) -> None:
        load_lowerings()
        require_all(graph, package)
        refuse_absurd(graph, package)
        self.environment: list[Any] = []
        self.constants: dict[int, tuple[Tensor, str]] = {}  # id of a Value -> the tensor made of it, and its name
        self._numerics = numerics
        self._device = device
        self._package = package
        self._slots: dict[int, int] = {}  # id of a Value -> its place in the environment
        with torch.no_grad():
            self.plan = self._compile(graph, keep={id(value) for value in graph.outputs})

    def stored_as(self, value: Value) -> torch.dtype:
        """The dtype in which a floating value lies in memory."""
        return self._numerics.dtype

    def _compile(self, graph: Graph, keep: set[int]) -> Plan:
        """The plan of ``graph``; values in ``keep`` outlive it."""
        inputs = tuple(self._slot(value) for value in graph.inputs)
        keep = keep | {id(value) for value in graph.outputs}
        last_use: dict[int, int] = {}
        made: dict[int, Value] = {id(value): value for value in graph.inputs}
        for index, op in enumerate(graph.ops):
            made.update((id(value), value) for value in op.outputs)
            for value in (*_read_values(op), *op.outputs):
                last_use[id(value)] = index
        steps = []
        for index, op in enumerate(graph.ops):
            dying = [id(v) for v in (*_read_values(op), *op.outputs) if last_use[id(v)] == index and id(v) in made and id(v) not in keep]
            step = self._step(graph, op, sorted({self._slot(made[i]) for i in dying}))
            if op.type.startswith("constexpr_"):
                self._fold(step)
            else:
                steps.append(step)
        return Plan(inputs, tuple(self._slot(value) for value in graph.outputs), tuple(steps))

    def _step(self, graph: Graph, op: Op, frees: Iterable[int]) -> Step:
        lowering = find(op.type, graph.opset)
        assert lowering is not None, op.type  # require_all
        self._check_arguments(op, lowering)
        fixed: dict[str, Any] = {}
        reads: list[tuple[str, int]] = []
        converts: list[tuple[str, Form, int | tuple[int, ...]]] = []
        for name, form in lowering.forms.items():  # not the package's order: protobuf maps have another in every process
            if name not in op.inputs:
                continue
            argument = op.inputs[name]
            parts = argument if isinstance(argument, tuple) else (argument,)
            if form == "tensors" or len(parts) > 1:
                converts.append((name, "tensors" if form == "tensors" else form, tuple(self._slot(part) for part in parts)))
            elif self._is_known(parts[0]):
                fixed[name] = self._known(parts[0], form, op, name)
            elif form in ("tensor", "raw"):
                reads.append((name, self._slot(parts[0])))
            else:
                converts.append((name, form, self._slot(parts[0])))
        surroundings = {"float_dtype": self._numerics.dtype, "device": self._device}
        fixed.update((name, surroundings[name]) for name in lowering.context & surroundings.keys())
        writes = tuple((self._slot(value), self._rounding(op, value, lowering)) for value in op.outputs)
        blocks = tuple(self._compile(block, keep=set()) for block in op.blocks)
        return Step(op, self._guarded(lowering, op, fixed), fixed, tuple(reads), tuple(converts), blocks, writes, tuple(frees))

    def _guarded(self, lowering: Lowering, op: Op, fixed: Mapping[str, Any]) -> Callable[..., Any]:
        """The function of the op: behind its guard if the guard cannot be asked now, because a shape or a number is open."""
        guard, function = lowering.guard, lowering.function
        if guard is None:
            return function
        try:
            known = {name: fixed[name] if name in fixed else _stand_in(lowering.forms[name], op.inputs[name]) for name in op.inputs}
            if all(argument is not None for argument in known.values()):
                guard(**known)
                return function
        except Exception as error:
            raise not_executable(self._package, op, error) from error

        @wraps(function)
        def guarded(**arguments: Any) -> Any:
            guard(**arguments)
            return function(**arguments)

        return guarded

    def _rounding(self, op: Op, value: Value, lowering: Lowering) -> Rounding | None:
        """What is done to a result. A product of integers and constant fractions is declared an integer, and loses its fraction."""
        whole = value.dtype == "int32" and op.type in _OF_TWO_TYPES
        return _truncated if whole else self._numerics.rounding(op, value, lowering.exact)

    def _check_arguments(self, op: Op, lowering: Lowering) -> None:
        unknown = sorted(op.inputs.keys() - lowering.forms.keys())
        missing = sorted(lowering.required - op.inputs.keys())
        if unknown or missing:
            problem = "; ".join(f"{what} {', '.join(names)}" for what, names in (("unknown", unknown), ("missing", missing)) if names)
            expected = ", ".join(lowering.forms)
            raise UnsupportedError(f"{self._package}: {op.type} {op.name!r} has arguments {problem}; it takes {expected}")

    def _fold(self, step: Step) -> None:
        """Runs a constant expression now; its result is a constant from here on."""
        computed = [value.name for value in step.op.input_values() if not self._is_known(value)]
        if computed:
            raise BundleError(f"{self._package}: {step.op.type} {step.op.name!r} reads {computed[0]!r}; it takes constants alone")
        execute((step,), self.environment, self._package)
        for value, (slot, _) in zip(step.op.outputs, step.writes, strict=True):
            self.constants[id(value)] = self.environment[slot], value.name

    def _slot(self, value: Value) -> int:
        """The place of ``value`` in the environment; a constant is put there at once."""
        slot = self._slots.get(id(value))
        if slot is None:
            slot = self._slots[id(value)] = len(self.environment)
            self.environment.append(None)
            if value.data is not None:
                self.environment[slot] = self._known(value, "tensor" if isinstance(value.data, np.ndarray) else "raw")
        return slot

    def _is_known(self, value: Value) -> bool:
        return value.data is not None or id(value) in self.constants

    def _known(self, value: Value, form: Form, op: Op | None = None, argument: str = "") -> Any:
        """A constant in the form that a lowering asks for."""
        if value.data is None:
            return convert(form, self.constants[id(value)][0])
        if form == "raw":
            return value.data
        if form == "tensor":
            if id(value) not in self.constants:
                if not isinstance(value.data, np.ndarray):
                    user = value.name if op is None else f"{op.type} {op.name!r}, argument {argument!r}"
                    raise BundleError(f"{self._package}: {user} needs a tensor and is {value.data!r}")
                name = value.name or (f"{op.name}_{argument}" if op else "constant")
                self.constants[id(value)] = as_tensor(value.data, self._numerics.dtype).to(self._device), name
                if value.data.nbytes > _LARGE:
                    release_pages(value.data)
            return self.constants[id(value)][0]
        return _plain(form, value.data)


def walk(plan: Plan, environment: list[Any], values: Sequence[Any], package: str, observe: Observer | None = None) -> tuple[Any, ...]:
    """The outputs of ``plan`` for these input values; ``environment`` is written to.

    ``observe`` sees every op right after it ran, with its rounded results, in execution order.
    """
    for slot, value in zip(plan.inputs, values, strict=True):
        environment[slot] = value
    execute(plan.steps, environment, package, observe)
    return tuple(environment[slot] for slot in plan.outputs)


def arguments_of(step: Step, environment: list[Any], package: str, observe: Observer | None = None) -> dict[str, Any]:
    """What the function of ``step`` is called with, read from ``environment``."""
    arguments = step.fixed.copy()
    for name, slot in step.reads:
        arguments[name] = environment[slot]
    for name, form, source in step.converts:
        found = environment[source] if isinstance(source, int) else tuple(environment[slot] for slot in source)
        arguments[name] = convert(form, found)
    if step.blocks:
        arguments["blocks"] = tuple(partial(_block, block, environment, package, observe) for block in step.blocks)
    return arguments


def execute(steps: Sequence[Step], environment: list[Any], package: str, observe: Observer | None = None) -> None:
    """Runs the steps in turn on ``environment``; ``UnsupportedError`` names the op that fails."""
    step = None
    try:
        for step in steps:
            _write(step, step.function(**arguments_of(step, environment, package, observe)), environment)
            if observe is not None:
                observe(step.op, tuple(environment[slot] for slot, _ in step.writes))
            for slot in step.frees:
                environment[slot] = None
    except CoreflowError:
        raise
    except Exception as error:  # whatever torch or a lowering raises: the op, as this package uses it, cannot be executed
        assert step is not None
        raise not_executable(package, step.op, error) from error


def not_executable(package: str, op: Op, error: Exception) -> UnsupportedError:
    """What to raise when torch, a guard or a lowering refuses ``op`` as this package uses it."""
    return UnsupportedError(f"{package}: {op.type} {op.name!r} cannot be executed: {error}")


def _write(step: Step, result: Any, environment: list[Any]) -> None:
    """Rounds what a step gave into its slots; a function of its own, so that what was not rounded yet goes with it."""
    results = result if isinstance(result, tuple) else (result,)
    for (slot, rounding), value in zip(step.writes, results, strict=True):
        environment[slot] = value if rounding is None else rounding(value)


def _truncated(tensor: Tensor) -> Tensor:
    return tensor.to(torch.int32)


def _block(plan: Plan, environment: list[Any], package: str, observe: Observer | None, *values: Any) -> tuple[Any, ...]:
    return walk(plan, environment, values, package, observe)


def _stand_in(form: Form, argument: Value | tuple[Value, ...]) -> Any:
    """For a computed argument something of its declared shape and no elements; None where that is open, or the elements are what counts."""
    shapes = [value.shape for value in (argument if isinstance(argument, tuple) else (argument,))]
    fixed = [tuple(extent for extent in shape if extent is not None) for shape in shapes if shape is not None]
    if form not in ("tensor", "tensors") or fixed != shapes:
        return None
    tensors = tuple(torch.empty(shape, device="meta") for shape in fixed)
    return tensors if form == "tensors" else tensors[0]


def _read_values(op: Op) -> list[Value]:
    """What ``op`` reads, its blocks included; values that a block makes for itself do no harm."""
    values = list(op.input_values())
    for block in op.blocks:
        values.extend(block.outputs)
        for inner in block.ops:
            values.extend(_read_values(inner))
    return values


def convert(form: Form, found: Any) -> Any:
    """A computed argument in the form that a lowering asks for."""
    if form in ("tensor", "raw"):
        return found
    if form == "tensors":
        return found if isinstance(found, tuple) else (found,)
    if isinstance(found, tuple):
        return tuple(part.item() if isinstance(part, Tensor) else part for part in found)
    plain = found.tolist()
    if form == "scalar":
        return plain[0] if isinstance(plain, list) else plain
    return tuple(plain) if isinstance(plain, list) else (plain,)


def _plain(form: Form, data: Constant) -> Any:
    """Constant data as a Python scalar or a tuple of them."""
    plain = data.tolist() if isinstance(data, np.ndarray) else data
    if form == "scalar":
        return plain[0] if isinstance(plain, list | tuple) and len(plain) == 1 else plain
    return tuple(plain) if isinstance(plain, list | tuple) else (plain,)


def as_tensor(data: Array, float_dtype: torch.dtype | None) -> Tensor:
    """``data`` as a tensor: floats in ``float_dtype`` (None: as they are), integers of every width as int32, booleans as bool.

    It shares the memory of ``data`` where nothing had to be converted.
    """
    if data.dtype.kind in "iu" and data.dtype != np.int32:
        data = data.astype(np.int32)
    elif data.dtype == np.float64 and float_dtype != torch.float64:
        data = data.astype(np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to a constant
        tensor = torch.from_numpy(np.ascontiguousarray(data).reshape(data.shape))
    return tensor.to(float_dtype) if float_dtype is not None and tensor.is_floating_point() else tensor
