"""Walks a program on one sample and keeps the result of every op."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coreflow.export.package.graph import Op
from coreflow.models import fp16
from coreflow.runtime.lifted import LiftedModel
from coreflow.validate.gates.metrics import ratio
from coreflow.validate.ladder.tally import ROUNDING


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Walk:
    """One walk through a program: its ops, their first results, and the losses that some ops have by constants in fp16.

    >>> walk(model, {"x": x}, suspects={"layer_norm_0"}).losses
    """

    ops: tuple[Op, ...]
    values: tuple[Tensor | None, ...]
    losses: Mapping[str, float]  # name of an op -> RMS change of its result, in roundings


def walk(model: LiftedModel, inputs: Mapping[str, Any], suspects: Collection[str] = ()) -> Walk:
    """One walk of ``model`` on one sample; the ops named in ``suspects`` are also called on their constants as fp16 holds them.

    The loss by constants alone is taken on the inputs that the op really gets, so that a fault that fades in what follows shows where it
    happens. A change to or from a value that is not finite is infinite.
    """
    environment = model.interpreter.environment(model.prepare_inputs(inputs))
    values: list[Tensor | None] = []
    losses: dict[str, float] = {}
    steps = model.interpreter.plan.steps
    with torch.inference_mode():
        for step in steps:
            arguments = step.arguments(environment) if step.op.name in suspects else None
            step.call(environment)
            results = step.results(environment)
            first = results[0] if results and isinstance(results[0], Tensor) else None
            values.append(first)
            if arguments is not None and first is not None and first.is_floating_point():
                constants = step.fixed.keys() & step.op.inputs.keys()
                changed = step.function(**{name: _through_fp16(value) if name in constants else value for name, value in arguments.items()})
                losses[step.op.name] = _in_roundings(changed[0] if isinstance(changed, tuple) else changed, first)
            step.free(environment)
    return Walk(ops=tuple(step.op for step in steps), values=tuple(values), losses=losses)


def _through_fp16(value: Any) -> Any:
    """A constant argument as an fp16 program holds it; whole numbers stay. coremltools raises a number that would vanish, an epsilon of
    1e-12, to the smallest one.
    """
    if isinstance(value, Tensor):
        return value.to(torch.float16).to(value.dtype) if value.is_floating_point() else value
    if not isinstance(value, float):
        return value
    return float(np.float16(value)) or math.copysign(fp16.SMALLEST_SUBNORMAL if value else 0.0, value)


def _in_roundings(changed: Tensor, reference: Tensor) -> float:
    """RMS change of a result in roundings of it."""
    difference = (changed - reference).double()
    if not bool(torch.isfinite(difference).all()):
        return math.inf
    return ratio(float(difference.square().mean().sqrt()), ROUNDING * float(reference.double().square().mean().sqrt()))
