"""Which op of a program loses what: the program walked in two arithmetics at once, every result measured and let go.

The fp16 walk (rung R4) is what is judged. Beside every one of its results stand the same op without its rounding, on the same inputs (the
*local* error: what this op loses by itself, whatever came before), and the result of the walk in fp64 (R3; the *accumulated* error). Local
errors are not amplified by what follows and assume nothing about depth; the ratio of an op's accumulated error to that of its inputs is its
*amplification*, by which a subtraction that cancels shows, although it loses nothing itself.
"""

import math
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coreflow.export.package.graph import Op, Value
from coreflow.export.package.op_facts import facts_of
from coreflow.models import fp16
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.lift.plan.plan import Step
from coreflow.runtime.lifted import LiftedModel
from coreflow.validate.gates.metrics import ratio
from coreflow.validate.ladder.risks import never_exercised
from coreflow.validate.report.model import OpReport, Origin

# RMS error of rounding to fp16, as a share of the RMS of what is rounded: ulp / sqrt(12) of each value, averaged over a normal
# distribution's binades (simulated with 1e7 draws: 0.41 unit roundoffs).
ROUNDING = 0.41 * fp16.UNIT_ROUNDOFF
# Bytes of values that samples which are walked together may hold at a time, beside the weights.
_ROOM = 256e6
_FEW_ROWS = 16  # up to which a product is as fast as its weights are read
# A unit of error that is no error: what fp64 against fp64 may differ by.
_NEGLIGIBLE = 1e-12


@dataclass(slots=True)
class Range:
    """Which values were seen, over all samples; finite ones only."""

    low: float = math.inf
    high: float = -math.inf
    smallest: float = math.inf  # magnitude, without zeros

    def widen(self, values: Tensor) -> None:
        """Take ``values`` in."""
        if not values.numel() or not values.is_floating_point():
            return
        low, high = _ends(values)
        if not math.isfinite(low + high):
            values = values[torch.isfinite(values)]
            if not values.numel():
                return
            low, high = _ends(values)
        self.include(low, high, smallest_of(values))

    def include(self, low: float, high: float, smallest: float) -> None:
        """Take values between ``low`` and ``high`` in, the smallest magnitude of which, without zeros, is ``smallest``."""
        self.low, self.high, self.smallest = min(self.low, low), max(self.high, high), min(self.smallest, smallest)

    @property
    def largest(self) -> float:
        """Magnitude; 0 when nothing finite was seen."""
        return max(abs(self.low), abs(self.high)) if self.low <= self.high else 0.0


def smallest_of(values: Tensor) -> float:
    """The smallest magnitude that is not zero, of finite numbers; infinite where all are zero.

    Found among the bits, which order magnitudes as integers do: one less than those of zero wraps around to the largest. A mask and a
    selection take ten times as long.
    """
    double = values.dtype == torch.float64
    widest = 2**63 - 1 if double else 2**31 - 1
    least = int(values.abs().view(torch.int64 if double else torch.int32).sub_(1).bitwise_and_(widest).min())
    if least == widest:
        return math.inf
    return float(struct.unpack("=d", struct.pack("=q", least + 1))[0] if double else struct.unpack("=f", struct.pack("=i", least + 1))[0])


def _ends(values: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(values)
    return low.item(), high.item()


@dataclass(slots=True)
class _Tally:
    """Sums over all elements and samples of one op's first floating result."""

    elements: int = 0
    local: float = 0.0  # sum of squares of the local error
    wide: float = 0.0  # and of what it is an error of
    error: float = 0.0  # and of the accumulated error
    exact: float = 0.0
    local_max: float = 0.0
    wide_max: float = 0.0
    overflowed: int = 0
    underflowed: int = 0
    range: Range = field(default_factory=Range)

    @property
    def relative(self) -> float:
        """Accumulated error as a share of the result."""
        return math.sqrt(ratio(self.error, self.exact))

    @property
    def local_rho(self) -> float:
        """Local error in roundings."""
        return ratio(math.sqrt(self.local), ROUNDING * math.sqrt(self.wide))

    @property
    def ulps(self) -> float:
        """Largest local error in units of the last place of the largest result."""
        return self.local_max / _spacing(self.wide_max) if self.wide_max else 0.0


class Localiser:
    """Runs a program's fp16 and fp64 forms side by side, sample after sample, and keeps what the ops lost.

    ``narrow`` and ``wide`` are the same function of the same package. Tensors live as long as the program needs them; what stays are
    some numbers an op. States have to be inputs of both (``states.StatelessLifted``).
    """

    def __init__(self, narrow: LiftedModel, wide: LiftedModel) -> None:
        if narrow.states:
            raise UnsupportedError(f"{narrow.program.path.name} keeps states; ops are looked at with states as inputs")
        self.narrow, self.wide = narrow, wide
        narrow.interpreter.rest()  # its ops are looked at, by another plan
        self.ops: tuple[Op, ...] = tuple(step.op for step in narrow.interpreter.plan.steps)  # in execution order
        self._tallies = [_Tally() for _ in self.ops]
        self._exact = [facts_of(op.type).rounds_nothing for op in self.ops]
        self._ranges: dict[int, Range] = {}  # id of an input Value of the graph

    def wide_values(self, inputs: Mapping[str, Any]) -> list[Tensor | None]:
        """Every op's first result in fp64, in execution order."""
        seen: list[Tensor | None] = []
        tops = {id(op) for op in self.ops}

        def observe(op: Op, results: tuple[Any, ...]) -> None:
            if id(op) in tops:  # not what the blocks of another do
                seen.append(results[0] if results and isinstance(results[0], Tensor) else None)

        self.wide.predict(inputs, observe=observe)
        return seen

    def run(self, samples: Sequence[Mapping[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """What ``narrow`` and ``wide`` predict of every sample, as ``predict`` gives it.

        As many samples as there is room for are walked together, op by op, so that weights are read once for all of them.
        """
        together = self._together()
        for first in range(0, len(samples), together):
            yield from self._walk(samples[first : first + together])

    def _walk(self, samples: Sequence[Mapping[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        models = self.narrow, self.wide
        narrows, wides = ([model.interpreter.environment(model.prepared(each)) for each in samples] for model in models)
        for value, slot in zip(self.narrow.interpreter.graph.inputs, self.narrow.interpreter.plan.inputs, strict=True):
            for side in narrows:
                if isinstance(side[slot], Tensor):  # not the buffer of a state: what is read from it is a result
                    self._ranges.setdefault(id(value), Range()).widen(side[slot])
        with torch.inference_mode():
            plans = (model.interpreter.plan.steps for model in models)
            for narrow, wide, tally, exact in zip(*plans, self._tallies, self._exact, strict=True):
                references = _call_all(wide, wides)
                for side, reference in zip(narrows, references, strict=True):
                    raw = narrow.call(side)
                    for place, result in enumerate(narrow.results(side)):
                        if isinstance(result, Tensor) and result.is_floating_point():
                            given = (side[slot] for slot in narrow.sources())
                            _count(tally, result if exact else raw[place], result, reference[place], given)
                            break
                for step, sides in ((narrow, narrows), (wide, wides)):
                    for side in sides:
                        step.free(side)
        return [
            (_finished(self.narrow, narrow_side), _finished(self.wide, wide_side))
            for narrow_side, wide_side in zip(narrows, wides, strict=True)
        ]

    def _together(self) -> int:
        """How many samples there is room for; one where a shape is open, or where a state belongs to one prediction."""
        graph = self.narrow.interpreter.graph
        values = {id(value): value for value in (*graph.inputs, *(value for op in graph.ops for value in op.outputs))}.values()
        if any(value.kind != "tensor" or value.shape is None or None in value.shape for value in values):
            return 1
        plan = self.narrow.interpreter.plan
        sizes = dict(zip(plan.inputs, map(_bytes, graph.inputs), strict=True))
        held = most = sum(sizes.values())
        for step in plan.steps:
            made = dict(zip((slot for slot, _ in step.writes), map(_bytes, step.op.outputs), strict=True))
            sizes |= made
            held += sum(made.values())
            most = max(most, held)
            held -= sum(sizes.pop(slot, 0) for slot in step.frees)
        return max(1, int(_ROOM // max(most, 1)))

    def reports(self, origins: Mapping[int, Origin]) -> tuple[OpReport, ...]:
        """What was found of every op; ``origins`` by the op's place."""
        made = {id(value): tally for op, tally in zip(self.ops, self._tallies, strict=True) for value in op.outputs}
        ranges = self._ranges | {key: tally.range for key, tally in made.items()}
        return tuple(
            OpReport(
                index=index,
                name=op.name,
                type=op.type,
                shape=tuple(extent or 0 for extent in op.outputs[0].shape or ()) if op.outputs else (),
                origin=origins.get(index),
                local_rho=tally.local_rho,
                ulps=tally.ulps,
                ulps_limit=2 + math.sqrt(terms) / 16 if (terms := facts_of(op.type).terms(op)) > 1 else 2.0,
                accumulated=tally.relative,
                amplification=tally.relative / max(ROUNDING, *_relatives(op, made)) if tally.relative > _NEGLIGIBLE else 0.0,
                largest=tally.range.largest,
                smallest=tally.range.smallest if math.isfinite(tally.range.smallest) else 0.0,
                overflowed=tally.overflowed,
                underflowed=tally.underflowed / tally.elements if tally.elements else 0.0,
                never_exercised=never_exercised(op, ranges),
            )
            for index, (op, tally) in enumerate(zip(self.ops, self._tallies, strict=True))
        )


def _product(shape: tuple[int | None, ...]) -> int:
    return math.prod(extent or 1 for extent in shape)


def _bytes(value: Value) -> int:
    """What a value takes in both arithmetics, fp32 and fp64."""
    return 12 * _product(value.shape or ())


def _finished(model: LiftedModel, environment: Sequence[Any]) -> dict[str, Any]:
    outputs = zip(model.interpreter.graph.outputs, model.interpreter.plan.outputs, strict=True)
    return model.finished({value.name: environment[slot] for value, slot in outputs})


def _call_all(step: Step, environments: Sequence[list[Any]]) -> list[tuple[Any, ...]]:
    """The results of a step on every environment; a linear layer of few rows on all of them at once."""
    x = step.op.inputs.get("x")
    few = step.op.type == "linear" and len(environments) > 1 and isinstance(x, Value) and _product((x.shape or (0,))[:-1]) <= _FEW_ROWS
    if not few or [name for name, _ in step.reads] != ["x"] or step.converts or step.writes[0][1] is not None:
        for environment in environments:
            step.call(environment)
        return [step.results(environment) for environment in environments]
    slot = step.reads[0][1]
    shared: list[Any] = [None] * len(environments[0])
    shared[slot] = torch.stack([environment[slot] for environment in environments])
    (result,) = step.call(shared)
    for environment, each in zip(environments, result, strict=True):
        environment[step.writes[0][0]] = each
    return [(each,) for each in result]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Walked:
    """One walk through a program: its ops, their first results, and what the constants of some ops lose in fp16."""

    ops: tuple[Op, ...]
    values: tuple[Tensor | None, ...]
    lost: Mapping[str, float]  # name of an op -> RMS change of its result, in roundings


def walk(model: LiftedModel, inputs: Mapping[str, Any], suspects: Collection[str] = ()) -> Walked:
    """Runs ``model`` on one sample; the ops named in ``suspects`` also on their constants as fp16 holds them.

    What such an op loses by its constants alone is taken on the inputs that it really gets, so that a fault that fades in what follows
    shows where it happens. A change to or from what is not finite is infinite.
    """
    environment = model.interpreter.environment(model.prepared(inputs))
    values: list[Tensor | None] = []
    lost: dict[str, float] = {}
    steps = model.interpreter.plan.steps
    with torch.inference_mode():
        for step in steps:
            arguments = step.arguments(environment) if step.op.name in suspects else None
            step.call(environment)
            results = step.results(environment)
            first = results[0] if results and isinstance(results[0], Tensor) else None
            values.append(first)
            if arguments is not None and first is not None and first.is_floating_point():
                held = {
                    name: _as_half(value) if name in step.fixed and name in step.op.inputs else value for name, value in arguments.items()
                }
                changed = step.function(**held)
                lost[step.op.name] = _in_roundings(changed[0] if isinstance(changed, tuple) else changed, first)
            step.free(environment)
    return Walked(ops=tuple(step.op for step in steps), values=tuple(values), lost=lost)


def _as_half(value: Any) -> Any:
    """A constant argument after a rounding to fp16; what is no floating number stays."""
    if isinstance(value, Tensor):
        return value.to(torch.float16).to(value.dtype) if value.is_floating_point() else value
    return float(torch.tensor(value, dtype=torch.float64).to(torch.float16)) if isinstance(value, float) else value


def _in_roundings(changed: Tensor, right: Tensor) -> float:
    difference = (changed - right).double()
    if not bool(torch.isfinite(difference).all()):
        return math.inf
    return ratio(float(difference.square().mean().sqrt()), ROUNDING * float(right.double().square().mean().sqrt()))


def _count(tally: _Tally, raw: Tensor, result: Tensor, exact: Tensor, given: Iterable[Any]) -> None:
    """Add one sample. ``raw`` is ``result`` before its rounding, ``exact`` the value in fp64; what is not finite is only counted.

    ``given`` is what the op read, looked at only where it made what is not a number.
    """
    if exact.shape != result.shape:  # a shape that depends on values, and these on the arithmetic
        return
    moved = raw is result
    raw, result, exact = raw.reshape(-1), result.reshape(-1), exact.reshape(-1)
    tally.elements += result.numel()
    difference = exact - result
    error = torch.dot(difference, difference).item()
    whole = math.isfinite(error)
    if not whole:
        finite = torch.isfinite(result) & torch.isfinite(exact)
        tally.overflowed += int((torch.isfinite(raw) & torch.isfinite(exact) & ~torch.isfinite(result)).sum())
        invalid = int(torch.isnan(raw).sum())
        if invalid and all(bool(torch.isfinite(each).all()) for each in given if isinstance(each, Tensor)):
            tally.overflowed += invalid
        tally.range.widen(result)
        raw, result, exact = raw[finite], result[finite], exact[finite]
        difference = exact - result
        error = torch.dot(difference, difference).item()
    tally.error += error
    tally.exact += torch.dot(exact, exact).item()
    if moved or not result.numel():
        if whole:
            tally.range.widen(result)
        return
    low, high = _ends(raw)
    smallest = smallest_of(raw)
    if whole:  # roundings keep an order: the ends of what was rounded are the ends, rounded
        rounded = [float(np.float16(each)) for each in (low, high, smallest)]
        tally.range.include(rounded[0], rounded[1], rounded[2] or smallest_of(result))
    loss = result - raw
    tally.local += torch.dot(loss, loss).item()
    tally.wide += torch.dot(raw, raw).item()
    least, most = _ends(loss)
    tally.local_max = max(tally.local_max, most, -least)
    tally.wide_max = max(tally.wide_max, high, -low)
    if smallest < fp16.SMALLEST_NORMAL:
        sizes = raw.abs()
        tally.underflowed += int(((sizes < fp16.SMALLEST_NORMAL) & (sizes > 0)).sum())


def _relatives(op: Op, made: Mapping[int, _Tally]) -> Iterator[float]:
    """The accumulated errors of what ``op`` reads."""
    yield 0.0
    for value in op.input_values():
        if id(value) in made:
            yield made[id(value)].relative


def _spacing(size: float) -> float:
    """Distance of the fp16 numbers at ``size``, however large."""
    return 2.0 ** (max(math.floor(math.log2(size)), -14) - 10)
