"""Gathers without the guard of their places, where no place is negative."""

from functools import cache

import numpy as np

from coreflow.export.engine.bounds.analysis import Bounds, bounds_of
from coreflow.export.engine.repair.facts import Facts
from coreflow.export.engine.repair.rewrite import Builder, Uses, argument, number, rewrite
from coreflow.export.package.graph import Graph, Op, Value

_INTEGERS = {"int8", "uint8", "int16", "uint16", "int32", "uint32"}


def without_gather_guards(graph: Graph, facts: Facts) -> Graph:
    """Gathers that read the places as they come.

    Given::

        %i = cast(x=%ids, dtype="int16")
        %j = select(cond=greater_equal(x=%i, y=0), a=%i, b=%i + 30522)
        %y = gather(x=%table, indices=cast(x=%j, dtype="int16"))

    Result::

        %y = gather(x=%table, indices=%ids)

    Six of the seven ops that a published DistilBERT has on the CPU are this guard (erwinzhang7/coreml-compute-placement; M4 Pro, M5 Max).
    It goes where the bounds of the inputs, which a package records or the caller gives, show that no place is below zero, and casts go
    whose types hold all places.
    """
    uses = Uses(graph)

    @cache
    def bounds() -> Bounds:
        return bounds_of(graph, facts.bounds)

    def ends(value: Value) -> tuple[float, float]:
        bound = bounds().of(value)
        return float(np.min(bound.low)), float(np.max(bound.high))

    def bare(value: Value) -> Value:
        """What ``value`` is without casts and guards that change no number."""
        if (cast := uses.made_by(value, "cast")) is not None and (x := argument(cast, "x")) is not None:
            limits = np.iinfo(value.dtype) if value.dtype in _INTEGERS else None
            if limits is not None and x.dtype in _INTEGERS and limits.min <= ends(x)[0] and ends(x)[1] <= limits.max:
                return bare(x)
        if (places := _guarded(value, uses)) is not None and ends(places)[0] >= 0:
            return bare(places)
        return value

    def rule(op: Op, new: Builder) -> bool:
        indices = argument(op, "indices")
        if not op.type.startswith("gather") or indices is None or (places := bare(indices)) is indices:
            return False
        new.again(op, indices=places, gives=op.outputs[0])
        return True

    return rewrite(graph, rule)


def _guarded(value: Value, uses: Uses) -> Value | None:
    """The places that ``select`` takes where they are not negative; None where ``value`` is no such select."""
    select = uses.made_by(value, "select")
    if select is None:
        return None
    places, compared = argument(select, "a"), uses.made_by(argument(select, "cond"), "greater_equal")
    if places is None or compared is None or number(compared.inputs.get("y")) != 0:
        return None
    return places if _source(places, uses) is _source(argument(compared, "x"), uses) else None


def _source(value: Value | None, uses: Uses) -> Value | None:
    """``value`` before casts of whole numbers."""
    cast = uses.made_by(value, "cast")
    x = None if cast is None else argument(cast, "x")
    return value if x is None or x.dtype not in _INTEGERS else _source(x, uses)
