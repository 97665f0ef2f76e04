"""How long the Neural Engine takes for a program, and what energy, as ranges between published figures; each end says what set it.

No published model is better than a factor of two: that of the guide is off by 31 % in the median of 68 graphs, and several times for single
layers (ane-hardware.md 6.2). Core ML's planner is no forecast at all. So every figure here is a range, from all work overlapped at the best
rate that was ever published of a chip to every op alone at the least.
"""

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

from coreflow.export.engine.placement import PlacedOp, Placement
from coreflow.models.errors import ConfigError

Quantity = Literal["floor", "matmul", "conv", "stream", "elementwise", "norm", "power"]
UNITS: Mapping[Quantity, str] = {
    "floor": "ms",
    "matmul": "TFLOP/s",
    "conv": "TFLOP/s",
    "stream": "GB/s",
    "elementwise": "GB/s",
    "norm": "GB/s",
    "power": "W",
}
_RATES = Path(__file__).parent / "rates.toml"
_CONVOLUTIONS = ("conv", "conv_transpose")
_PRODUCTS = ("linear", "matmul", "einsum", "scaled_dot_product_attention")
_NORMS = ("layer_norm", "instance_norm", "l2_norm", "local_response_norm", "softmax")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One published figure of a chip.

    >>> chip_named("M5Pro").figures["stream"][0]
    Figure(value=112.0, what='matmul of one row', label='measured', source='G', borrowed_from='')
    """

    value: float
    what: str
    label: str
    source: str
    borrowed_from: str = ""  # the chip whose figure it is, where it is another's


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """What is published of the speed and the power of a chip.

    >>> chip_named("m5 pro").range_of("power")
    (5.5, 8.7)
    """

    key: str
    name: str
    target: str  # of the placement
    figures: Mapping[Quantity, tuple[Figure, ...]]

    def least(self, quantity: Quantity) -> Figure:
        """The smallest published figure."""
        return min(self.figures[quantity], key=lambda figure: figure.value)

    def greatest(self, quantity: Quantity) -> Figure:
        """The largest published figure."""
        return max(self.figures[quantity], key=lambda figure: figure.value)

    def range_of(self, quantity: Quantity) -> tuple[float, float]:
        """Both, in the unit of ``UNITS``."""
        return self.least(quantity).value, self.greatest(quantity).value


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one quantity adds to a call, in milliseconds, and the figures that set both ends.

    >>> [(part.quantity, part.low_ms, part.high_ms) for part in estimate(placement, chip).parts]
    """

    quantity: Quantity
    ops: int
    low_ms: float
    high_ms: float
    fastest: Figure
    slowest: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A call of one program on one chip: the part of the Neural Engine, without Core ML's own overhead and without ops on the CPU.

    >>> latency = estimate(place(graph, find_targets("M5")[0]), chip_named("M5Pro"))
    >>> latency.low_ms, latency.high_ms, latency.low_mj, latency.high_mj, latency.cpu_ops

    No published figure holds for the CPU; a program without an op on the engine has no parts, and takes 0 to 0 ms of it.
    """

    chip: Chip
    target: str  # whose placement it is
    segments: int
    engine_ops: int
    cpu_ops: int
    low_ms: float
    high_ms: float
    low_mj: float
    high_mj: float
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one op asks of the engine.

    >>> work_of(placement.ops[3])
    Work(quantity='matmul', flops=1179648.0, weight_bytes=1179648.0, moved_bytes=3072.0)
    """

    quantity: Literal["matmul", "conv", "elementwise", "norm"]
    flops: float = 0.0
    weight_bytes: float = 0.0  # compressed weights as the fp16 they stand for
    moved_bytes: float = 0.0  # what runs through it


def estimate(placement: Placement, chip: Chip) -> Latency:
    """The range of a program that is placed so; ops on the CPU are counted, and not timed."""
    engine = [op for op in placement.ops if op.device == "engine"]
    segments = sum(region.device == "engine" for region in placement.regions)
    return latency_of(
        map(work_of, engine), segments, chip, cpu_ops=len(placement.ops) - len(engine), target=placement.target.key, ops=len(engine)
    )


def work_of(op: PlacedOp) -> Work:
    """The work of one op, by its shapes."""
    features = op.features
    constants = math.fsum(tensor.bytes for tensor in features.constants)
    moved = math.fsum(tensor.bytes for tensor in (*features.inputs, *features.outputs))
    if op.type in _CONVOLUTIONS:
        return Work(quantity="conv", flops=2.0 * op.multiply_adds, weight_bytes=constants, moved_bytes=moved)
    if op.type in _PRODUCTS:
        return Work(quantity="matmul", flops=2.0 * op.multiply_adds, weight_bytes=constants, moved_bytes=moved)
    is_norm = op.type in _NORMS or op.type.startswith("reduce_")
    return Work(quantity="norm" if is_norm else "elementwise", moved_bytes=moved + constants)


def latency_of(works: Iterable[Work], segments: int, chip: Chip, *, cpu_ops: int = 0, target: str = "", ops: int = 0) -> Latency:
    """The range of ``works`` in so many segments.

    Low: the least call, or all work at the greatest rates with weights read meanwhile and everything else fused, whichever is longer.
    High: the greatest call for every segment, plus the arithmetic, weights, inputs and outputs of every op in turn at the least rates.
    """
    listed = list(works)
    if not listed:
        nothing = dict.fromkeys(("low_ms", "high_ms", "low_mj", "high_mj"), 0.0)
        return Latency(chip=chip, target=target, segments=0, engine_ops=0, cpu_ops=cpu_ops, parts=(), **nothing)
    parts = _parts(listed, segments, chip)
    floor = chip.least("floor").value
    low = max(floor, math.fsum(_fastest_ms(work, chip) for work in listed))
    high = math.fsum(part.high_ms for part in parts)
    idle, busy = chip.range_of("power")
    return Latency(
        chip=chip,
        target=target,
        segments=segments,
        engine_ops=ops or len(listed),
        cpu_ops=cpu_ops,
        low_ms=low,
        high_ms=high,
        low_mj=low * idle,
        high_mj=high * busy,
        parts=parts,
    )


def _fastest_ms(work: Work, chip: Chip) -> float:
    if work.quantity in ("elementwise", "norm"):
        return 0.0
    return max(
        _arithmetic_ms(work.flops, chip.greatest(work.quantity).value), _transfer_ms(work.weight_bytes, chip.greatest("stream").value)
    )


def _arithmetic_ms(flops: float, tera: float) -> float:
    return flops / tera * 1e-9


def _transfer_ms(size: float, giga: float) -> float:
    return size / giga * 1e-6


def _parts(works: Sequence[Work], segments: int, chip: Chip) -> tuple[Part, ...]:
    floor = Part(
        quantity="floor",
        ops=segments,
        low_ms=chip.least("floor").value,
        high_ms=segments * chip.greatest("floor").value,
        fastest=chip.least("floor"),
        slowest=chip.greatest("floor"),
    )
    parts = [floor]
    products: tuple[Quantity, ...] = ("matmul", "conv")
    for quantity in products:
        members = [work for work in works if work.quantity == quantity]
        if members:
            parts.append(_part(quantity, len(members), partial(_arithmetic_ms, math.fsum(work.flops for work in members)), chip))
    readers = [work for work in works if work.weight_bytes]
    if readers:
        parts.append(_part("stream", len(readers), partial(_transfer_ms, math.fsum(work.weight_bytes for work in readers)), chip))
    movers: tuple[Quantity, ...] = ("elementwise", "norm")
    for quantity in movers:
        # What goes in and out of a product counts as elementwise where it is not fused; the best case moves nothing.
        members = [work for work in works if (work.quantity == "norm") == (quantity == "norm") and work.moved_bytes]
        if members:
            slow = _transfer_ms(math.fsum(work.moved_bytes for work in members), chip.least(quantity).value)
            parts.append(
                Part(
                    quantity=quantity,
                    ops=len(members),
                    low_ms=0.0,
                    high_ms=slow,
                    fastest=chip.greatest(quantity),
                    slowest=chip.least(quantity),
                )
            )
    return tuple(parts)


def _part(quantity: Quantity, ops: int, milliseconds: Callable[[float], float], chip: Chip) -> Part:
    fastest, slowest = chip.greatest(quantity), chip.least(quantity)
    return Part(
        quantity=quantity,
        ops=ops,
        low_ms=milliseconds(fastest.value),
        high_ms=milliseconds(slowest.value),
        fastest=fastest,
        slowest=slowest,
    )


# --- the table -----------------------------------------------------------------------------------------------------------------------


def chip_named(name: str) -> Chip:
    """The chip of that name, as ``M5Pro``, ``m5 pro`` or ``M5 Max``; ``ConfigError`` for one of which nothing is published."""
    chips = all_chips()
    plain = name.replace(" ", "").lower()
    for key, chip in chips.items():
        aliases = {key.lower(), *(f"{key.removesuffix('Pro').removesuffix('Max')}{tier}".lower() for tier in _tiers(chip))}
        if plain in aliases:
            return chip
    raise ConfigError(f"no figures of a chip {name!r}; there are those of {', '.join(chips)}", expected=tuple(chips))


def _tiers(chip: Chip) -> tuple[str, ...]:
    return ("Pro", "Max") if "," in chip.name else ()


@cache
def all_chips() -> Mapping[str, Chip]:
    """Every chip with figures, by key."""
    plain = _plain()["chips"]
    return {key: _chip(plain, key) for key in plain}


def rate_labels() -> Mapping[str, str]:
    """What the labels of figures mean."""
    return dict(_plain()["labels"])


def rate_sources() -> Mapping[str, str]:
    """Whom the letters of the sources stand for."""
    return dict(_plain()["sources"])


@cache
def _plain() -> Mapping[str, Any]:
    return tomllib.loads(_RATES.read_text(encoding="utf-8"))


def _chip(plain: Mapping[str, Any], key: str) -> Chip:
    line = [key]
    while base := plain[line[-1]].get("base"):
        line.append(base)

    def figures(quantity: Quantity) -> tuple[Figure, ...]:
        owner = next(owner for owner in line if quantity in plain[owner])
        return tuple(_figure(entry, "" if owner == key else owner) for entry in plain[owner][quantity])

    return Chip(
        key=key,
        name=plain[key]["name"],
        target=plain[key]["target"],
        figures={quantity: figures(quantity) for quantity in get_args(Quantity)},
    )


def _figure(entry: Mapping[str, Any], borrowed_from: str) -> Figure:
    return Figure(**entry, borrowed_from=borrowed_from)
