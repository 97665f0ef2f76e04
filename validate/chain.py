"""The stages of a bundle wired together, against torch wired the same way.

Three chains run on the same samples: torch in float64, torch in simulated fp16, and the packages. The outputs where stages meet
(``Trial.outputs``) meet the gates of a single package, with the second chain's error as the budget. Decisions and tokens are the first
chain's in all three, so that one flip does not hide the rest.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Array, Arrays
from coreflow.models.family import Decider, Passage, Predict, Trial, TrialSample
from coreflow.models.spec import TensorSpec
from coreflow.runtime.backend import Model
from coreflow.validate.gates.comparison import Comparison
from coreflow.validate.gates.decisions import agreeing, margin_noise, nearness
from coreflow.validate.gates.metrics import as_float64, rms
from coreflow.validate.gates.output import judge_output
from coreflow.validate.gates.tolerance import DECISION_FACTOR, SEEDS, Tolerance
from coreflow.validate.references.torch_module import TorchReference
from coreflow.validate.report.model import AmbiguousSample, ChainReport, ChainRow, OutputReport, Report, Samples, TokenAgreement
from coreflow.validate.verdict import conclude_chain


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """One sample through all three chains."""

    sample: TrialSample
    reference: Passage
    simulated: Passage
    actual: Passage
    tokens: tuple[int, ...]  # of the packages, on their own


def judge_chain(
    trial: Trial,
    recipes: Mapping[str, Recipe],
    references: Mapping[str, TorchReference],
    models: Mapping[str, Model],
    stages: Mapping[str, Report],
    tolerance_of: Callable[[str], Tolerance],
) -> ChainReport:
    """The verdict on the chain of ``models``; ``stages`` are the reports on each alone, ``tolerance_of`` gives an output's limits."""
    started = time.monotonic()
    runs = _run_all(trial.samples, recipes, references, models)
    near = [np.inf] * len(runs) if trial.decider is None else _nearness(runs, trial.decider, references[trial.decider.stage])
    clear = np.array(near) >= 1
    kept = [bool(keeps) for keeps in clear | _agreeing(trial, runs, clear)]
    outputs = {comparison.name: judge_output(comparison, tolerance_of(comparison.name), {}) for comparison in _compare(trial, runs, kept)}
    tokens = _token_agreement(trial, runs, kept)
    verdict = conclude_chain(outputs, tokens, kept, tolerance_of(""), backend=next(iter(models.values())).backend)
    return ChainReport(
        verdict=verdict.outcome,
        cause=verdict.cause,
        text=verdict.text,
        outputs=outputs,
        rows=_rows(trial, outputs, stages),
        tokens=tokens,
        samples=_samples(runs, near, kept, outputs),
        seconds=time.monotonic() - started,
        problems=verdict.problems,
    )


def _rows(trial: Trial, outputs: Mapping[str, OutputReport], stages: Mapping[str, Report]) -> tuple[ChainRow, ...]:
    """A row per stage: its own error, and that of the chain up to the output that it had a part in."""
    return tuple(
        ChainRow(
            stage=stage,
            output=output.name,
            alone=stages[stage].verdict,
            outcome=outputs[output.name].outcome,
            cascaded=outputs[output.name].rho_rms,
            teacher_forced=max((alone.rho_rms for alone in stages[stage].outputs.values()), default=float("nan")),
        )
        for output in trial.outputs
        for stage in output.stages
    )


def _samples(runs: Sequence[_Run], near: Sequence[float], kept: Sequence[bool], outputs: Mapping[str, OutputReport]) -> Samples:
    """Counts of drawn and given samples, and those with a decision near its border."""
    drawn = sum(run.sample.seed is not None for run in runs)
    return Samples(
        seeds=tuple(range(SEEDS)),
        drawn=drawn,
        given=len(runs) - drawn,
        ambiguous=tuple(
            AmbiguousSample(label=run.sample.label, left_out=not kept[place], nearness=near[place], differing=_differing(run, outputs))
            for place, run in enumerate(runs)
            if near[place] < 1
        ),
    )


def _run_all(
    samples: Sequence[TrialSample], recipes: Mapping[str, Recipe], references: Mapping[str, TorchReference], models: Mapping[str, Model]
) -> list[_Run]:
    def torch_predict(execute: Callable[[TorchReference, Arrays], tuple[Array, ...]]) -> Predict:
        def predict(name: str, inputs: Arrays) -> Arrays:
            results = execute(references[name], {key: inputs[key] for key in recipes[name].inputs})
            return dict(zip(recipes[name].outputs, results, strict=True))

        return predict

    def package_predict(name: str, inputs: Arrays) -> Arrays:
        return models[name].predict(inputs)

    runs = []
    for sample in samples:
        reference = sample.run(torch_predict(TorchReference.outputs), np.float64)
        simulated = sample.run(torch_predict(TorchReference.simulated_outputs), np.float32, reference)
        actual = sample.run(package_predict, np.float32, reference)
        # On its own from the first other token on.
        tokens = actual.tokens if actual.tokens == reference.tokens else sample.tokens(package_predict, actual)
        runs.append(_Run(sample=sample, reference=reference, simulated=simulated, actual=actual, tokens=tokens))
    return runs


def _nearness(runs: Sequence[_Run], decider: Decider, torch: TorchReference) -> list[float]:
    """Nearness of the nearest decision on each sample's way; 0 where simulated fp16 itself decided otherwise.

    The noise of a step is that of all samples at this step: it grows on the way.
    """
    margins: list[list[tuple[Array, Array]]] = []
    parted = []
    for run in runs:
        pairs, alike = [], True
        steps = list(zip(run.reference.steps, run.simulated.steps, strict=False))
        for place, (reference, simulated) in enumerate(steps):
            alike = alike and _same_decisions(reference, simulated, decider.fields)
            if alike and place < len(steps) - 1:
                pairs.append((torch.margins(reference), torch.simulated_margins(simulated)))
        margins.append(pairs)
        parted.append(not alike or len(run.reference.steps) != len(run.simulated.steps))
    noise = []
    for step in range(max(len(pairs) for pairs in margins)):
        there = [pairs[step] for pairs in margins if step < len(pairs)]
        noise.append(margin_noise([reference for reference, _ in there], [simulated for _, simulated in there]))
    return [
        0.0 if apart else min((nearness(reference, noise[step]) for step, (reference, _) in enumerate(pairs)), default=np.inf)
        for pairs, apart in zip(margins, parted, strict=True)
    ]


def _agreeing(trial: Trial, runs: Sequence[_Run], clear: Array) -> Array:
    """(runs,): whether no decision fell otherwise, by what left the chain."""
    agree = np.ones(len(runs), bool)
    for output in trial.outputs:
        passing = [place for place, run in enumerate(runs) if output.name in run.reference.outputs]
        reference, simulated, actual = (
            [getattr(runs[place], side).outputs[output.name] for place in passing] for side in ("reference", "simulated", "actual")
        )
        agree[passing] &= [bool(alike.all()) for alike in agreeing(reference, simulated, actual, clear[passing])]
    return agree


def _same_decisions(reference: Arrays, simulated: Arrays, names: Sequence[str]) -> bool:
    """Whether the fields of these names agree: whole numbers in either arithmetic."""
    return all(np.array_equal(np.rint(reference[name]), np.rint(simulated[name])) for name in names)


def _compare(trial: Trial, runs: Sequence[_Run], kept: Sequence[bool]) -> list[Comparison]:
    """A ``Comparison`` per output of the chain; every row counts as a sample."""
    comparisons = []
    for output in trial.outputs:
        sides: dict[str, list[Array]] = {"reference": [], "simulated": [], "actual": []}
        labels, clear = [], []
        for run, is_kept in zip(runs, kept, strict=True):
            if output.name not in run.reference.outputs:
                continue
            for side, parts in sides.items():
                parts.append(getattr(run, side).outputs[output.name])
            rows = len(run.reference.outputs[output.name])
            labels += [run.sample.label] if rows == 1 else [f"{run.sample.label}, token {row}" for row in range(rows)]
            clear += [is_kept or not output.decided] * rows
        stacked = {side: np.concatenate(parts)[:, None] for side, parts in sides.items()}
        comparisons.append(
            Comparison(
                name=output.name,
                spec=TensorSpec(stacked["reference"].shape[1:]),
                reference=stacked["reference"],
                simulated=stacked["simulated"],
                actual=stacked["actual"],
                labels=tuple(labels),
                kept=np.array(clear),
            )
        )
    return comparisons


def _token_agreement(trial: Trial, runs: Sequence[_Run], kept: Sequence[bool]) -> TokenAgreement:
    """Count of equal tokens of the texts, and whether the reference was sure of the others."""
    sentences = total = equal = 0
    explained: list[str] = []
    unexplained: list[str] = []
    for run, is_kept in zip(runs, kept, strict=True):
        if not run.sample.text:
            continue
        sentences += 1
        total += max(len(run.reference.tokens), len(run.tokens))
        same = [reference == actual for reference, actual in zip(run.reference.tokens, run.tokens, strict=False)]
        equal += sum(same)
        if run.reference.tokens == run.tokens:
            continue
        first = same.index(False)
        reference, simulated = (as_float64(passage.outputs[trial.logits][first]) for passage in (run.reference, run.simulated))
        second, top = np.sort(reference)[-2:]
        noise = DECISION_FACTOR * rms(simulated - reference)
        ahead = f"which is ahead by {top - second:.2g}; noise {noise:.2g}"
        said = f"{run.sample.text!r}, token {first}: {run.tokens[first]} for {run.reference.tokens[first]}, {ahead}"
        (explained if not is_kept or top - second <= noise else unexplained).append(said)
    return TokenAgreement(sentences=sentences, tokens=total, equal=equal, explained=tuple(explained), unexplained=tuple(unexplained))


def _differing(run: _Run, outputs: Mapping[str, OutputReport]) -> int:
    """Elements of an ambiguous sample that differ by more than fp16 noise, at all its outputs."""
    count = 0
    for name, reference in run.reference.outputs.items():
        error = np.abs(as_float64(run.actual.outputs[name]) - as_float64(reference))
        count += int(np.count_nonzero(~(error <= DECISION_FACTOR * outputs[name].budget)))  # NaN differs
    return count
