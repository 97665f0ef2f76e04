"""Second step of a judgement: every output at the gates, and all other findings on which a verdict depends."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from coreflow.models.arrays import Bools
from coreflow.models.spec import TensorSpec
from coreflow.validate.case import Case
from coreflow.validate.gates.comparison import Comparison
from coreflow.validate.gates.compression import UselessCompression, describe_compression, find_useless_compression
from coreflow.validate.gates.metrics import as_float64, ratio, relative_rms, rms
from coreflow.validate.gates.output import judge_output
from coreflow.validate.gates.plots import plots_of, worst_elements
from coreflow.validate.gates.tolerance import DECISION_FACTOR, FP32_NOISE, TRANSLATION, Tolerance
from coreflow.validate.ladder.fp32 import differing_ops
from coreflow.validate.ladder.observation import Observation
from coreflow.validate.ladder.units import rho_by_unit
from coreflow.validate.observations import Observations, Refusal, declared_outputs
from coreflow.validate.references.unseeded import is_unseeded
from coreflow.validate.report.model import AcceptedDifference, AmbiguousSample, OutputReport, RungName, Samples

NO_SAMPLES = Samples(seeds=(), drawn=0, given=0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judgement:
    """All findings on which a verdict depends.

    >>> judgement = judge(case, observations)
    >>> [output.name for output in judgement.outputs.values() if output.outcome == "fail"]
    ['surface']
    >>> conclude(judgement, cause="fp16").text
    "surface: rho_rms 2.4, above its limit of 1.5; in wide arithmetic the program is right: its fp16 arithmetic loses more than torch's"
    """

    outputs: Mapping[str, OutputReport]
    tolerance: Tolerance
    budget: str = "torch's own fp16"  # name of the error that errors are divided by
    comparisons: tuple[Comparison, ...] = ()
    samples: Samples = NO_SAMPLES
    foreign_samples: str = ""  # why the recorded outputs are not those of this reference
    foreign_weights: str = ""  # why the reference cannot have made the package
    missing_fp32: str = ""  # why R2 was not run, where small errors of translation hide below fp16's
    frozen_reads: str = ""  # lines of the module that read a value, which a conversion freezes and no sample showed to matter
    accepted: tuple[AcceptedDifference, ...] = ()  # whose gates of translation pass
    compression: UselessCompression | None = None
    has_own_weights: bool = False  # whether all weights are seen to be the reference's, rounded
    unpaired: str = ""  # which share of the weights was compared with the module's, where not all
    compressed: str = ""  # how weights are compressed
    omissions: str = ""  # what a quick look leaves out
    unseeded_weights: str = ""  # why the weights of the reference cannot be those that were exported
    unseeded_draw: bool = False  # inputs differ from call to call
    other_ops: str = ""  # how the saved program differs from a fresh conversion
    rho_by_unit: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # compute unit -> output -> rho_rms
    missing_units: tuple[str, ...] = ()  # why compute units were not compared
    shape: str = ""  # "x [1, 32]" where samples of other shapes were compared too
    refusals: tuple[Refusal, ...] = ()  # samples that were not compared
    undefined: tuple[str, ...] = ()  # samples on which the module has no value, and why

    @property
    def has_failure(self) -> bool:
        """Whether an output fails."""
        return any(output.outcome == "fail" for output in self.outputs.values())


def judge(case: Case, observations: Observations) -> Judgement:
    """The findings on ``case``; other compute units are opened one after another."""
    opened, kept, by_sample = case.opened, observations.kept, observations.by_sample
    comparisons = _compare(declared_outputs(opened, by_sample[0]), observations)
    rungs = [_rung_errors(place, by_sample, comparison) for place, comparison in enumerate(comparisons)]
    wrong_fp32 = _wrong_fp32(comparisons, rungs)
    if wrong_fp32:
        rungs = [{rung: error for rung, error in errors.items() if rung != "R2"} for errors in rungs]
    outputs = {
        comparison.name: _judge_comparison(comparison, opened.tolerance_of(comparison.name), errors)
        for comparison, errors in zip(comparisons, rungs, strict=True)
    }
    rho, missing_units = rho_by_unit(opened.units, by_sample, kept, outputs)
    if rho:
        rho = {opened.compute_units: {name: output.rho_rms for name, output in outputs.items()}} | rho
    fp32 = observations.fp32
    return Judgement(
        outputs=outputs,
        tolerance=opened.tolerance_of(""),
        budget=case.budget_label,
        comparisons=comparisons,
        samples=_samples(observations, comparisons, outputs),
        foreign_samples=_foreign_samples(list(outputs), by_sample, kept),
        missing_fp32="" if opened.precision == "fp32" or "R2s" in by_sample[0].squares else wrong_fp32 or fp32.problem,
        has_own_weights="R2s" in by_sample[0].squares and observations.pairing is not None and not observations.pairing.altered,
        unpaired=_unpaired(observations),
        frozen_reads=", ".join(dict.fromkeys(map(str, fp32.frozen))),
        compression=find_useless_compression(opened.graph),
        compressed=describe_compression(opened.graph),
        omissions=observations.omissions,
        unseeded_draw=is_unseeded(case.draw),
        other_ops="" if fp32.program is None or wrong_fp32 else differing_ops(opened.graph, fp32.program),
        rho_by_unit=rho,
        missing_units=tuple(missing_units),
        shape=observations.shape,
        refusals=observations.refusals,
        undefined=observations.undefined,
    )


def _compare(specs: Mapping[str, TensorSpec], observations: Observations) -> tuple[Comparison, ...]:
    """One comparison per output."""
    return tuple(_comparison(name, spec, place, observations) for place, (name, spec) in enumerate(specs.items()))


def _comparison(name: str, spec: TensorSpec, place: int, observed: Observations) -> Comparison:
    observations, kept = observed.by_sample, observed.decisions.outputs[name]
    reference = np.stack([np.atleast_1d(seen.reference[place]) for seen in observations])
    margins = [seen.margins[place] for seen in observations]
    known = [pair for pair in margins if pair is not None]
    has_margins = len(known) == len(margins)
    return Comparison(
        name=name,
        spec=spec,
        reference=reference,
        simulated=np.stack([np.atleast_1d(seen.simulated[place]) for seen in observations]),
        actual=np.stack([seen.actual[name] for seen in observations]),
        labels=tuple(seen.sample.label for seen in observations),
        kept=kept.samples,
        left_out=kept.left_out,
        margins=np.stack([np.atleast_1d(margin) for margin, _ in known]) if has_margins else None,
        margin_noise=np.stack([np.atleast_1d(noise) for _, noise in known]) if has_margins else None,
    )


def _rung_errors(place: int, observations: Sequence[Observation], comparison: Comparison) -> dict[RungName, float]:
    """RMS error of every rung at one output, over what counts of it."""
    elements = int(comparison.counted.sum())
    squares = {
        rung: sum(_square(seen, rung, place, comparison, sample) for sample, seen in enumerate(observations) if comparison.kept[sample])
        for rung in observations[0].squares
    }
    return {rung: float(np.sqrt(square / elements)) if elements else float("nan") for rung, square in squares.items()}


def _square(seen: Observation, rung: RungName, place: int, comparison: Comparison, sample: int) -> float:
    """Sum of squared errors of one rung on one sample; without what is left out, where the rung's outputs are still there."""
    left_out = None if comparison.left_out is None else comparison.left_out[sample]
    if left_out is None or not left_out.any() or rung not in seen.rungs:
        return seen.squares[rung][place]
    reference = as_float64(comparison.reference[sample])
    counts = np.isfinite(reference) & ~left_out
    errors = as_float64(seen.rungs[rung][comparison.name]).reshape(reference.shape)[counts] - reference[counts]
    return float(np.dot(errors, errors))


def _wrong_fp32(comparisons: Sequence[Comparison], rungs: Sequence[Mapping[RungName, float]]) -> str:
    """Where a fresh conversion is wrong and the saved program is not, which says nothing of the package; empty where it is nowhere so.

    The saved program is in float64, with unrounded weights where they are known: an error that both have, it shows at its full size.
    """
    for comparison, errors in zip(comparisons, rungs, strict=True):
        saved = next((errors[rung] for rung in ("R2s", "R3", "R4") if rung in errors), None)
        if saved is None or "R2" not in errors or comparison.spec.dtype == "int32":
            continue
        size = rms(comparison.reference[comparison.kept])
        limit = max(TRANSLATION * size, errors.get("R1", 0.0))
        is_alone = saved < errors["R2"] / 2 if math.isfinite(errors["R2"]) else math.isfinite(saved)
        if is_alone and not errors["R2"] <= limit:
            return f"a fresh conversion is off by {ratio(errors['R2'], size):.2g} of {comparison.name}, and the saved program is not"
    return ""


def _judge_comparison(comparison: Comparison, tolerance: Tolerance, rungs: Mapping[RungName, float]) -> OutputReport:
    report = judge_output(comparison, tolerance, rungs)
    return replace(report, plots=plots_of(comparison), worst_elements=worst_elements(comparison))


def _unpaired(observations: Observations) -> str:
    pairing = observations.pairing
    if pairing is None or pairing.is_complete:
        return ""
    names = ", ".join(pairing.unknown[:3]) + (f" and {len(pairing.unknown) - 3} more" if len(pairing.unknown) > 3 else "")
    return f"{pairing.share:.1%} of the saved weights are those of the module, rounded, and R2s was not run; {names} resemble none"


def _samples(observations: Observations, comparisons: Sequence[Comparison], outputs: Mapping[str, OutputReport]) -> Samples:
    seeds = tuple(seen.sample.seed for seen in observations.by_sample if seen.sample.seed is not None)
    decisions = observations.decisions
    return Samples(
        seeds=seeds,
        drawn=len(seeds),
        given=len(observations.by_sample) - len(seeds),
        ambiguous=tuple(
            AmbiguousSample(
                label=seen.sample.label,
                left_out=not decisions.kept[place],
                elements_left_out=decisions.left_out(place),
                nearness=decisions.nearness[place],
                differing=sum(
                    comparison.count_differing(place, outputs[comparison.name].budget, DECISION_FACTOR) for comparison in comparisons
                ),
            )
            for place, seen in enumerate(observations.by_sample)
            if decisions.nearness[place] < 1
        ),
    )


def _foreign_samples(outputs: Sequence[str], observations: Sequence[Observation], kept: Bools) -> str:
    """Why the recorded outputs are not those of this reference; empty when they are, or when none were recorded."""
    for place, name in enumerate(outputs):
        pairs = [
            (as_float64(seen.sample.expected[name]), as_float64(seen.reference[place]))
            for seen, is_kept in zip(observations, kept, strict=True)
            if is_kept and seen.sample.expected is not None
        ]
        if not pairs:
            continue
        errors, reference = np.stack([recorded - now for recorded, now in pairs]), np.stack([now for _, now in pairs])
        if not relative_rms(errors, reference) <= FP32_NOISE:
            return f"the golden samples are of another torch model: its {name} differs by more than fp32 rounding"
    return ""
