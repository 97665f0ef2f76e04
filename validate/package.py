"""One package against its reference: open it, observe, judge, conclude, diagnose, report."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from coreflow.export.package.graph import Program
from coreflow.export.package.manifest import file_digest
from coreflow.export.package.mlpackage import package_digest, read_program
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Arrays, Draw
from coreflow.models.errors import ConfigError
from coreflow.models.versions import version
from coreflow.runtime.backend import Backend, ComputeUnits, NumericsName
from coreflow.validate.acceptance import accept as accept_differences
from coreflow.validate.acceptance import unseen
from coreflow.validate.case import Case, make_case
from coreflow.validate.diagnosis.cause import find_cause
from coreflow.validate.diagnosis.explanation import Explanation, diagnose
from coreflow.validate.diagnosis.foreign import find_foreign_weights
from coreflow.validate.gates.limits import check_outputs
from coreflow.validate.gates.structure import Obstacle
from coreflow.validate.gates.tolerance import Limits, Tolerance
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.judgement import NO_SAMPLES, Judgement, judge
from coreflow.validate.ladder.opening import open_package
from coreflow.validate.observations import Observations, observe
from coreflow.validate.options import Evidence, Options
from coreflow.validate.references.unseeded import find_unseeded_weights
from coreflow.validate.replay.evidence import keep_evidence
from coreflow.validate.report.model import SEVERITY, Cause, Report, Samples
from coreflow.validate.verdict import Verdict, conclude


def validate(
    package: str | Path,
    reference: nn.Module | Recipe | str | Path | None,
    inputs: Sequence[Arrays | Sample] | None = None,
    *,
    draw: Draw | None = None,
    backend: Backend = "auto",
    numerics: NumericsName = "fp16",
    compute_units: ComputeUnits = "all",
    tolerance: Tolerance | None = None,
    contract: float | None = None,
    ceiling: float | None = None,
    output_limits: Mapping[str, Limits] | None = None,
    sweep: bool = False,
    evidence: Evidence | None = None,
    accept: Mapping[str, str] | None = None,
    wide_package: Path | None = None,
    quick: bool = False,
    seeds: int | None = None,
    function_name: str | None = None,
) -> Report:
    """The verdict on ``package``, with ``reference`` executed in float64 on the same inputs.

    >>> report = validate("encoder.mlpackage", ENCODER)
    >>> report.verdict, report.text

    A reference is a module, a recipe, another package or an ONNX file (by their suffixes); without any, the ``expected`` outputs that the
    samples in ``inputs`` carry are. The inputs are eight fixed seeds of ``draw`` and then ``inputs``. ``draw`` is the recipe's unless
    another is passed; without a recipe inputs are drawn within the bounds that the package records. ``inputs`` without a ``draw`` of
    their own stand alone. A package that keeps states is judged as a function of them (``inputs.states``): inputs without any start from
    zeros, and recorded outputs include them, as ``NAME_out``. Inputs and outputs of a module are the package's, in order; recipes,
    packages and ONNX files fix names too. ``contract`` is the largest RMS error of the package and ``ceiling`` that of torch's own fp16,
    as shares of the output's RMS; ``output_limits`` sets them by output. ``sweep`` adds extreme inputs (bounds, magnitudes, padding
    patterns, ids), and ``evidence`` says where a failure leaves a file that replays it. ``wide_package`` is the module converted at
    FLOAT32 (R2). ``quick`` draws two seeds and looks at no op; ``seeds`` draws another number. ``accept`` gives ops, each with the reason
    why it does not matter that every conversion changes it; ``function_name`` picks one of several.
    """
    options = Options(
        backend=backend,
        numerics=numerics,
        compute_units=compute_units,
        tolerance=tolerance,
        limits=Limits(contract=contract, ceiling=ceiling),
        output_limits=output_limits or {},
        sweep=sweep,
        evidence=evidence,
        accepted=accept or {},
        fp32_package=wide_package,
        quick=quick,
        seeds=seeds,
        function_name=function_name,
    )
    against = Path(reference) if isinstance(reference, str) else reference
    return validate_package(read_program(package).at(function_name), against, _labelled(inputs or ()), options, draw)


def _labelled(inputs: Sequence[Arrays | Sample]) -> list[Sample]:
    """``inputs`` as samples, each labelled by its place unless it has a label."""
    return [
        sample if isinstance(sample, Sample) else Sample(label=f"input {number}", inputs=sample) for number, sample in enumerate(inputs)
    ]


def validate_package(
    program: Program,
    reference: nn.Module | Recipe | Path | None,
    samples: Sequence[Sample],
    options: Options,
    draw: Draw | None = None,
) -> Report:
    """``validate`` of a package that was read, with its options as one value."""
    options.announce(program.path.stem, "opening")
    opened = open_package(program, options)
    check_outputs(options.output_limits, opened.model.outputs, opened.path.name)
    case = make_case(opened, reference, samples, draw)
    if options.sweep and reference is None:
        raise ConfigError("recorded outputs know no swept inputs; a sweep needs a reference that can be executed")
    report = judge_package(case, options)
    return replace(report, notes=(*report.notes, *unseen(options.accepted, [report])))


def judge_package(case: Case, options: Options) -> Report:
    """The report on the package of ``case``."""
    started = time.monotonic()
    observed = observe(case, options)
    if isinstance(observed, Obstacle):
        return _report(case, conclude(observed), started)
    options.announce(case.name, "gates")
    judgements = [judge(case, observations) for observations in observed]
    place = _worst(judgements)
    verdict, explanation = _conclude(case, observed[place], judgements[place], options)
    settled = [accept_differences(judgement, explanation.culprits, options.accepted) for judgement in judgements]
    if any(after is not before for after, before in zip(settled, judgements, strict=True)):
        judgements, place = settled, _worst(settled)
        verdict, explanation = _conclude(case, observed[place], judgements[place], options)
    observations, judgement = observed[place], replace(judgements[place], samples=_all_samples(judgements))
    verdict = replace(verdict, notes=(*verdict.notes, *_of_shapes(case, observed, judgements)))
    report = _report(case, verdict, started, judgement, explanation)
    is_sound = verdict.outcome != "incomplete" and all(output.outcome in ("pass", "warn") for output in judgement.outputs.values())
    if options.evidence is None or is_sound:
        return report
    return keep_evidence(options.evidence, report, case.opened, observations.by_sample)


def _worst(judgements: Sequence[Judgement]) -> int:
    """The place of the worst one: the judgements are of the same package in several shapes."""
    return min(range(len(judgements)), key=lambda place: SEVERITY.index(conclude(judgements[place]).outcome))


def _of_shapes(case: Case, observed: Sequence[Observations], judgements: Sequence[Judgement]) -> list[str]:
    """A note on each shape that was compared, where there are several, and on those that were not."""
    notes = []
    for judgement in judgements if len(judgements) > 1 else ():
        rho = max((output.rho_rms for output in judgement.outputs.values()), default=0.0)
        notes.append(f"{judgement.shape}: {conclude(judgement).outcome}, rho_rms at most {rho:.2f} in {judgement.samples.total} samples")
    samples = [seen.sample for observations in observed for seen in observations.by_sample]
    return notes + [f"{shapes}: not compared, no sample has that shape" for shapes in case.shapes_without(samples)]


def _all_samples(judgements: Sequence[Judgement]) -> Samples:
    """The samples of all shapes together."""
    parts = [judgement.samples for judgement in judgements]
    return Samples(
        seeds=tuple(sorted({seed for part in parts for seed in part.seeds})),
        drawn=sum(part.drawn for part in parts),
        given=sum(part.given for part in parts),
        ambiguous=tuple(sample for part in parts for sample in part.ambiguous),
    )


def _conclude(case: Case, observations: Observations, judgement: Judgement, options: Options) -> tuple[Verdict, Explanation]:
    """The verdict by a judgement, and the ops that explain it."""
    cause = None
    if judgement.has_failure:
        cause = _find_cause(case, observations, judgement)
        judgement = replace(
            judgement,
            foreign_weights=find_foreign_weights(case.opened.program, case.module),
            unseeded_weights=find_unseeded_weights(case.recipe) if cause == "weights" else "",
        )
    verdict = conclude(judgement, cause)
    options.announce(case.name, "ops")
    explanation = diagnose(observations.ladder, case.module, observations.by_sample, verdict.outcome, verdict.cause, judgement.outputs)
    return verdict, explanation


def _find_cause(case: Case, observations: Observations, judgement: Judgement) -> Cause:
    return find_cause(
        judgement.comparisons,
        judgement.outputs,
        case.opened,
        observations.by_sample,
        same_ops=None if observations.fp32.program is None or judgement.missing_fp32 else not judgement.other_ops,
        module=case.module,
        has_altered_weights=observations.pairing is not None and bool(observations.pairing.altered),
    )


def _report(
    case: Case, verdict: Verdict, started: float, judgement: Judgement | None = None, explanation: Explanation | None = None
) -> Report:
    """All steps in one report; those after an obstacle did not run."""
    opened, explanation = case.opened, explanation or Explanation()
    weights = sorted(opened.path.rglob("weight.bin"))
    return Report(
        name=case.name,
        package=opened.path.name,
        digest=package_digest(opened.path),
        weights_digest=file_digest(weights[0]) if weights else None,
        backend=opened.model.backend,
        numerics=opened.numerics,
        compute_units=opened.compute_units,
        precision=opened.precision,
        verdict=verdict.outcome,
        cause=verdict.cause,
        text=verdict.text,
        outputs=judgement.outputs if judgement else {},
        samples=judgement.samples if judgement else NO_SAMPLES,
        versions=versions(),
        seconds=time.monotonic() - started,
        problems=verdict.problems,
        reference=case.reference_label,
        budget=case.budget_label,
        notes=verdict.notes,
        ops=explanation.ops,
        culprits=explanation.culprits,
        constants=explanation.constants,
        accepted=judgement.accepted if judgement else (),
        compute_unit_rho=judgement.rho_by_unit if judgement else {},
    )


def versions() -> dict[str, str]:
    """Versions of the packages that take part in a judgement."""
    return {package: version(package) for package in ("coreflow", "torch", "coremltools", "numpy")}
