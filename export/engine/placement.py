"""Which device Core ML will give each op of a program, as predicted from published tables: ops, regions, margins, and what is uncertain."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from coreflow.export.engine.cost import Estimate, estimate
from coreflow.export.engine.features import Features, features_of
from coreflow.export.engine.segmenter import TIE_MS, Choice, Costs, choose
from coreflow.export.engine.support import Support, support
from coreflow.export.engine.targets import Backend, Target
from coreflow.export.package.graph import Graph
from coreflow.export.package.op_facts import facts_of

Device = Literal["engine", "cpu"]
FRAGILE_MS = 0.02  # a margin that an error of the tables, or the next system, may well exceed

# What is not known and may decide: the price of a later launch, which the one published program with two puts below the published constant,
# and the rates of a size that lies between two published ones.
Unknown = Literal["second launch", "rates"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedOp:
    """One op with its device, what that costs, and what the other device would.

    >>> op = place(graph, target).ops[0]
    >>> op.device, op.margin_ms, op.support.reason

    ``ms`` is by back end and holds the engine where it takes the op; ``margin_ms`` what the best path with this op on the other device
    costs more, infinite where no other device takes it; ``share`` the part of the program's estimate, which is the cost column of a
    compute plan; ``turns_on`` what is not known and would change the device.
    """

    name: str
    result: str  # the name of its first result
    features: Features
    support: Support
    ms: Mapping[Backend, float]
    backend: Backend
    margin_ms: float
    share: float
    multiply_adds: int
    is_borrowed: bool
    turns_on: tuple[Unknown, ...] = ()

    @property
    def type(self) -> str:
        """The op's type."""
        return self.features.type

    @property
    def device(self) -> Device:
        """Where it runs; which of the CPU's two back ends is not published of any program."""
        return "engine" if self.backend == "ane" else "cpu"

    @property
    def is_tied(self) -> bool:
        """Whether both devices cost the same: a plan may show either."""
        return self.margin_ms < TIE_MS

    @property
    def is_fragile(self) -> bool:
        """Whether a small difference, or one that is not known, would move it."""
        return self.margin_ms < FRAGILE_MS or bool(self.turns_on)


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A maximal run of ops on one device.

    >>> [(region.device, region.size, region.flip_ms) for region in place(graph, target).regions]

    ``margin_ms`` is what the next best path that differs anywhere in the region costs more, ``flip_ms`` what the best one costs more that
    has no op of the region on this device: infinite where some op runs nowhere else.
    """

    device: Device
    first: int
    last: int
    ms: float
    share: float
    multiply_adds: int
    margin_ms: float
    flip_ms: float
    turns_on: tuple[Unknown, ...]

    @property
    def size(self) -> int:
        """How many ops."""
        return self.last - self.first + 1

    @property
    def is_fragile(self) -> bool:
        """Whether the region as a whole hangs on a small difference, or on something that is not known."""
        return self.flip_ms < FRAGILE_MS or bool(self.turns_on)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The predicted device of every op of a function, on one target, with compute units CPU_AND_NE.

    >>> placement = place(read_program("encoder.mlpackage").function()[0], find_targets("M4/macOS27")[0])
    >>> placement.count("engine"), placement.total_ms
    """

    target: Target
    ops: tuple[PlacedOp, ...]
    regions: tuple[Region, ...]
    total_ms: float  # estimates, switches and launches of the best path

    def count(self, device: Device) -> int:
        """Ops on a device."""
        return sum(op.device == device for op in self.ops)

    def ops_of(self, region: Region) -> tuple[PlacedOp, ...]:
        """The ops of one region."""
        return self.ops[region.first : region.last + 1]


def place(graph: Graph, target: Target) -> Placement:
    """The placement of one function; ops are taken in the order of the file, as Core ML's own passes are not known.

    An op of control flow is one op, with its blocks.
    """
    pairs = list(features_of(graph))
    supports = [support(features, target) for _, features in pairs]
    estimates = [estimate(features, target) for _, features in pairs]
    costs = [_costs(priced.ms, taken) for priced, taken in zip(estimates, supports, strict=True)]
    choice = choose(costs, target)
    turns_on = _turning_points(costs, choice, estimates, supports, target)
    chosen_ms = [cost[backend] for cost, backend in zip(costs, choice.backends, strict=True)]
    whole = math.fsum(chosen_ms) or 1.0
    ops = tuple(
        PlacedOp(
            name=op.name,
            result=op.outputs[0].name if op.outputs else op.name,
            features=features,
            support=taken,
            ms=cost,
            backend=backend,
            margin_ms=margin,
            share=ms / whole,
            multiply_adds=(count(op) or 0) if (count := facts_of(op.type).multiply_adds) else 0,
            is_borrowed=priced.is_borrowed,
            turns_on=reasons,
        )
        for (op, features), taken, priced, cost, backend, margin, ms, reasons in zip(
            pairs, supports, estimates, costs, choice.backends, choice.margins, chosen_ms, turns_on, strict=True
        )
    )
    return Placement(target=target, ops=ops, regions=_regions(ops, choice, chosen_ms), total_ms=choice.total_ms)


def _costs(ms: Mapping[Backend, float], taken: Support) -> dict[Backend, float]:
    return {backend: value for backend, value in ms.items() if backend != "ane" or taken.engine}


def _regions(ops: Sequence[PlacedOp], choice: Choice, chosen_ms: Sequence[float]) -> tuple[Region, ...]:
    regions = []
    for (first, last), flip in zip(choice.segments, choice.flips, strict=True):
        members = ops[first : last + 1]
        unknowns: tuple[Unknown, ...] = ("second launch", "rates")
        common = [reason for reason in unknowns if all(reason in op.turns_on or op.margin_ms == math.inf for op in members)]
        regions.append(
            Region(
                device=members[0].device,
                first=first,
                last=last,
                ms=math.fsum(chosen_ms[first : last + 1]),
                share=math.fsum(op.share for op in members),
                multiply_adds=sum(op.multiply_adds for op in members),
                margin_ms=min(op.margin_ms for op in members),
                flip_ms=flip,
                turns_on=tuple(common) if any(op.turns_on for op in members) else (),
            )
        )
    return tuple(regions)


def _turning_points(
    costs: Costs, choice: Choice, estimates: Sequence[Estimate], supports: Sequence[Support], target: Target
) -> list[tuple[Unknown, ...]]:
    """By op: what is not known and would give it another device."""
    reasons: list[list[Unknown]] = [[] for _ in costs]
    variants: list[tuple[Unknown, Choice]] = []
    if sum(backend == "ane" for backend in choice.backends) < len(costs):
        variants.append(("second launch", choose(costs, target.with_second_launch(0.0))))
    if any(priced.others for priced in estimates):
        others = [
            _costs(priced.others[0] if priced.others else priced.ms, taken) for priced, taken in zip(estimates, supports, strict=True)
        ]
        variants.append(("rates", choose(others, target)))
    for reason, other in variants:
        for i, (backend, changed) in enumerate(zip(choice.backends, other.backends, strict=True)):
            if (backend == "ane") != (changed == "ane") and other.margins[i] > TIE_MS:
                reasons[i].append(reason)
    return [tuple(named) for named in reasons]
