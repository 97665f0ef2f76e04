"""The registry of lowerings: a torch function for every MIL op.

A lowering's parameters carry MIL's names and MIL's defaults; their annotations say in what form an argument arrives:

``Tensor``            a torch tensor; floats in the numerics' dtype, every integer type as int32, booleans as bool
``Sequence[Tensor]``  a tuple of those (``concat``'s values)
``int``, ``float``, ``bool``, ``str``, ``Sequence[...]`` of them   plain Python values, read off a tensor where one was computed
anything else         what the graph holds, as it is (states, lists)

Three parameters are not MIL's: ``float_dtype`` receives the torch dtype in which floats are computed, ``device`` where, and ``blocks``
the callables of a control-flow op.
"""

import importlib
import inspect
import pkgutil
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal

from torch import Tensor

from coreflow.export.package.graph import Graph
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.lift import ops

Form = Literal["tensor", "tensors", "scalar", "sequence", "raw"]
Function = Callable[..., Any]

OPSETS = ("CoreML5", "CoreML6", "CoreML7", "CoreML8", "CoreML9")
_RELEASES = {"iOS15": 0, "iOS16": 1, "iOS17": 2, "iOS18": 3, "iOS26": 4}
_CONTEXT = ("float_dtype", "device", "blocks")


@dataclass(frozen=True, slots=True)
class Lowering:
    """The function of one op; further facts of the op are in ``export.package.op_facts``.

    >>> lowering = find("linear", "CoreML8")
    >>> sorted(lowering.required), lowering.forms["weight"]
    (['weight', 'x'], 'tensor')

    ``guard`` takes the same arguments, of tensors only the shapes, and raises where the result would be too large to be made.
    """

    op: str
    function: Function
    since: int
    guard: Function | None
    forms: Mapping[str, Form]
    required: frozenset[str]
    context: frozenset[str]


_LOWERINGS: dict[str, dict[int, Lowering]] = {}


def lowering(op: str, *, since: str = "iOS15", guard: Function | None = None) -> Callable[[Function], Function]:
    """Registers the decorated function for ``op`` from the opset ``since`` on; a second one for the same opset is refused.

    ``guard``: asked when the program is planned; only if some shape is open then, before every call.
    """

    def register(function: Function) -> Function:
        versions = _LOWERINGS.setdefault(op, {})
        release = _RELEASES[since]
        if release in versions:
            raise ValueError(f"{op} has a lowering since {since} already: {versions[release].function.__qualname__}")
        hints = typing.get_type_hints(function)
        parameters = inspect.signature(function).parameters
        versions[release] = Lowering(
            op=op,
            function=function,
            since=release,
            guard=guard,
            forms={name: _form(hints[name]) for name in parameters if name not in _CONTEXT},
            required=frozenset(
                name for name, parameter in parameters.items() if name not in _CONTEXT and parameter.default is inspect.Parameter.empty
            ),
            context=frozenset(_CONTEXT) & parameters.keys(),
        )
        return function

    return register


def load_lowerings() -> None:
    """Imports every module of ``ops``, which registers its lowerings."""
    for module in pkgutil.iter_modules(ops.__path__, f"{ops.__name__}."):
        importlib.import_module(module.name)


def find(op: str, opset: str) -> Lowering | None:
    """The newest lowering of ``op`` that ``opset`` has; None when there is none."""
    newest = OPSETS.index(opset) if opset in OPSETS else -1
    return max((entry for since, entry in _LOWERINGS.get(op, {}).items() if since <= newest), key=lambda entry: entry.since, default=None)


def require_all(graph: Graph, package: str = "program") -> None:
    """``UnsupportedError`` naming every op of ``graph`` that has no lowering, with counts; before any tensor moves."""
    if graph.opset not in OPSETS:
        raise UnsupportedError(f"{package}: opset {graph.opset!r}; known are {', '.join(OPSETS)}")
    missing = Counter(op.type for op in graph.walk() if find(op.type, graph.opset) is None)
    if missing:
        listed = ", ".join(f"{op} ({count}x)" for op, count in sorted(missing.items()))
        raise UnsupportedError(
            f"{package}: no torch lowering for {listed}.\n"
            'Write one with @lowering("<op>") in runtime/lift/ops/*.py and its case in tests/runtime/lift.'
        )


def supported_ops() -> dict[str, tuple[Lowering, ...]]:
    """Every op with a lowering, oldest version first."""
    return {op: tuple(versions[since] for since in sorted(versions)) for op, versions in sorted(_LOWERINGS.items())}


def _form(hint: Any) -> Form:
    """How an argument with this annotation arrives; ``| None`` changes nothing."""
    if typing.get_origin(hint) in (UnionType, typing.Union):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if hint is Tensor:
        return "tensor"
    if hint in (int, float, bool, str):
        return "scalar"
    if typing.get_origin(hint) is Sequence:
        (item,) = typing.get_args(hint)
        if item is Tensor:
            return "tensors"
        if item in (int, float, bool, str):
            return "sequence"
    return "raw"
