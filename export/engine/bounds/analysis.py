"""Carries bounds through a graph, op by op."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from coreflow.export.engine.bounds.bound import Ball, BallRule, Bound, Constant, UnboundedError, between, hull, moved_apart, top
from coreflow.export.engine.bounds.registry import TRANSFERS, Call, Inner, load_transfers
from coreflow.export.engine.bounds.slack import STORED, Slack
from coreflow.export.engine.bounds.spectrum import Work
from coreflow.export.package.graph import Graph, Op, Value
from coreflow.export.package.op_facts import facts_of
from coreflow.models import fp16
from coreflow.models.arrays import Array

Interval = tuple[float, float]
WORK = 1e10  # multiply-adds for largest singular values: about a second of one core
_ROUNDS = 3  # walks in which what states and loops keep may still grow; then it is taken to be anything

# The numbers that a type holds.
RANGES: Mapping[str, Interval] = {
    "bool": (0.0, 1.0),
    "float16": (-fp16.MAX, fp16.MAX),
    "int8": (-(2.0**7), 2.0**7 - 1),
    "uint8": (0.0, 2.0**8 - 1),
    "int16": (-(2.0**15), 2.0**15 - 1),
    "uint16": (0.0, 2.0**16 - 1),
    "int32": (-(2.0**31), 2.0**31 - 1),
}
_ENDLESS: Interval = (-np.inf, np.inf)


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """Bounds of every value of a graph, and of what its ops compute inside.

    >>> bounds = bounds_of(graph, {"ids": (0, 29_999)})
    >>> bounds.of(op.outputs[0]).largest, bounds.inner(op).get("sum"), bounds.reasons.get(op.name)

    ``reasons`` says by name of an op why nothing is known of its results.
    """

    values: dict[int, Bound] = field(default_factory=dict)
    inners: dict[int, Mapping[Inner, float]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def of(self, value: Value) -> Bound:
        """The bound of a value: of a constant that of its elements."""
        bound = self.values.get(id(value))
        if bound is None:
            bound = self.values[id(value)] = _unknown(value)
        return bound

    def inner(self, op: Op) -> Mapping[Inner, float]:
        """The largest magnitudes that an op has inside."""
        return self.inners.get(id(op), {})


def bounds_of(graph: Graph, inputs: Mapping[str, Interval], slack: Slack = STORED) -> Bounds:
    """Bounds of every value of ``graph``, for inputs within ``inputs``; one that is not named may be any number of its type.

    States hold zeros at first, and then what the program writes to them.
    """
    load_transfers()
    walk = _Walk(graph.opset, slack)
    states = [value for value in graph.inputs if value.kind == "state"]
    for value in graph.inputs:
        low, high = inputs.get(value.name, RANGES.get(value.dtype, _ENDLESS))
        if value.dtype == "float16":
            low, high = low - _rounding(low), high + _rounding(high)
        walk.bounds.values[id(value)] = between(value.shape or (), 0.0, 0.0) if value in states else between(value.shape or (), low, high)
    with np.errstate(all="ignore"):
        for count in range(_ROUNDS + 1):
            before = [walk.bounds.of(value) for value in states]
            walk.graph(graph)
            growing = [value for value, bound in zip(states, before, strict=True) if not includes(bound, walk.bounds.of(value))]
            if not growing:
                break
            for value in growing if count == _ROUNDS - 1 else ():
                walk.bounds.values[id(value)] = anything(value)
    return walk.bounds


def _rounding(end: float) -> float:
    """By how much the end of a range of fp16 numbers may be exceeded: where it is none, whoever passes it rounds it."""
    return 0.0 if float(np.float16(end)) == end else fp16.UNIT_ROUNDOFF * abs(end) + fp16.SMALLEST_SUBNORMAL


def includes(bound: Bound, other: Bound) -> bool:
    """Whether every element that ``other`` allows ``bound`` allows too."""
    return bool((bound.low <= other.low).all() and (bound.high >= other.high).all())


class _Walk:
    """One walk over a graph and its blocks.

    >>> _Walk("CoreML8", STORED).graph(graph)
    """

    def __init__(self, opset: str, slack: Slack) -> None:
        self.bounds = Bounds()
        self._opset, self._slack, self._work = opset, slack, Work(WORK)

    def graph(self, graph: Graph) -> None:
        """Bounds of all results of a graph, whose inputs have theirs."""
        for op in graph.ops:
            call = Call(
                op=op, bounds=self.bounds.of, slack=self._slack, work=self._work, opset=self._opset, run=self._block, write=self._write
            )
            self.bounds.reasons.pop(op.name, None)
            try:
                results = _results(call)
            except UnboundedError as error:
                self.bounds.reasons[op.name] = str(error)
                results = tuple(anything(value) for value in op.outputs)
            earlier = self.bounds.inner(op)  # of another round of a loop
            self.bounds.inners[id(op)] = {inner: max(size, earlier.get(inner, 0.0)) for inner, size in call.inner.items()}
            for value, result in zip(op.outputs, results, strict=True):
                self.bounds.values[id(value)] = _rounded(result, op, value, self._slack)

    def _block(self, block: Graph, inputs: Sequence[Bound]) -> tuple[Bound, ...]:
        for value, bound in zip(block.inputs, inputs, strict=True):
            self.bounds.values[id(value)] = bound
        self.graph(block)
        return tuple(self.bounds.of(value) for value in block.outputs)

    def _write(self, state: Value, bound: Bound) -> None:
        self.bounds.values[id(state)] = hull(bound.shape, [self.bounds.of(state), bound])


def _results(call: Call) -> tuple[Bound, ...]:
    function = TRANSFERS.get(call.op.type)
    if function is None:
        raise UnboundedError(f"{call.op.type} has no transfer function")
    if any(value.shape is None for value in (*call.op.input_values(), *call.op.outputs)):
        raise UnboundedError("a rank is open")
    results = function(call)
    return results if isinstance(results, tuple) else (results,)


def _unknown(value: Value) -> Bound:
    """A constant, or a value of which nothing is known."""
    if not isinstance(value.data, np.ndarray):
        return top(value.shape or ())
    data: Array = value.data
    fetch: Callable[[], Array] = lambda: data  # noqa: E731
    return Constant(data.shape, fetch)


def anything(value: Value) -> Bound:
    """What a type holds; of floats nothing is known."""
    low, high = _ENDLESS if value.dtype.startswith("float") else RANGES.get(value.dtype, _ENDLESS)
    return between(value.shape or (), low, high)


def _rounded(bound: Bound, op: Op, value: Value, slack: Slack) -> Bound:
    """The bound of a result as it is stored."""
    relative, absolute = slack.of(op.type)
    is_exact = facts_of(op.type).rounds_nothing and op.type not in slack.ops
    if not value.dtype.startswith("float") or is_exact or bound.fetch is not None:
        return bound
    rule: BallRule | None = None
    if bound.rule is not None:

        def rule(axis: int, blocks: int) -> Ball | None:
            ball = bound.known_ball(axis, blocks)
            return None if ball is None else replace(ball, error=ball.error + relative * bound.magnitude + absolute)

    keeps_sign = slack.ops.get(op.type, (0.0, 0.0))[1] == 0
    low, high = moved_apart(bound.low, bound.high, relative, absolute, keeps_sign=keeps_sign)
    return Bound(
        bound.shape,
        low,
        high,
        rule=rule,
        shares=bound.shares,
        excess=bound.excess,
        squares=None if bound.squares is None else bound.squares.stored(relative, absolute, bound.lowest),
    )
