"""Whose fault an error is: the lowest rung that fails by itself, and the ops to which it can be traced."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from coreflow.export.package.graph import Op
from coreflow.models.arrays import Arrays
from coreflow.runtime.lifted import LiftedModel
from coreflow.validate.diagnosis.culprits import holds_only_weights_of, lossy, misheld, mistranslated, origins_of, poorly_held
from coreflow.validate.diagnosis.provenance import Matcher, trace_values
from coreflow.validate.gates.output import Comparison, judge
from coreflow.validate.gates.tolerance import FP32, LIFTED
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.ladder.ladder import Ladder, Observation, OpenPackage, program_of
from coreflow.validate.ladder.localise import walk
from coreflow.validate.report.model import Cause, ConstantReport, Culprit, OpReport, Outcome, OutputReport

# How far a value of the saved program may be from torch's with weights rounded alike: constants in the code (0.1 * x) are rounded in the
# program alone, by up to 2^-12 each, and so are weights that the converter folds. A ResNet-50 with folded norms comes to 1.6e-3, the T5
# decoder to 1.1e-4.
_SAVED_MATCH = 4e-3
# Of a fault the sums over a whole tensor show less and less further on: where the program left torch is looked for more closely.
_SAVED_FAULT = 2e-3
# A fresh conversion at FLOAT32 folds constants in fp32.
_WIDE_MATCH = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What was found of the ops; empty when they were not looked at."""

    ops: tuple[OpReport, ...] = ()
    culprits: tuple[Culprit, ...] = ()
    constants: tuple[ConstantReport, ...] = ()


def cause_of(
    comparisons: Sequence[Comparison],
    outputs: Mapping[str, OutputReport],
    opened: OpenPackage,
    observations: Sequence[Observation],
    *,
    same_ops: bool | None,
    module: nn.Module | None = None,
) -> Cause:
    """The lowest rung that fails by itself.

    R3 fails for wrong weights and for a wrong program: the latter has other ops than a fresh conversion of the reference (``same_ops``
    False), or, where there is no such conversion (None), all its weights are those of ``module`` and fp16 holds its constants.
    """
    gates = [gate for each in outputs.values() for gate in each.gates if gate.outcome == "fail"]
    if any(gate.name == "finite" for gate in gates):
        return "non-finite"
    if any(gate.name == "translation" for gate in gates):
        return "translation"
    if _fails_by_itself("R3", comparisons, outputs, opened, observations):
        graph = opened.graph
        right = same_ops is None and module is not None and holds_only_weights_of(graph, module) and not poorly_held(graph, None)
        return "translation" if same_ops is False or right else "weights"
    if _fails_by_itself("R4", comparisons, outputs, opened, observations):
        return "fp16"
    return "fp16" if opened.last == "R4" else "device"


def _fails_by_itself(
    rung: str,
    comparisons: Sequence[Comparison],
    outputs: Mapping[str, OutputReport],
    opened: OpenPackage,
    observations: Sequence[Observation],
) -> bool:
    if rung == opened.last or rung not in opened.rungs:
        return False
    tolerance = opened.tolerance if opened.last == "R4" else FP32 if opened.precision == "fp32" else LIFTED
    failing = [each for each in comparisons if outputs[each.name].outcome == "fail"]
    values = (replace(each, actual=np.stack([seen.rungs[rung][each.name] for seen in observations])) for each in failing)
    return any(judge(each, tolerance, {}).outcome == "fail" for each in values)


def explain(
    ladder: Ladder,
    module: nn.Module | None,
    observations: Sequence[Observation],
    verdict: Outcome,
    cause: Cause | None,
    outputs: Mapping[str, OutputReport],
) -> Explanation:
    """Every op with its errors and its place in the source; and of these the ones that explain what failed.

    Origins come from one sample whose reference is finite: values name an op, and one sample has enough of them.
    """
    constants = poorly_held(ladder.opened.graph, None if ladder.fp32_package is None else program_of(ladder.fp32_package))
    if ladder.localiser is None:
        return Explanation(constants=constants)
    finite = [seen for seen in observations if all(np.isfinite(each).all() for each in seen.reference)]
    sample = _telling(finite or observations[:1], ladder.opened.last)
    given, ratio = ladder.rounded(sample), max((each.rho_rms for each in outputs.values() if each.rho_rms == each.rho_rms), default=0.0)
    if module is None:
        reports = ladder.localiser.reports({})
        return Explanation(ops=reports, culprits=lossy(reports), constants=constants)
    traced = trace_values(module, given, weights="half" if ladder.opened.precision == "fp16" else "exact")
    values = ladder.localiser.wide_values(sample.inputs)
    halves = ladder.opened.precision == "fp16"
    origins, _ = origins_of(ladder.localiser.ops, values, Matcher(traced, _SAVED_MATCH if halves else _WIDE_MATCH))
    reports = ladder.localiser.reports(origins)
    wrong: tuple[Culprit, ...] = ()
    saved: tuple[Culprit, ...] = ()
    held: tuple[Culprit, ...] = ()
    if verdict in ("fail", "fp16-unsafe") and cause not in ("fp16", "device"):
        _, places = origins_of(ladder.localiser.ops, values, Matcher(traced, _SAVED_FAULT if halves else _WIDE_MATCH))
        wrong = saved = mistranslated(ladder.opened.graph, ladder.localiser.ops, places, traced, ratio)
        gates = [gate for each in outputs.values() for gate in each.gates]
        mistaken = any(gate.name == "translation" and gate.outcome == "fail" for gate in gates)
        if mistaken or (constants and ladder.fp32_package is not None):
            fresh, held = _in_fresh_conversion(ladder.open_fp32(), module, given, ratio, constants)
            wrong, held = (tuple(_as_saved(each, ladder.localiser.ops)) for each in (fresh or wrong if mistaken else wrong, held))
            wrong = tuple(each for each in wrong if each.name not in {other.name for other in held})
    found = list(_placed(lossy(reports), saved, [op.name for op in ladder.localiser.ops]))
    first = [each for each in found if each.kind == "non-finite"] if cause == "non-finite" else []
    # No constant explains what a conversion at FLOAT32 does too, and none that overflows a finite error: a mask of -inf may be right.
    held = tuple(each for each in held if cause == "non-finite" or math.isfinite(each.ratio))
    explained = (*wrong, *held) if cause == "translation" else (*held, *wrong)
    culprits = (*first, *explained, *(each for each in found if each not in first))
    return Explanation(ops=reports, culprits=culprits, constants=constants)


def _telling(observations: Sequence[Observation], rung: str) -> Sample:
    """The first sample in which the fault shows, which it may do in some only: its error is a tenth of the largest, or more."""
    squares = [sum(seen.squares[rung]) for seen in observations]
    errors = [math.inf if math.isnan(square) else square for square in squares]
    return next(seen.sample for seen, error in zip(observations, errors, strict=True) if error >= max(errors) / 100)


def _placed(found: Sequence[Culprit], wrong: Sequence[Culprit], names: Sequence[str]) -> Iterator[Culprit]:
    """``found`` with origins: an op whose result torch does not have belongs to the op before it at which the program left torch."""
    for each in found:
        before = [other for other in wrong if other.name in names and names.index(other.name) <= names.index(each.name)]
        yield replace(each, origin=before[-1].origin) if each.origin is None and before else each


def _as_saved(culprits: Sequence[Culprit], ops: Sequence[Op]) -> Iterator[Culprit]:
    """Under the names that the ops have in the saved program, where it has them: a conversion to fp16 adds to a name what it did."""
    names = {op.name for op in ops}
    for each in culprits:
        halved = f"{each.name}_cast_fp16"
        yield replace(each, name=halved) if each.name not in names and halved in names else each


def _in_fresh_conversion(
    wide: LiftedModel, module: nn.Module, given: Arrays, ratio: float, constants: Sequence[ConstantReport]
) -> tuple[tuple[Culprit, ...], tuple[Culprit, ...]]:
    """Where a conversion at FLOAT32 leaves torch, and where it would with its ``constants`` in fp16.

    Nothing else is rounded there, so that the smallest difference shows.
    """
    traced = trace_values(module, given)
    walked = walk(wide, dict(zip(wide.inputs, given.values(), strict=True)), {each.op for each in constants})
    origins, places = origins_of(walked.ops, walked.values, Matcher(traced, _WIDE_MATCH))
    wrong = mistranslated(wide.interpreter.graph, walked.ops, places, traced, ratio)
    return wrong, misheld(constants, walked, origins)
