"""Carries bounds through a graph, op by op."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from coreflow.export.engine.bounds.bound import Ball, BallRule, Bound, Constant, UnboundedError, between, top
from coreflow.export.engine.bounds.registry import TRANSFERS, Call, Inner, load_transfers
from coreflow.export.engine.bounds.slack import STORED, Slack
from coreflow.export.engine.bounds.spectrum import Work
from coreflow.export.package.graph import Graph, Op, Value
from coreflow.export.package.op_facts import facts_of
from coreflow.models import fp16
from coreflow.models.arrays import Floats

Interval = tuple[float, float]
WORK = 4e10  # multiply-adds for largest singular values: about two seconds of one core

# The numbers that a type holds.
_RANGES: Mapping[str, Interval] = {
    "bool": (0.0, 1.0),
    "float16": (-fp16.MAX, fp16.MAX),
    "int8": (-(2.0**7), 2.0**7 - 1),
    "uint8": (0.0, 2.0**8 - 1),
    "int16": (-(2.0**15), 2.0**15 - 1),
    "uint16": (0.0, 2.0**16 - 1),
    "int32": (-(2.0**31), 2.0**31 - 1),
}


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
    """Bounds of every value of ``graph``, for inputs within ``inputs``; one that is not named may be any number of its type."""
    load_transfers()
    bounds = Bounds()
    for value in graph.inputs:
        low, high = inputs.get(value.name, _RANGES.get(value.dtype, (-np.inf, np.inf)))
        if value.dtype == "float16":  # a bound between two numbers of fp16 is rounded by whoever passes it
            low, high = low - fp16.UNIT_ROUNDOFF * abs(low), high + fp16.UNIT_ROUNDOFF * abs(high)
        bounds.values[id(value)] = between(value.shape or (), low, high)
    _walk(graph, bounds, slack, Work(WORK))
    return bounds


def _walk(graph: Graph, bounds: Bounds, slack: Slack, work: Work) -> None:
    with np.errstate(all="ignore"):
        for op in graph.ops:
            call = Call(op=op, bounds=bounds.of, slack=slack, work=work, opset=graph.opset)
            try:
                results = _results(call)
            except UnboundedError as error:
                bounds.reasons[op.name] = str(error)
                results = tuple(_anything(value) for value in op.outputs)
            bounds.inners[id(op)] = call.inner
            for value, result in zip(op.outputs, results, strict=True):
                bounds.values[id(value)] = _rounded(result, op, value, slack)


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
    return Constant(value.data) if isinstance(value.data, np.ndarray) else top(value.shape or ())


def _anything(value: Value) -> Bound:
    """What a type holds; of floats nothing is known."""
    low, high = (-np.inf, np.inf) if value.dtype.startswith("float") else _RANGES.get(value.dtype, (-np.inf, np.inf))
    return between(value.shape or (), low, high)


def _rounded(bound: Bound, op: Op, value: Value, slack: Slack) -> Bound:
    """The bound of a result as it is stored."""
    relative, absolute = slack.of(op.type)
    if not value.dtype.startswith("float") or (facts_of(op.type).rounds_nothing and op.type not in slack.ops):
        return bound
    rule: BallRule | None = None
    if bound.rule is not None:

        def rule(axis: int, blocks: int) -> Ball | None:
            ball = bound.known_ball(axis, blocks)
            return None if ball is None else replace(ball, error=ball.error + relative * bound.magnitude + absolute)

    def less(end: Floats) -> Floats:
        return relative * np.abs(end) + absolute

    return Bound(
        bound.shape,
        bound.low - less(bound.low),
        bound.high + less(bound.high),
        rule=rule,
        shares=bound.shares,
        excess=bound.excess,
        squares=bound.squares,
    )
