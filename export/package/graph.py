"""A saved program as frozen data: functions, ops, values and interfaces. Nothing is read or computed here.

Names and types are the package's. ``mlpackage.read_program`` makes a ``Program`` of a package.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from coreflow.models.arrays import Array
from coreflow.models.errors import UnsupportedError
from coreflow.models.spec import key_of

Kind = Literal["tensor", "list", "state", "dictionary", "tuple"]
Constant = Array | str | tuple[Any, ...] | dict[Any, Any]
Shape = tuple[int | None, ...]  # None: not known before a prediction


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One edge of the graph; ``data`` holds a constant's elements, and is None for results of ops and inputs.

    >>> Value("", "int32", (), data=np.array(1, np.int32))  # a constant
    >>> Value("scores", "float16", (1, 64))  # a result

    ``dtype`` is spelled as numpy does, with int4 and the like kept; ``shape`` is None where even the rank is open.
    """

    name: str
    dtype: str
    shape: Shape | None
    kind: Kind = "tensor"
    data: Constant | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One operation; an input is one value or, for arguments such as ``concat``'s, a tuple of them.

    >>> x, y = Value("x", "float16", (1, 64)), Value("y", "float16", (1, 64))
    >>> [value.name for value in Op("relu", "y", {"x": x}, (y,)).input_values()]
    ['x']
    """

    type: str
    name: str
    inputs: Mapping[str, Value | tuple[Value, ...]]
    outputs: tuple[Value, ...]
    blocks: tuple["Graph", ...] = ()
    attributes: Mapping[str, Constant] = field(default_factory=dict)

    def input_values(self) -> Iterator[Value]:
        """Every input value, in the order of the arguments."""
        for name in self.inputs:
            yield from self.argument(name)

    def argument(self, name: str) -> tuple[Value, ...]:
        """The values of one argument, however many."""
        values = self.inputs[name]
        return values if isinstance(values, tuple) else (values,)

    def reads(self) -> Iterator[Value]:
        """Every value that the op reads, its blocks included, with those that the blocks make for themselves."""
        yield from self.input_values()
        for block in self.blocks:
            yield from block.outputs
            for op in block.ops:
                yield from op.reads()


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A function, or a block of a control-flow op (which also sees the values around it); ops are in execution order.

    >>> graph, interface = read_program("encoder.mlpackage").function()
    >>> Counter(op.type for op in graph.walk())
    """

    name: str
    opset: str  # CoreML5 (iOS15) ... CoreML8 (iOS18)
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    ops: tuple[Op, ...]
    constants: tuple[Value, ...]

    def walk(self) -> Iterator[Op]:
        """Every op, those in nested blocks included."""
        for op in self.ops:
            yield op
            for block in op.blocks:
                yield from block.walk()

    def with_values(self, others: Mapping[int, Value]) -> "Graph":
        """This graph with other values in the place of those whose ids are keys; an op that would make nothing else is left out."""

        def exchange(values: tuple[Value, ...]) -> tuple[Value, ...]:
            return tuple(others.get(id(value), value) for value in values)

        ops = tuple(
            replace(
                op,
                inputs={
                    name: exchange(value) if isinstance(value, tuple) else others.get(id(value), value) for name, value in op.inputs.items()
                },
                blocks=tuple(block.with_values(others) for block in op.blocks),
            )
            for op in self.ops
            if not op.outputs or any(id(value) not in others for value in op.outputs)
        )
        return replace(self, outputs=exchange(self.outputs), ops=ops, constants=exchange(self.constants))


@dataclass(frozen=True, slots=True)
class Feature:
    """One input, output or state as a caller of Core ML sees it.

    >>> Feature("x", "array", "float16", (1, 64), ranges=((1, 8), (64, 64)))  # a batch of 1 to 8

    ``enumerated`` and ``ranges`` (lowest, highest or None a dimension) are the other shapes it takes; ``default`` is an optional input's.
    """

    name: str
    kind: Literal["array", "image", "state", "dictionary", "sequence", "string", "int64", "double"]
    dtype: str = ""
    shape: tuple[int, ...] = ()
    optional: bool = False
    default: float | None = None
    enumerated: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    colour: str = ""  # of an image: GRAYSCALE, RGB, BGR, GRAYSCALE_FLOAT16
    description: str = ""


@dataclass(frozen=True, slots=True)
class Interface:
    """Inputs, outputs and states of one function, as a caller of Core ML sees them.

    >>> _, interface = read_program("encoder.mlpackage").function()
    >>> [(feature.name, feature.dtype, feature.shape) for feature in interface.inputs]
    """

    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    states: tuple[Feature, ...]
    predicted_feature: str = ""
    predicted_probabilities: str = ""


@dataclass(frozen=True, slots=True)
class Metadata:
    """Descriptive entries of a package; ``user`` is the user-defined dictionary.

    >>> read_program("encoder.mlpackage").metadata.user.get("coreflow.recipe")
    """

    description: str
    author: str
    licence: str
    version: str
    user: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A whole package, as ``mlpackage.read_program`` gives it.

    >>> program = read_program("encoder.mlpackage")
    >>> program.functions["main"].ops, program.interfaces["main"].inputs
    """

    path: Path
    spec_version: int
    functions: Mapping[str, Graph]
    interfaces: Mapping[str, Interface]
    default_function: str
    metadata: Metadata

    def with_function(self, graph: Graph) -> "Program":
        """This program with ``graph`` in the place of its function of that name."""
        return replace(self, functions={**self.functions, graph.name: graph})

    def at(self, name: str | None) -> "Program":
        """This program with the function ``name`` as its default; itself for None."""
        return self if name is None else replace(self, default_function=self.function(name)[0].name)

    def recorded(self, key: str, function: str) -> str | None:
        """What the package records of one function under a ``key`` of ours."""
        return self.metadata.user.get(key_of(key, function) if len(self.functions) > 1 else key)

    def function(self, name: str | None = None) -> tuple[Graph, Interface]:
        """The graph and interface of one function, the default one for None."""
        chosen = self.default_function if name is None else name
        if chosen not in self.functions:
            names = sorted(self.functions)
            raise UnsupportedError(f"{self.path.name}: no function {chosen!r}; it has {', '.join(names)}", path=self.path, expected=names)
        return self.functions[chosen], self.interfaces[chosen]
