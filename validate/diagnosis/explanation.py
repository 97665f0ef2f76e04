"""Explains a verdict by the ops of the program: the error of each, its place in the source, and the ops to blame."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from coreflow.export.package.graph import Op
from coreflow.models.arrays import Arrays
from coreflow.validate.diagnosis.constants import find_fp16_constants, find_harmed_ops
from coreflow.validate.diagnosis.departures import find_departures
from coreflow.validate.diagnosis.lossy_ops import find_lossy_ops
from coreflow.validate.diagnosis.lost_writes import find_lost_writes
from coreflow.validate.diagnosis.matching import FP32_MATCH, Matcher, match_for, match_ops
from coreflow.validate.diagnosis.tracing import TracedValue, trace_values
from coreflow.validate.diagnosis.translation import find_translation_errors
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.ladder.ladder import Ladder
from coreflow.validate.ladder.observation import Observation
from coreflow.validate.ladder.walk import walk
from coreflow.validate.report.model import Cause, ConstantReport, Culprit, Gate, OpReport, Outcome, OutputReport, RungName

# How far a value of the saved program may be from torch's with weights rounded alike: constants in the code (0.1 * x) are rounded in the
# program alone, by up to 2^-12 each, and so are weights that the converter folds. A ResNet-50 with folded norms comes to 1.6e-3, the T5
# decoder to 1.1e-4.
_SAVED_MATCH = 4e-3
# A fault shows less and less in sums over a whole tensor, further on: the place where the program left torch is looked for more closely.
_SAVED_FAULT = 2e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Reports on the ops; empty when no op was walked.

    >>> explanation = diagnose(ladder, module, observations, "fail", "fp16", outputs)
    >>> [f"{culprit.name} in {culprit.module}: {culprit.text}" for culprit in explanation.culprits]
    """

    ops: tuple[OpReport, ...] = ()
    culprits: tuple[Culprit, ...] = ()
    constants: tuple[ConstantReport, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Ops that explain an error other than by their arithmetic.

    >>> rank_culprits("translation", Faults(translation=(culprit,)), op_culprits=())
    (Culprit(kind='translation', ...),)
    """

    translation: tuple[Culprit, ...] = ()
    constants: tuple[Culprit, ...] = ()  # ops that are harmed by their constants in fp16
    departures: tuple[Culprit, ...] = ()  # ops of the saved program at which it leaves torch, whether they are the fault or not


def diagnose(
    ladder: Ladder,
    module: nn.Module | None,
    observations: Sequence[Observation],
    verdict: Outcome,
    cause: Cause | None,
    outputs: Mapping[str, OutputReport],
) -> Explanation:
    """Every op with its errors and its place in the source, and the ops that explain the failure.

    Origins come from one sample whose reference is finite: values name an op, and one sample has enough of them.
    """
    graph = ladder.opened.graph if ladder.program_fp32 is None else ladder.program_fp32.function()[0]
    constants = find_fp16_constants(graph)
    if ladder.localiser is None:
        return Explanation(constants=constants)
    if module is None:
        reports = ladder.localiser.reports({})
        return Explanation(ops=reports, culprits=find_lossy_ops(reports), constants=constants)
    finite = [seen for seen in observations if all(np.isfinite(output).all() for output in seen.reference)]
    sample = _telling_sample(finite or observations[:1], ladder.opened.last)
    has_fp16_weights = ladder.opened.precision == "fp16"
    traced = trace_values(module, ladder.rounded(sample), fp16_weights=has_fp16_weights)
    warns = any(gate.outcome == "warn" for gate in _gates(outputs, "translation"))
    has_faults = warns or (verdict in ("fail", "fp16-unsafe") and cause not in ("fp16", "device"))
    values = ladder.localiser.values_fp64(sample.inputs)
    results = list(values) if has_faults else values  # only faults are looked for more than once
    matches = match_ops(ladder.localiser.ops, results, Matcher(traced, _SAVED_MATCH if has_fp16_weights else FP32_MATCH))
    reports = ladder.localiser.reports(matches.origins)
    faults = _find_faults(ladder, module, sample, traced, results, outputs, constants) if isinstance(results, list) else Faults()
    op_culprits = tuple(_with_origins(find_lossy_ops(reports), faults.departures, ladder.localiser.ops))
    return Explanation(ops=reports, culprits=rank_culprits(cause, faults, op_culprits), constants=constants)


def rank_culprits(cause: Cause | None, faults: Faults, op_culprits: Sequence[Culprit]) -> tuple[Culprit, ...]:
    """All culprits, those that explain the ``cause`` first."""
    first = [culprit for culprit in op_culprits if culprit.kind == "non-finite"] if cause == "non-finite" else []
    # No constant explains an error that a conversion at FLOAT32 has too, and none that overflows a finite one: a mask of -inf may be right.
    constants = tuple(culprit for culprit in faults.constants if cause == "non-finite" or math.isfinite(culprit.ratio))
    ranked = (*faults.translation, *constants) if cause == "translation" else (*constants, *faults.translation)
    return (*first, *ranked, *(culprit for culprit in op_culprits if culprit not in first))


def _find_faults(
    ladder: Ladder,
    module: nn.Module,
    sample: Sample,
    traced: Sequence[TracedValue],
    results: Sequence[Tensor | None],
    outputs: Mapping[str, OutputReport],
    constants: Sequence[ConstantReport],
) -> Faults:
    """The faults of the saved program, and of a fresh conversion where there is one and it may show them more closely."""
    assert ladder.localiser is not None
    ops, graph = ladder.localiser.ops, ladder.opened.graph
    ratio = _largest_ratio(outputs)
    is_fp16 = ladder.opened.precision == "fp16"
    tolerance = _SAVED_FAULT if is_fp16 else FP32_MATCH
    lost = find_lost_writes(
        module,
        ladder.rounded(sample),
        tuple(ladder.opened.model.outputs),
        ladder.localiser.model_fp64,
        ops,
        results,
        tolerance,
        ratio,
        fp16_weights=is_fp16,
    )
    error = _error_of_saved_program(ladder, outputs)
    if error is not None and (faults := lost or find_departures(ladder, module, ladder.rounded(sample), ratio, error)):
        return Faults(translation=faults)
    departures = lost or find_translation_errors(graph, ops, match_ops(ops, results, Matcher(traced, tolerance)), traced, ratio)
    if error is not None:
        return Faults(translation=departures)
    fp32_error = max((gate.value for gate in _gates(outputs, "translation") if gate.outcome != "pass"), default=0.0)
    if not fp32_error and (not constants or ladder.program_fp32 is None):
        return Faults(translation=departures, departures=departures)
    fresh = _faults_of_fresh_conversion(ladder, module, ladder.rounded(sample), ratio, constants, fp32_error)
    translation = lost or (fresh.translation or departures if fp32_error else departures)
    harmed = tuple(_under_saved_names(fresh.constants, ops))
    return Faults(translation=_without(harmed, _under_saved_names(translation, ops)), constants=harmed, departures=departures)


def _without(harmed: Sequence[Culprit], culprits: Iterable[Culprit]) -> tuple[Culprit, ...]:
    """The culprits other than ops that are ``harmed`` by their constants, which explains them."""
    explained = {culprit.name for culprit in harmed}
    return tuple(culprit for culprit in culprits if culprit.name not in explained)


def _largest_ratio(outputs: Mapping[str, OutputReport]) -> float:
    """How far the outputs are off, in budgets; 0 where that is no number."""
    return max((output.rho_rms for output in outputs.values() if output.rho_rms == output.rho_rms), default=0.0)


def _error_of_saved_program(ladder: Ladder, outputs: Mapping[str, OutputReport]) -> float | None:
    """How far the outputs of the saved program are off, relative, where nothing else is to blame; None where a fresh conversion is, too.

    With weights that nothing rounded where all of them are known, else as the program was saved.
    """
    fails = {name: any(gate.outcome == "fail" for gate in _gates(outputs, name)) for name in ("program", "translation")}
    has_unknown = ladder.pairing is not None and not ladder.pairing.is_complete and ladder.program_fp32 is not None
    if fails["translation"] or not (fails["program"] or has_unknown):
        return None
    rung: RungName = "R2s" if fails["program"] else "R3"
    return max((output.rungs[rung].relative_rms for output in outputs.values() if rung in output.rungs), default=0.0)


def _gates(outputs: Mapping[str, OutputReport], name: str) -> list[Gate]:
    """The gates of this name, of all outputs."""
    return [gate for output in outputs.values() for gate in output.gates if gate.name == name]


def _faults_of_fresh_conversion(
    ladder: Ladder, module: nn.Module, inputs: Arrays, ratio: float, constants: Sequence[ConstantReport], error: float
) -> Faults:
    """The ops at which a conversion at FLOAT32 leaves torch, and those at which it would with its ``constants`` in fp16.

    Nothing else is rounded there, so that the smallest difference shows; ``error`` is what its outputs are off by.
    """
    model = ladder.open_fp32()
    traced = trace_values(module, inputs)
    walked = walk(model, dict(zip(model.inputs, inputs.values(), strict=True)), {constant.op for constant in constants})
    tolerance = match_for(error)
    matches = match_ops(walked.ops, walked.values, Matcher(traced, tolerance))
    lost = find_lost_writes(module, inputs, tuple(ladder.opened.model.outputs), model, walked.ops, walked.values, tolerance, ratio)
    translation = lost or find_translation_errors(model.interpreter.graph, walked.ops, matches, traced, ratio)
    return Faults(translation=translation, constants=find_harmed_ops(constants, walked, matches.origins))


def _telling_sample(observations: Sequence[Observation], rung: RungName) -> Sample:
    """The first sample in which the fault shows, which it may do in some only: its error is a tenth of the largest, or more."""
    squares = [sum(seen.squares[rung]) for seen in observations]
    errors = [math.inf if math.isnan(square) else square for square in squares]
    return next(seen.sample for seen, error in zip(observations, errors, strict=True) if error >= max(errors) / 100)


def _with_origins(culprits: Sequence[Culprit], departures: Sequence[Culprit], ops: Sequence[Op]) -> Iterator[Culprit]:
    """Culprits with origins: an op whose result torch does not have belongs to the op before it at which the program left torch."""
    names = [op.name for op in ops]
    for culprit in culprits:
        before = [other for other in departures if other.name in names and names.index(other.name) <= names.index(culprit.name)]
        yield replace(culprit, origin=before[-1].origin) if culprit.origin is None and before else culprit


def _under_saved_names(culprits: Sequence[Culprit], ops: Sequence[Op]) -> Iterator[Culprit]:
    """Culprits under the names that the ops have in the saved program, where it has them: a conversion to fp16 appends to names."""
    names = {op.name for op in ops}
    for culprit in culprits:
        saved = f"{culprit.name}_cast_fp16"
        yield replace(culprit, name=saved) if culprit.name not in names and saved in names else culprit
