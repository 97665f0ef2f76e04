"""Localises the error of a program: runs it in two arithmetics side by side and measures every op's result.

The fp16 walk (rung R4) is the one under test. Beside every one of its results stand the same op without its rounding, on the same inputs
(the *local* error: what this op loses by itself, whatever came before), and the result of the walk in fp64 (R3; the *accumulated* error).
Local errors are not amplified by what follows and assume nothing about depth; the ratio of an op's accumulated error to that of its inputs
is its *amplification*, by which a subtraction that cancels shows, although it loses nothing itself.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from coreflow.export.package.graph import Op, Value
from coreflow.export.package.op_facts import facts_of
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.lift.plan.plan import Step
from coreflow.runtime.lifted import LiftedModel
from coreflow.validate.ladder.risks import never_exercised
from coreflow.validate.ladder.tally import ROUNDING, Range, Tally
from coreflow.validate.report.model import OpReport, Origin

# Bytes of values that samples which are walked together may hold at a time, beside the weights.
_ROOM = 256e6
_FEW_ROWS = 16  # up to which a product is as fast as its weights are read
# A unit of error that is no error: what fp64 against fp64 may differ by.
_NEGLIGIBLE = 1e-12


class Localiser:
    """Runs a program's fp16 and fp64 forms side by side, sample after sample, and keeps what the ops lost.

    Both are the same function of the same package. Tensors live as long as the program needs them; only some sums per op stay. States have
    to be inputs of both (``states.StatelessLifted``).

    >>> localiser = Localiser(model_fp16, model_fp64)
    >>> outputs = list(localiser.run(samples))
    >>> max(localiser.reports({}), key=lambda op: op.local_rho)
    """

    def __init__(self, model_fp16: LiftedModel, model_fp64: LiftedModel) -> None:
        if model_fp16.states:
            raise UnsupportedError(f"{model_fp16.program.path.name} keeps states; ops are looked at with states as inputs")
        self.model_fp16, self.model_fp64 = model_fp16, model_fp64
        model_fp16.interpreter.rest()  # its ops are looked at, by another plan
        self.ops: tuple[Op, ...] = tuple(step.op for step in model_fp16.interpreter.plan.steps)  # in execution order
        self._tallies = [Tally() for _ in self.ops]
        self._only_moves = [facts_of(op.type).rounds_nothing for op in self.ops]
        self._ranges: dict[int, Range] = {}  # id of an input Value of the graph

    def values_fp64(self, inputs: Mapping[str, Any]) -> Iterator[Tensor | None]:
        """Every op's first result in fp64, in execution order, computed when it is asked for and held as long as an op reads it."""
        model = self.model_fp64
        environment = model.interpreter.environment(model.prepare_inputs(inputs))
        for step in model.interpreter.plan.steps:
            with torch.inference_mode():
                step.call(environment)
            results = step.results(environment)
            yield results[0] if results and isinstance(results[0], Tensor) else None
            step.free(environment)

    def run(self, samples: Sequence[Mapping[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Outputs in fp16 and in fp64 of every sample.

        As many samples as there is room for are walked together, op by op, so that weights are read once for all of them.
        """
        together = self._together()
        for first in range(0, len(samples), together):
            yield from self._walk(samples[first : first + together])

    def _walk(self, samples: Sequence[Mapping[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        models = self.model_fp16, self.model_fp64
        sides_fp16, sides_fp64 = ([model.interpreter.environment(model.prepare_inputs(inputs)) for inputs in samples] for model in models)
        for value, slot in zip(self.model_fp16.interpreter.graph.inputs, self.model_fp16.interpreter.plan.inputs, strict=True):
            for side in sides_fp16:
                if isinstance(side[slot], Tensor):  # not the buffer of a state: what is read from it is a result
                    self._ranges.setdefault(id(value), Range()).widen(side[slot])
        with torch.inference_mode():
            plans = (model.interpreter.plan.steps for model in models)
            for step_fp16, step_fp64, tally, only_moves in zip(*plans, self._tallies, self._only_moves, strict=True):
                references = _call_all(step_fp64, sides_fp64)
                for side, reference in zip(sides_fp16, references, strict=True):
                    unrounded = step_fp16.call(side)
                    for place, result in enumerate(step_fp16.results(side)):
                        if isinstance(result, Tensor) and result.is_floating_point():
                            inputs = (side[slot] for slot in step_fp16.sources())
                            tally.add(result if only_moves else unrounded[place], result, reference[place], inputs)
                            break
                for step, sides in ((step_fp16, sides_fp16), (step_fp64, sides_fp64)):
                    for side in sides:
                        step.free(side)
        return [
            (_outputs(self.model_fp16, side_fp16), _outputs(self.model_fp64, side_fp64))
            for side_fp16, side_fp64 in zip(sides_fp16, sides_fp64, strict=True)
        ]

    def _together(self) -> int:
        """Number of samples that there is room for; one where a shape is open, or where a state belongs to one prediction."""
        graph = self.model_fp16.interpreter.graph
        values = {id(value): value for value in (*graph.inputs, *(value for op in graph.ops for value in op.outputs))}.values()
        if any(value.kind != "tensor" or value.shape is None or None in value.shape for value in values):
            return 1
        plan = self.model_fp16.interpreter.plan
        sizes = dict(zip(plan.inputs, map(_bytes, graph.inputs), strict=True))
        alive = most = sum(sizes.values())
        for step in plan.steps:
            made = dict(zip((slot for slot, _ in step.writes), map(_bytes, step.op.outputs), strict=True))
            sizes |= made
            alive += sum(made.values())
            most = max(most, alive)
            alive -= sum(sizes.pop(slot, 0) for slot in step.frees)
        return max(1, int(_ROOM // max(most, 1)))

    def reports(self, origins: Mapping[int, Origin]) -> tuple[OpReport, ...]:
        """One report per op; ``origins`` by the op's place."""
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
                amplification=tally.relative / max(ROUNDING, *_relative_errors(op, made)) if tally.relative > _NEGLIGIBLE else 0.0,
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
    """Bytes of a value in both arithmetics, fp32 and fp64."""
    return 12 * _product(value.shape or ())


def _outputs(model: LiftedModel, environment: Sequence[Any]) -> dict[str, Any]:
    outputs = zip(model.interpreter.graph.outputs, model.interpreter.plan.outputs, strict=True)
    return model.to_outputs({value.name: environment[slot] for value, slot in outputs})


def _call_all(step: Step, environments: Sequence[list[Any]]) -> list[tuple[Any, ...]]:
    """The results of a step on every environment; a linear layer of few rows on all of them at once."""
    x = step.op.inputs.get("x")
    has_few_rows = isinstance(x, Value) and _product((x.shape or (0,))[:-1]) <= _FEW_ROWS
    is_linear = step.op.type == "linear" and [name for name, _ in step.reads] == ["x"]
    if len(environments) < 2 or not (is_linear and has_few_rows) or step.converts or step.writes[0][1] is not None:
        for environment in environments:
            step.call(environment)
        return [step.results(environment) for environment in environments]
    slot = step.reads[0][1]
    shared: list[Any] = [None] * len(environments[0])
    shared[slot] = torch.stack([environment[slot] for environment in environments])
    (result,) = step.call(shared)
    for environment, row in zip(environments, result, strict=True):
        environment[step.writes[0][0]] = row
    return [(row,) for row in result]


def _relative_errors(op: Op, made: Mapping[int, Tally]) -> Iterator[float]:
    """The accumulated errors of the values that ``op`` reads, and 0."""
    yield 0.0
    for value in op.input_values():
        if id(value) in made:
            yield made[id(value)].relative
