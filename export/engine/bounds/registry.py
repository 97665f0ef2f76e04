"""The registry of transfer functions: from the bounds of an op's arguments to those of its results."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import numpy as np

from coreflow.export.engine.bounds import transfers
from coreflow.export.engine.bounds.bound import Bound, UnboundedError
from coreflow.export.engine.bounds.slack import Slack
from coreflow.export.engine.bounds.spectrum import Work
from coreflow.export.package.graph import Graph, Op, Shape, Value
from coreflow.models.arrays import Array

# What an op computes on its way to a result: the largest partial sum of products, number that is squared, exponent of exp.
Inner = Literal["sum", "square", "exponent"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One op with the bounds of its arguments.

    >>> call["x"].high, call.integer("axis", -1), call.flag("transpose_y")

    A number that an op needs to be understood, and that is computed, raises ``UnboundedError``.
    """

    op: Op
    bounds: Callable[[Value], Bound]
    slack: Slack
    work: Work
    opset: str
    run: Callable[[Graph, Sequence[Bound]], tuple[Bound, ...]]  # a block, for bounds of its inputs
    write: Callable[[Value, Bound], None]  # to a state
    inner: dict[Inner, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Bound:
        """The bound of an argument of one value."""
        value = self.op.inputs[name]
        assert isinstance(value, Value)
        return self.bounds(value)

    def get(self, name: str) -> Bound | None:
        """The bound of an argument; None where the op has none of this name."""
        return self[name] if name in self.op.inputs else None

    def values(self, name: str) -> tuple[Bound, ...]:
        """The bounds of an argument of several values."""
        return tuple(self.bounds(value) for value in self.op.argument(name))

    def same(self, one: str, other: str) -> bool:
        """Whether two arguments are one value."""
        return self.op.inputs[one] is self.op.inputs[other]

    def array(self, name: str) -> Array | None:
        """The elements of a constant argument; None where it is computed or absent."""
        fetch = self.fetch(name)
        return None if fetch is None else fetch()

    def fetch(self, name: str) -> Callable[[], Array] | None:
        """What gives the elements of a constant argument, which may be large or compressed; None where it is computed or absent."""
        bound = self.get(name)
        return None if bound is None else bound.fetch

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """The elements of a constant argument; None where the op has none of this name."""
        if name not in self.op.inputs:
            return None
        array = self.array(name)
        if array is None:
            raise UnboundedError(f"{name} is computed")
        return tuple(float(number) for number in np.asarray(array).reshape(-1))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """``numbers`` as integers."""
        numbers = self.numbers(name)
        return None if numbers is None else tuple(int(number) for number in numbers)

    def number(self, name: str, default: float) -> float:
        """A constant number."""
        numbers = self.numbers(name)
        return default if numbers is None else numbers[0]

    def integer(self, name: str, default: int) -> int:
        """A constant integer."""
        return int(self.number(name, default))

    def flag(self, name: str) -> bool:
        """A constant boolean; false where the op has none of this name."""
        return bool(self.number(name, 0.0))

    def text(self, name: str, default: str) -> str:
        """A constant string."""
        value = self.op.inputs.get(name)
        return value.data if isinstance(value, Value) and isinstance(value.data, str) else default

    def shape(self, result: int = 0) -> Shape:
        """The declared shape of a result."""
        shape = self.op.outputs[result].shape
        if shape is None:
            raise UnboundedError("the rank of the result is open")
        return shape

    def note(self, inner: Inner, magnitude: float) -> None:
        """Record how large something inside the op can be."""
        self.inner[inner] = max(self.inner.get(inner, 0.0), float("inf") if np.isnan(magnitude) else magnitude)


Transfer = Callable[[Call], Bound | tuple[Bound, ...]]

TRANSFERS: dict[str, Transfer] = {}


def transfer(*ops: str) -> Callable[[Transfer], Transfer]:
    """Registers the decorated function for ``ops``; a second one for an op is refused."""

    def register(function: Transfer) -> Transfer:
        for op in ops:
            if op in TRANSFERS:
                raise ValueError(f"{op} has a transfer function already")
            TRANSFERS[op] = function
        return function

    return register


@cache
def load_transfers() -> Mapping[str, Transfer]:
    """Every transfer function by op; imports the modules of ``transfers``."""
    for module in pkgutil.iter_modules(transfers.__path__, f"{transfers.__name__}."):
        importlib.import_module(module.name)
    return TRANSFERS
