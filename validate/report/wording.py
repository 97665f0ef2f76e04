"""Words and numbers that all renderings of a report share. Standard library only."""

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from coreflow.runtime.backend import PUBLISHED_MODEL
from coreflow.validate.report.model import (
    BundleReport,
    ChainReport,
    Culprit,
    Element,
    Origin,
    Outcome,
    OutputReport,
    Report,
    RungName,
    Samples,
)

# A sign beside every verdict's word, so that neither colour nor reading is needed to tell them apart.
SIGNS: Mapping[Outcome, str] = {"pass": "✓", "warn": "!", "fail": "✗", "fp16-unsafe": "⚠", "incomplete": "?"}
RUNGS: Mapping[RungName, str] = {
    "R1": "torch in fp32",
    "R2": "the program with fp32 weights, wide arithmetic",
    "R2s": "the saved program with torch's weights, fp64 arithmetic",
    "R3": "the saved program, fp64 arithmetic",
    "R4": "the saved program, fp16 arithmetic",
    "R5": "the saved program on the device",
}
# Source of the error that a rung adds to the one before it.
JUMPS: Mapping[RungName, str] = {
    "R1": "noise of the reference",
    "R2": "translation",
    "R2s": "translation, in the saved program",
    "R3": "rounding of weights and constants",
    "R4": "fp16 arithmetic",
    "R5": "device",
}
NOT_LOOKED_AT = "not looked at"
SHOWN_CULPRITS = 5
SHOWN_CONSTANTS = 8
SHOWN_AMBIGUOUS = 6


def printable(text: object) -> str:
    """Text in which U+FFFD replaces every character that steers a terminal, breaks XML or turns the direction of writing."""
    return _STEERING.sub("\ufffd", str(text))


# Control characters other than tab and newline, lone surrogates, marks of writing direction, and what XML 1.0 cannot hold.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def number(value: float, decimals: int | None = None) -> str:
    """``value`` with two decimals, or with an exponent below 0.01 and from 1000 on."""
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if decimals is not None:
        return f"{value:.{decimals}f}"
    if value == 0:
        return "0"
    return f"{value:.2f}" if 0.01 <= abs(value) < 1000 else f"{value:.1e}"


def gate_number(value: float) -> str:
    """``value`` as ``number`` writes it; a whole number without decimals, since it is a count."""
    return str(int(value)) if math.isfinite(value) and float(value).is_integer() and abs(value) < 1e9 else number(value)


def nan_as_infinite(value: float) -> float:
    """A key to sort errors by: NaN counts as worse than any number."""
    return math.inf if math.isnan(value) else value


def precise_number(value: float) -> str:
    """``value`` with enough digits to tell neighbouring fp16 numbers apart."""
    return f"{value:.6g}" if math.isfinite(value) else number(value)


def shape_text(shape: Sequence[int]) -> str:
    """``1 × 64``, or ``scalar``."""
    return " × ".join(map(str, shape)) or "scalar"


def excess(culprit: Culprit) -> str:
    """``, 8.10 times what is healthy``; empty for a non-finite value, of which one is too many."""
    return "" if culprit.kind == "non-finite" else f", {number(culprit.ratio)} times what is healthy"


def execution(report: Report) -> str:
    """Backend, arithmetic or compute units, and seeds."""
    label = f" ({PUBLISHED_MODEL})" if report.numerics.startswith("engine") else ""
    how = f"numerics {report.numerics}{label}" if report.backend == "lifted" else f"compute units {report.compute_units}"
    seeds = report.samples.seeds
    drawn = "" if not seeds else f", seed {seeds[0]}" if len(seeds) == 1 else f", seeds {seeds[0]} to {seeds[-1]}"
    return f"backend {report.backend}, {how}{drawn}"


def versions_text(versions: Mapping[str, str]) -> str:
    """``torch 2.13.0, numpy 2.3.5``."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def source_line(origin: Origin | None) -> str:
    """Module, file and line of the torch source, or that they are unknown."""
    if origin is None:
        return "no torch operation gives the same numbers"
    return f"{origin.module or 'the module itself'}, {origin.file}:{origin.line}"


def culprit_title(culprit: Culprit) -> str:
    """Kind, op and size of a culprit's error."""
    return f"{culprit.kind}: {culprit.name} ({culprit.type}){excess(culprit)}"


def position(element: Element) -> str:
    """``seed 3 [0, 17]``."""
    return f"{element.sample} {list(element.index)}"


def replay_command(report: Report) -> str | None:
    """The shell command that runs the worst sample alone; None where no replay was written."""
    if report.replay is None:
        return None
    package = "" if report.replay_package is None else f" --package {shlex.quote(report.replay_package)}"
    return f"coreflow validate replay {shlex.quote(report.replay)}{package}"


def jump(output: OutputReport) -> str:
    """The rung that adds most error, the source of that error, and its size before and after."""
    name = output.largest_jump
    if name is None:
        return "none" if output.rungs else NOT_LOOKED_AT
    source = JUMPS.get(name, name)
    if name == "R3" and "R2" not in output.rungs:
        source = f"{source}, or translation"  # nothing between torch and the saved weights was run
    names, errors = list(output.rungs), [number(rung.relative_rms) for rung in output.rungs.values()]
    rung = names.index(name)
    return f"{name} {source} ({' to '.join(errors[max(rung - 1, 0) : rung + 1])})"


def missing_rungs(outputs: Iterable[OutputReport]) -> tuple[str, ...]:
    """Rungs that no output has; empty where no output has a ladder at all."""
    ran = {name for output in outputs for name in output.rungs}
    return tuple(name for name in RUNGS if name not in ran) if ran else ()


def contract(output: OutputReport) -> str:
    """RMS error against the limit of the contract; a dash where there is no contract."""
    gate = next((gate for gate in output.gates if gate.name == "contract"), None)
    return "-" if gate is None else f"{number(gate.value)} of {number(gate.limit)}"


def flips(output: OutputReport) -> str:
    """Count of flips; a dash where neither whole numbers nor margins were looked at."""
    return str(output.flips) if output.flips or output.dtype == "int32" or output.plots.margin else "-"


def non_finite(output: OutputReport) -> str:
    """Count of NaN and infinite values, and how many of them overflowed fp16."""
    total = output.non_finite + output.overflowed
    return f"{total} ({output.overflowed} overflow)" if output.overflowed else str(total)


def headroom(output: OutputReport) -> str:
    """Share of the tightest limit that is left, or how many times it is exceeded."""
    if output.headroom >= 0:
        return f"{output.headroom:.0%}"
    return f"none ({1 - output.headroom:.3g}x)" if math.isfinite(output.headroom) else "none"


def outcome_word(output: OutputReport) -> str:
    """Outcome of one output, and the gates that did not pass."""
    return f"{output.outcome.upper()} {failed_gate_names(output)}".rstrip()


def failed_gate_names(output: OutputReport) -> str:
    """``rho_rms, contract``; empty where every gate passes."""
    return ", ".join(gate.name for gate in output.failed_gates)


def ambiguity(samples: Samples) -> tuple[str, ...]:
    """One line on ambiguous samples and one on those that were left out; empty where there are none."""
    if not samples.ambiguous:
        return ()
    count = f"{len(samples.ambiguous)} of {samples.total} samples ambiguous: a decision lies within fp16 noise of its border"
    left_out = [sample for sample in samples.ambiguous if sample.left_out]
    if elements := sum(sample.elements_left_out for sample in samples.ambiguous):
        count += f"; {elements} elements are not in the ratios, since their own decision fell the other way"
    if not left_out:
        return (count,)
    listed = ", ".join(f"{sample.label} ({sample.differing} elements differ)" for sample in left_out[:SHOWN_AMBIGUOUS])
    more = f" and {len(left_out) - SHOWN_AMBIGUOUS} more" if len(left_out) > SHOWN_AMBIGUOUS else ""
    return count, f"{len(left_out)} of them not in the ratios, since a decision fell the other way: {listed}{more}"


def unstated(problems: Iterable[str], text: str) -> tuple[str, ...]:
    """Those of ``problems`` that ``text``, the line of a verdict, does not quote already."""
    return tuple(problem for problem in problems if problem not in text)


def why_no_culprit(report: Report) -> str:
    """Reason that no culprit is named: no op was looked at, or none stands out."""
    if not report.ops:
        return f"ops: {NOT_LOOKED_AT}"
    return f"ops: none of {len(report.ops)} stands out"


def why_no_units(report: Report) -> str:
    """Reason that compute units are not compared; empty where they are."""
    ran = tuple(report.compute_unit_rho)
    if len(ran) > 1:
        return ""
    if report.backend == "lifted":
        return f"compute units: {NOT_LOOKED_AT}, since the lifted backend has none"
    return f"compute units: only {ran[0] if ran else report.compute_units} was run, so there is nothing to compare"


def parts_of(report: Report | BundleReport) -> tuple[Report, ...]:
    """The package, or the stages of the bundle."""
    return (report,) if isinstance(report, Report) else tuple(report.stages.values())


def title_of(report: Report | BundleReport) -> str:
    """Name, file and digest of a package, or name, kind and date of a bundle."""
    if isinstance(report, BundleReport):
        return f"bundle {report.bundle} ({report.kind}, exported {report.created})"
    return f"{report.name}  {report.package}  sha256 {report.digest[:12]}"


def coverage(reports: Sequence[Report], chain: ChainReport | None) -> str:
    """One line on everything that was compared and everything that was not."""
    outputs = [output for report in reports for output in report.outputs.values()]
    samples = sum(report.samples.total for report in reports)
    drawn = sum(report.samples.drawn for report in reports)
    elements = sum(output.elements for output in outputs)
    ambiguous = sum(len(report.samples.ambiguous) for report in reports)
    left_out = sum(report.samples.left_out for report in reports)
    without_outputs = [report.name for report in reports if not report.outputs]
    text = (
        f"compared: {len(reports) - len(without_outputs)} of {len(reports)} packages, {len(outputs)} outputs, {elements:,} elements; "
        f"{samples} samples ({drawn} drawn from seeds, {samples - drawn} given), {ambiguous} of them ambiguous, {left_out} left out"
    )
    if chain is not None:
        of = chain.samples
        text += f"; cascade: {of.given} sentences and {of.drawn} drawn, {len(of.ambiguous)} of them ambiguous, {of.left_out} left out"
    ops = sum(len(report.ops) for report in reports)
    if ops:
        text += f"; {ops:,} ops looked at"
    without_ops = [report.name for report in reports if not report.ops]
    if without_ops:
        text += f"; ops {NOT_LOOKED_AT}" + (f" in {', '.join(without_ops)}" if ops else "")
    if missing := missing_rungs(outputs):
        text += f"; rungs not run: {', '.join(missing)}"
    if without_outputs:
        text += f"; NOT compared: {', '.join(without_outputs)}"
    return text
