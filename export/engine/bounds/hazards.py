"""Hazards of values on the engine: for every op what could leave its range, and whether bounds rule it out or data reach it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from coreflow.export.engine.bounds.analysis import Bounds
from coreflow.export.package.graph import Graph, Op
from coreflow.export.package.op_facts import facts_of
from coreflow.models import fp16

# A result that leaves fp16; a sum of products from 2^15 on; a number whose square leaves fp16; an exponent whose exp does; and results of
# products so small that what the accumulator loses is more than a hundredth of them, which bounds cannot tell, but data.
Kind = Literal["overflow", "sum", "square", "exponent", "small"]
Verdict = Literal["proved", "seen", "open"]
# Ends of the ranges, by rules E1, E2, E5 and E7 of the published arithmetic (docs/engine.md).
LIMITS: Mapping[Kind, float] = {"overflow": fp16.MAX, "sum": 2.0**15, "square": 255.9375, "exponent": 11.09, "small": 0.01}
LOSS = 4.4e-6  # of one result, times the root of the number of its products, whatever its size
NEAR = 2.0  # data within this factor of a limit have come near: a hazard is seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The largest magnitudes that an op had over some data, and the root mean square of its results; 0 for what it has not.

    >>> Seen(result=3.5, sum=12.0, rms=0.8)
    """

    result: float = 0.0
    sum: float = 0.0
    square: float = 0.0
    exponent: float = 0.0
    rms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hazard:
    """Something that one op could do on the engine, and how far that is from happening.

    >>> [(hazard.op.name, hazard.kind, hazard.bound) for hazard in hazards(graph, bounds) if hazard.verdict != "proved"]

    ``bound`` is the largest magnitude that can occur and ``seen`` the largest that did; None without data. Of small products both are the
    share of the results that is lost. ``reason`` says why the bound has no end, where that is known; ``follows``: what the op reads may be
    out of range already.
    """

    op: Op
    kind: Kind
    verdict: Verdict
    bound: float
    seen: float | None
    reason: str = ""
    follows: bool = False

    @property
    def limit(self) -> float:
        """From where on it happens."""
        return LIMITS[self.kind]


def hazards(graph: Graph, bounds: Bounds, data: Mapping[str, Seen] | None = None) -> tuple[Hazard, ...]:
    """Every hazard of every op that gives fp16 numbers, in the order of the program; ``data`` by name of an op."""
    return tuple(hazard for op in graph.walk() for hazard in _of(op, bounds, None if data is None else data.get(op.name, Seen())))


def _of(op: Op, bounds: Bounds, seen: Seen | None) -> Iterator[Hazard]:
    results = [value for value in op.outputs if value.dtype == "float16"]
    if not results or op.type.startswith("constexpr_"):
        return
    sizes: dict[Kind, float] = {"overflow": max(bounds.of(value).largest for value in results)}
    sizes.update(bounds.inner(op).items())
    follows = any(bounds.of(value).largest > fp16.MAX for value in op.input_values() if value.data is None and value.dtype == "float16")
    for kind, size in sizes.items():
        magnitude = None if seen is None else seen.result if kind == "overflow" else getattr(seen, kind)
        # A sum reaches the limit at 2^15 itself, the others beyond the largest number that they hold.
        is_proved = size < LIMITS[kind] if kind == "sum" else size <= LIMITS[kind]
        verdict: Verdict = "proved" if is_proved else "seen" if magnitude is not None and magnitude * NEAR >= LIMITS[kind] else "open"
        reason = "" if follows else _reason(op, bounds, size)
        yield Hazard(op=op, kind=kind, verdict=verdict, bound=size, seen=magnitude, reason=reason, follows=follows)
    yield from () if seen is None else _small(op, seen)


def _small(op: Op, seen: Seen) -> Iterator[Hazard]:
    """Products whose results are hardly larger than what the accumulator loses."""
    if seen.rms > 0 and facts_of(op.type).is_contraction:
        lost = LOSS * math.sqrt(facts_of(op.type).terms(op)) / seen.rms
        if lost > LIMITS["small"]:
            yield Hazard(op=op, kind="small", verdict="seen", bound=lost, seen=lost)


def _reason(op: Op, bounds: Bounds, size: float) -> str:
    """Why a bound has no end."""
    if op.name in bounds.reasons:
        return bounds.reasons[op.name]
    return "a divisor may be 0" if math.isinf(size) and op.type in ("real_div", "inverse", "rsqrt", "log") else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proofs:
    """How many ops no input within the bounds takes out of range; small products are in range.

    >>> proofs = proofs_of(hazards(graph, bounds))
    >>> proofs.ops, proofs.count("proved"), proofs.share

    ``worst`` has the worst verdict by name of an op: seen before open before proved.
    """

    worst: Mapping[str, Verdict] = field(default_factory=dict)

    def count(self, verdict: Verdict) -> int:
        """Ops of this verdict."""
        return sum(worst == verdict for worst in self.worst.values())

    @property
    def ops(self) -> int:
        """Ops that give fp16 numbers."""
        return len(self.worst)

    @property
    def share(self) -> float:
        """Of the ops, those of which everything is proved; 1 where there is none."""
        return self.count("proved") / self.ops if self.ops else 1.0


_ORDER: tuple[Verdict, ...] = ("proved", "open", "seen")


def proofs_of(listed: Sequence[Hazard]) -> Proofs:
    """The worst verdict of every op."""
    worst: dict[str, Verdict] = {}
    for hazard in listed:
        if hazard.kind == "small":
            continue
        worst[hazard.op.name] = max(worst.get(hazard.op.name, "proved"), hazard.verdict, key=_ORDER.index)
    return Proofs(worst=worst)
