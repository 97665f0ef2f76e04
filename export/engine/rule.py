"""What a rule of the engine is: what it looks for in a saved program, on which chips, how that is known, and what to do instead."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pkgutil import walk_packages

import numpy as np

from coreflow.export.engine.bounds.analysis import bounds_of
from coreflow.export.engine.bounds.hazards import Hazard, Seen, hazards
from coreflow.export.engine.bounds.inputs import recorded_intervals
from coreflow.export.engine.chips import Chip
from coreflow.export.engine.features import Features, features_of
from coreflow.export.engine.finding import Known, Severity, Strength
from coreflow.export.engine.support import Support
from coreflow.export.engine.targets import Target
from coreflow.export.package.graph import Constant, Graph, Interface, Op, Program, Value


@dataclass(frozen=True, eq=False)
class Context:
    """One function of a saved program, with the index that rules ask, and the chips that they are asked about.

    >>> context = Context(program, "main", chips=(find_chip("M4"),))
    >>> [op.type for op in context.readers(context.graph.inputs[0])]
    ['linear']
    """

    program: Program
    function: str
    chips: tuple[Chip, ...] = ()
    data: Mapping[str, Seen] | None = None  # by name of an op, what it had over the user's data

    @cached_property
    def graph(self) -> Graph:
        """The function's ops."""
        return self.program.function(self.function)[0]

    @cached_property
    def interface(self) -> Interface:
        """The function as a caller sees it."""
        return self.program.function(self.function)[1]

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """Every op, those in nested blocks included."""
        return tuple(self.graph.walk())

    @cached_property
    def hazards(self) -> tuple[Hazard, ...]:
        """What could leave its range in each op, by bounds of the recorded inputs and the weights, and by the data."""
        bounds = bounds_of(self.graph, recorded_intervals(self.program, self.graph.name))
        return hazards(self.graph, bounds, self.data)

    @cached_property
    def features(self) -> tuple[tuple[Op, Features], ...]:
        """Every op that gets a device, with what the planner looks at; blocks belong to their op."""
        return tuple(features_of(self.graph))

    @cached_property
    def refusals(self) -> tuple[tuple[Op, Mapping[str, tuple[Target, Support]]], ...]:
        """Ops that some chip does not take: by the chip's name, the target by whose table, and why."""
        answers: dict[Features, Mapping[str, tuple[Target, Support]]] = {}  # layers repeat
        for _, features in self.features:
            if features not in answers:
                refusals = ((chip.name, chip.refusal(features)) for chip in self.chips)
                answers[features] = {name: refusal for name, refusal in refusals if refusal is not None}
        return tuple((op, answers[features]) for op, features in self.features if answers[features])

    def of_type(self, *types: str) -> Iterator[Op]:
        """The ops of these types, those in nested blocks included."""
        return (op for op in self.ops if op.type in types)

    def maker(self, value: Value) -> Op | None:
        """The op that gives ``value``; None for inputs and constants."""
        return self._makers.get(id(value))

    def readers(self, value: Value) -> tuple[Op, ...]:
        """The ops that read ``value``, in the order of the program."""
        return tuple(self._readers.get(id(value), ()))

    def constant(self, op: Op, name: str) -> Constant | None:
        """What the argument ``name`` holds in the file; None where it is missing, a tuple, computed, or compressed."""
        value = op.inputs.get(name)
        return value.data if isinstance(value, Value) else None

    def is_constant(self, value: Value) -> bool:
        """Whether the file holds ``value``, compressed or not."""
        maker = self.maker(value)
        return value.data is not None or (maker is not None and maker.type.startswith("constexpr_"))

    @cached_property
    def _makers(self) -> dict[int, Op]:
        return {id(value): op for op in self.ops for value in op.outputs}

    @cached_property
    def _readers(self) -> dict[int, list[Op]]:
        readers: dict[int, list[Op]] = {}
        for op in self.ops:
            for value in {id(value): value for value in op.input_values()}:
                readers.setdefault(value, []).append(op)
        return readers


def number(constant: Constant | None) -> float | None:
    """The one number that a constant holds; None where it holds another count, or no numbers."""
    return float(constant.reshape(-1)[0]) if isinstance(constant, np.ndarray) and constant.size == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A place at which a rule applies; what is None is as the rule says.

    >>> Hit(op=op, detail="a kernel 1 x 21", chips=("M4",))
    """

    op: Op | None = None  # None: the function as a whole
    detail: str = ""
    chips: tuple[str, ...] | None = None  # names of chips of the context; None: those of the rule
    severity: Severity | None = None
    strength: Strength | None = None
    known: Known | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRule:
    """Something that goes wrong, or off the engine, on the chips named; a file of ``rules`` gives a tuple of them as ``RULES``.

    >>> EngineRule(
    ...     id="softplus", title="softplus is 0 above 10.4", severity="warning", strength="open", chips=("M4", "M5"),
    ...     known=Known("...", Evidence("measured", "coremltools issue 2687; M4")), remedy="...", finds=find_softplus,
    ... )

    ``error``: a wrong result, or a program that cannot be compiled or run. ``warning``: work that leaves the engine, or a result that is
    wrong for some values. ``note``: slower, larger, or less sure than need be.
    """

    id: str
    title: str  # what happens, in a line
    severity: Severity
    strength: Strength = "static"
    known: Known
    chips: tuple[str, ...] = ()  # families; empty: all
    remedy: str
    finds: Callable[[Context], Iterator[Hit]]


def engine_rules() -> tuple[EngineRule, ...]:
    """The rules of every file below ``rules``, by id."""
    package = import_module("coreflow.export.engine.rules")
    modules = walk_packages(package.__path__, f"{package.__name__}.")
    rules = [rule for module in modules for rule in getattr(import_module(module.name), "RULES", ())]
    return tuple(sorted(rules, key=lambda rule: rule.id))
