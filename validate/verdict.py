"""Last step of a judgement: the verdict on a package, a chain and a bundle, by pure functions that hold every rule of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coreflow.validate.gates.structure import Obstacle
from coreflow.validate.gates.tolerance import MAX_AMBIGUOUS_SHARE, MIN_DECIDED, SEEDS, Tolerance
from coreflow.validate.judgement import Judgement
from coreflow.validate.report.model import Cause, ChainReport, Outcome, OutputReport, Report, TokenAgreement, first_cause, worst

_MEANINGS: Mapping[Cause | None, str] = {
    "translation": "; the program computes something else than the reference, whatever the arithmetic",
    "weights": "; wide arithmetic does not help: the weights of the saved program are wrong",
    "fp16": "; in wide arithmetic the program is right: its fp16 arithmetic loses more than torch's",
    "device": "; the program itself is right: the device is off",
}
_COMPRESSED = (
    "wide arithmetic does not help: its weights are compressed ({}). A package that is meant to differ is judged by --within SHARE "
    "(tolerance=by_share(SHARE)), 0.05 for 5 % of the output"
)


_ROUNDED = "; the weights are the reference's: their rounding, and that of constants, loses more than torch's fp16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome and its cause, and both in words.

    >>> conclude(Obstacle(cause="structure", problems=("input 'x' is float16; float32 is right",))).outcome
    'fail'
    """

    outcome: Outcome
    cause: Cause | None  # of a failure
    text: str  # in one line
    problems: tuple[str, ...] = ()  # structure, and what could not be judged
    notes: tuple[str, ...] = ()  # what a reader should know and no gate judges


def conclude(judgement: Judgement | Obstacle, cause: Cause | None = None) -> Verdict:
    """The verdict on a package by its judgement; ``cause`` is that of its failing outputs.

    1. Without a comparison the verdict is a failure if the obstacle has a cause, and incomplete otherwise.
    2. The whole is the worst of its outputs.
    3. Samples that cannot carry a verdict make it incomplete, unless it fails all the same.
    4. Without R2 small errors of translation are not seen, and a sample that is refused is not compared: a pass is a warning.
    5. Where the reference decides by a value that a conversion freezes, other inputs than those compared may show another error: a pass is
       a warning.
    6. A compression that saves nothing makes a pass a warning, and a failure if nothing of what was asked for was done.
    7. A sample on which the reference runs and the package does not makes it incomplete, unless it fails all the same.
    8. Outputs that pass beside a failure have no cause among the rungs: the program is not what was asked for.
    9. Differences of a fresh conversion at ops that the caller accepts do not count (``acceptance``); they stay in the report.
    10. A failure of a package that was made of other weights says so first; that of a compressed one names the limit meant for such.
    11. Weights that a recipe draws anew each time are not those that were exported: a failure by them is incomplete.
    """
    if isinstance(judgement, Obstacle):
        text = judgement.text or "; ".join(judgement.problems)
        return Verdict(
            outcome="incomplete" if judgement.cause is None else "fail", cause=judgement.cause, text=text, problems=judgement.problems
        )
    not_run = next((refusal.text for refusal in judgement.refusals if refusal.reference_runs), "")
    outcome, ambiguity = _outcome(judgement, not_run)
    if outcome != "fail":
        cause = None
    elif not judgement.has_failure:
        cause = "translation"
    notes = _notes(judgement)
    foreign = judgement.foreign_weights if outcome == "fail" and judgement.has_failure else ""
    problems = tuple(filter(None, (foreign, ambiguity, *(refusal.text for refusal in judgement.refusals))))
    text = verdict_text(
        outcome,
        cause,
        judgement.outputs,
        judgement.tolerance,
        ambiguity or not_run,
        (*notes, *problems),
        judgement.budget,
        compressed=judgement.compressed if math.isfinite(judgement.tolerance.rms_pass) else "",
        has_own_weights=judgement.has_own_weights,
    )
    where = f"at {judgement.shape}: " if judgement.shape and outcome in ("fail", "fp16-unsafe") else ""
    return Verdict(
        outcome=outcome,
        cause=cause,
        text=f"{foreign}; {where}{text}" if foreign else where + text,
        problems=problems,
        notes=(*notes, *(f"left out: {sample}" for sample in judgement.undefined), *judgement.missing_units),
    )


def _outcome(judgement: Judgement, not_run: str) -> tuple[Outcome, str]:
    """The outcome by rules 2 to 7 and 11 of ``conclude``, and why samples or weights cannot carry a verdict.

    ``not_run`` is a sample on which the package alone does not run.
    """
    samples, compression = judgement.samples, judgement.compression
    outcome = worst(output.outcome for output in judgement.outputs.values())
    ambiguity = too_ambiguous(samples.total - samples.left_out, samples.total) or judgement.foreign_samples
    if judgement.unseeded_weights and outcome == "fail":
        outcome, ambiguity = "incomplete", judgement.unseeded_weights
    if (ambiguity or not_run) and outcome != "fail":
        outcome = "incomplete"
    if (judgement.missing_fp32 or judgement.frozen_reads or judgement.refusals) and outcome == "pass":
        outcome = "warn"
    if compression is not None and outcome in ("pass", "warn"):
        outcome = "fail" if compression.in_vain else "warn"
    return outcome, ambiguity


def conclude_chain(
    outputs: Mapping[str, OutputReport], tokens: TokenAgreement, kept: Sequence[bool], tolerance: Tolerance, backend: str
) -> Verdict:
    """The verdict on a chain of packages on ``backend``; ``kept`` says of every sample whether it counts.

    1. The whole is the worst of its outputs.
    2. Other tokens than those of a reference that is sure of its own are a failure.
    3. Samples that cannot carry a verdict make it incomplete, unless it fails all the same.
    4. The cause of a failure is the arithmetic that ran; which stage it was, the rows of the report show.
    """
    outcome = worst(output.outcome for output in outputs.values())
    ambiguity = too_ambiguous(sum(kept), len(kept))
    if tokens.unexplained:
        outcome = "fail"
    elif ambiguity and outcome != "fail":
        outcome = "incomplete"
    cause: Cause | None = None
    if outcome == "fail":
        not_finite = any(gate.name == "finite" and gate.outcome == "fail" for output in outputs.values() for gate in output.gates)
        cause = "non-finite" if not_finite else "fp16" if backend == "lifted" else "device"
    if tokens.unexplained:
        text = f"other tokens than torch, which is sure of its own: {tokens.unexplained[0]}"
    else:
        text = verdict_text(outcome, None, outputs, tolerance, ambiguity)
    return Verdict(outcome=outcome, cause=cause, text=text, problems=(ambiguity,) if ambiguity else ())


def conclude_bundle(
    stages: Mapping[str, Report], chain: ChainReport | None, problems: Sequence[str] = (), changes: Sequence[str] = ()
) -> Verdict:
    """The verdict on a bundle; ``problems`` are what could not be judged, ``changes`` those of its files that nobody accepted.

    1. The whole is the worst of its parts, and incomplete where something could not be judged, unless a part is worse.
    2. A chain that fails beside a stage is not to blame: it fails because the stage does.
    3. Packages that are not the exported ones never pass: a pass or a warning becomes a failure of structure.
    """
    parts: dict[str, Report | ChainReport] = {**stages, **({} if chain is None else {"cascade": chain})}
    outcome = worst([*(part.verdict for part in parts.values()), *(("incomplete",) if problems else ())])
    if changes and outcome in ("pass", "warn"):
        text = f"{'; '.join(changes)} (what it computes is within tolerance). Export again, or accept the files with --unsealed"
        return Verdict(outcome="fail", cause="structure", text=text, problems=tuple(problems))
    blamed = {name: part for name, part in parts.items() if part.verdict == outcome}
    if set(blamed) > {"cascade"} and outcome == "fail":
        del blamed["cascade"]
    if outcome == "pass":
        text = f"{len(stages)} stages{' and the cascade' if chain else ''} are within fp16 tolerance of torch"
    elif blamed:
        text = "; ".join(f"{name}: {part.text}" for name, part in blamed.items())
    else:
        text = "; ".join(problems)
    return Verdict(outcome=outcome, cause=first_cause([part.cause for part in blamed.values()]), text=text, problems=tuple(problems))


def too_ambiguous(kept: int, total: int) -> str:
    """Why so few samples cannot carry a verdict; empty when they can."""
    left_out = total - kept
    if left_out == 0 or kept >= SEEDS or (kept >= MIN_DECIDED and left_out <= MAX_AMBIGUOUS_SHARE * total):
        return ""
    return f"in {left_out} of {total} samples a decision within fp16 noise of its border fell the other way; too few are left to judge by"


def verdict_text(
    verdict: Outcome,
    cause: Cause | None,
    outputs: Mapping[str, OutputReport],
    tolerance: Tolerance,
    ambiguity: str = "",
    notes: Sequence[str] = (),
    budget: str = "torch's own fp16",
    *,
    compressed: str = "",
    has_own_weights: bool = False,
) -> str:
    """The verdict in one line: how large the errors are, and where they are largest.

    ``compressed`` says how weights are; ``has_own_weights`` that they are seen to be the reference's.
    """
    if verdict == "incomplete" and ambiguity:
        return ambiguity
    if verdict in ("warn", "fail") and all(output.outcome != verdict for output in outputs.values()):
        return notes[0] if notes else "a part of the checks did not run"
    if verdict == "pass":
        return _text_of_pass(outputs, tolerance, budget)
    if cause == "weights" and compressed:
        return f"{_text_of_worst_gate(verdict, outputs)}; {_COMPRESSED.format(compressed)}"
    return _text_of_worst_gate(verdict, outputs) + (_ROUNDED if cause == "weights" and has_own_weights else _MEANINGS.get(cause, ""))


def _notes(judgement: Judgement) -> tuple[str, ...]:
    """The notes on a judgement, the gravest first."""
    notes = [] if judgement.compression is None else [judgement.compression.text]
    if judgement.missing_fp32:
        notes.append(f"R2 was not run, so that small errors of translation would not be seen: {judgement.missing_fp32}")
    if judgement.frozen_reads:
        notes.append(
            f"the reference reads a value at {judgement.frozen_reads}, which a conversion freezes; no sample showed that it matters: give "
            "some that reach the other values (inputs=, --inputs)"
        )
    if judgement.unseeded_draw:
        notes.append("the draw gives other inputs for the same seed when it is called again: no report on them can be repeated")
    notes += [
        f"accepted at {difference.op} ({difference.reason}): a conversion at FLOAT32 is off by {difference.relative_rms:.2g} of the output"
        for difference in judgement.accepted
    ]
    if judgement.unpaired:
        notes.append(judgement.unpaired)
    if judgement.omissions:
        notes.append(judgement.omissions)
    if judgement.other_ops:
        notes.append(f"{judgement.other_ops}, compared with a fresh conversion of the reference")
    return tuple(notes)


def _text_of_pass(outputs: Mapping[str, OutputReport], tolerance: Tolerance, budget: str) -> str:
    if not math.isfinite(tolerance.rms_pass):
        largest = max((output.relative_rms for output in outputs.values()), default=0.0)
        return f"errors are at most {largest:.2g} of the outputs; {tolerance.contract:g} is the limit"
    tightest = max((output.rho_rms for output in outputs.values()), default=0.0)
    return f"errors are at most {tightest:.2f} times those of {budget}; {tolerance.rms_pass:g} is the limit"


def _text_of_worst_gate(verdict: Outcome, outputs: Mapping[str, OutputReport]) -> str:
    """The gate that is exceeded most, at the output with the least headroom of those that have this outcome."""
    blamed = [output for output in outputs.values() if output.outcome == verdict]
    output = min(blamed, key=lambda output: output.headroom)
    gate = max((gate for gate in output.failed_gates if gate.outcome == verdict), key=lambda gate: gate.used)
    where = f" at {gate.text}" if gate.name == "rho_slice" else ""
    numbers = f"{gate.name} {gate.value:.3g}{where}, above its limit of {gate.limit:.3g}"
    finding = gate.text if gate.text and gate.name != "rho_slice" else numbers
    others = f" (and {len(blamed) - 1} more of {len(outputs)} outputs)" if len(blamed) > 1 else ""
    return f"{output.name}: {finding}{others}"
