"""What would change a placement: runs that the engine could take and does not, what they lack, and the ops that keep others off it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from coreflow.export.engine.cost import estimate
from coreflow.export.engine.features import Features, Tensor
from coreflow.export.engine.placement import PlacedOp, Placement
from coreflow.export.engine.targets import Evidence, Target

_LARGEST_FACTOR = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """Ops that the engine takes and Core ML leaves on the CPU: they save less than going there costs.

    >>> for shortfall in shortfalls(placement):
    ...     print(shortfall.first, shortfall.last, shortfall.saved_ms, shortfall.needed_ms, shortfall.batch_factor)

    ``first`` and ``last`` are places in ``placement.ops``. ``batch_factor`` is the least whole factor on the first extent of all that runs
    through at which they save enough by the same tables, None beyond 4096; ``inner_extent`` the length of rows at which linear ops
    would, where those are what is saved: the present one and the least that is enough.
    """

    first: int
    last: int
    saved_ms: float
    needed_ms: float
    batch_factor: int | None
    inner_extent: tuple[int, int] | None


def shortfalls(placement: Placement) -> Iterator[Shortfall]:
    """The best part of every run of ops that the engine takes and none of which is there."""
    for first, last in _eligible_runs(placement.ops):
        best = _best_part(placement, first, last)
        if best is not None:
            yield best


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """A reason for which the engine does not take ops, how many, their types, and how the reason is known.

    >>> [(obstacle.reason, obstacle.count) for obstacle in obstacles(placement.ops)]
    """

    reason: str
    count: int
    types: tuple[str, ...]
    evidence: Evidence | None


def obstacles(ops: Sequence[PlacedOp]) -> list[Obstacle]:
    """Why ops cannot be on the engine, most frequent reason first."""
    refused: dict[str, list[PlacedOp]] = {}
    for op in ops:
        if not op.support.engine:
            refused.setdefault(op.support.reason, []).append(op)
    listed = [
        Obstacle(reason=reason, count=len(group), types=tuple(sorted({op.type for op in group})), evidence=group[0].support.evidence)
        for reason, group in refused.items()
    ]
    return sorted(listed, key=lambda obstacle: -obstacle.count)


def _eligible_runs(ops: Sequence[PlacedOp]) -> Iterator[tuple[int, int]]:
    first = None
    for place in range(len(ops) + 1):
        eligible = place < len(ops) and ops[place].support.engine
        if eligible and first is None:
            first = place
        if not eligible and first is not None:
            if all(op.device == "cpu" for op in ops[first:place]):
                yield first, place - 1
            first = None


def _best_part(placement: Placement, first: int, last: int) -> Shortfall | None:
    """The stretch whose saving comes nearest to its price; None where nothing is saved."""
    savings = [op.ms[op.backend] - op.ms["ane"] for op in placement.ops[first : last + 1]]
    start, stop = _largest_sum(savings)
    needed = _price(placement.target, first + start)
    if first == 0 and start:  # from the first op on, a switch is saved
        whole = max(range(len(savings)), key=lambda place: math.fsum(savings[: place + 1]))
        price = _price(placement.target, 0)
        if math.fsum(savings[: whole + 1]) - price > math.fsum(savings[start : stop + 1]) - needed:
            start, stop, needed = 0, whole, price
    saved = math.fsum(savings[start : stop + 1])
    if saved <= 0:
        return None
    stretch = placement.ops[first + start : first + stop + 1]
    return Shortfall(
        first=first + start,
        last=first + stop,
        saved_ms=saved,
        needed_ms=needed,
        batch_factor=_batch_factor([op.features for op in stretch], needed, placement.target),
        inner_extent=_inner_extent(stretch, saved, needed),
    )


def _price(target: Target, first: int) -> float:
    """A switch in, unless the program begins there, a launch, and a switch out or back at the end."""
    return target.launch_ms + target.switch_ms * (1 if first == 0 else 2)


def _largest_sum(values: Sequence[float]) -> tuple[int, int]:
    """First and last place of the stretch with the largest sum."""
    best, span, running, start = -math.inf, (0, 0), 0.0, 0
    for place, value in enumerate(values):
        if running <= 0:
            running, start = 0.0, place
        running += value
        if running > best:
            best, span = running, (start, place)
    return span


def _batch_factor(stretch: Sequence[Features], needed: float, target: Target) -> int | None:
    """The least whole factor on the batch at which the stretch saves what is needed, by doubling and halving."""

    def is_enough(factor: int) -> bool:
        grown = [estimate(with_batch(features, factor), target).ms for features in stretch]
        return math.fsum(min(ms["bnns"], ms["classic"]) - ms["ane"] for ms in grown) > needed

    high = 2
    while not is_enough(high):
        high *= 2
        if high > _LARGEST_FACTOR:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def with_batch(features: Features, factor: int) -> Features:
    """The op with the first extent of all inputs and results grown by a factor; constants stay."""

    def grown(tensor: Tensor) -> Tensor:
        return replace(tensor, shape=(tensor.shape[0] * factor, *tensor.shape[1:])) if tensor.shape else tensor

    return replace(features, inputs=tuple(map(grown, features.inputs)), outputs=tuple(map(grown, features.outputs)))


def _inner_extent(stretch: Sequence[PlacedOp], saved: float, needed: float) -> tuple[int, int] | None:
    """The length of rows at which linear ops of one length save enough: their estimate grows with its square, at the rates they have."""
    linear = [op for op in stretch if op.type == "linear"]
    lengths = {op.features.inputs[0].shape[-1] for op in linear if op.features.inputs and op.features.inputs[0].shape}
    of_linear = math.fsum(op.ms[op.backend] - op.ms["ane"] for op in linear)
    if len(lengths) != 1 or of_linear < 0.9 * saved:
        return None
    (length,) = lengths
    return length, math.ceil(length * math.sqrt((needed - (saved - of_linear)) / of_linear))
