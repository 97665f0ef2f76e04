"""Words and numbers that every rendering of a report shares. Standard library only."""

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from coreflow.validate.report.model import BundleReport, CascadeReport, Culprit, Element, Origin, Outcome, OutputReport, Report, Samples

# A sign beside every verdict's word, so that neither colour nor reading is needed to tell them apart.
SIGNS: Mapping[Outcome, str] = {"pass": "✓", "warn": "!", "fail": "✗", "fp16-unsafe": "⚠", "incomplete": "?"}
RUNGS: Mapping[str, str] = {
    "R1": "torch in fp32",
    "R2": "the program with fp32 weights, wide arithmetic",
    "R3": "the saved program, fp64 arithmetic",
    "R4": "the saved program, fp16 arithmetic",
    "R5": "the saved program on the device",
}
# What a rung adds to the one before it.
JUMPS: Mapping[str, str] = {
    "R1": "noise of the reference",
    "R2": "translation",
    "R3": "rounding of weights and constants",
    "R4": "fp16 arithmetic",
    "R5": "device",
}
NOT_LOOKED_AT = "not looked at"
SHOWN_CULPRITS = 5
SHOWN_CONSTANTS = 8
SHOWN_AMBIGUOUS = 6


def printable(text: object) -> str:
    """The text without characters that steer a terminal, break XML or turn the direction of writing; each becomes U+FFFD."""
    return _STEERING.sub("\ufffd", str(text))


# Control characters other than tab and newline, lone surrogates, marks of writing direction, and what XML 1.0 cannot hold.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def number(value: float, decimals: int | None = None) -> str:
    """Two decimals, or two digits and an exponent where these would say little."""
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if decimals is not None:
        return f"{value:.{decimals}f}"
    if value == 0:
        return "0"
    return f"{value:.2f}" if 0.01 <= abs(value) < 1000 else f"{value:.1e}"


def gate_number(value: float) -> str:
    """As ``number``, and a count as a count."""
    return str(int(value)) if math.isfinite(value) and float(value).is_integer() and abs(value) < 1e9 else number(value)


def ranked(value: float) -> float:
    """For comparing: NaN is worse than any number."""
    return math.inf if math.isnan(value) else value


def exact_number(value: float) -> str:
    """Enough digits to tell neighbouring fp16 numbers apart."""
    return f"{value:.6g}" if math.isfinite(value) else number(value)


def times(culprit: Culprit) -> str:
    """``, 8.10 times what is healthy``; nothing where a single such value is too many."""
    return "" if culprit.kind == "non-finite" else f", {number(culprit.ratio)} times what is healthy"


def execution(report: Report) -> str:
    """Backend, arithmetic and seeds."""
    how = f"numerics {report.numerics}" if report.backend == "lifted" else f"compute units {report.compute_units}"
    seeds = report.samples.seeds
    drawn = "" if not seeds else f", seed {seeds[0]}" if len(seeds) == 1 else f", seeds {seeds[0]} to {seeds[-1]}"
    return f"backend {report.backend}, {how}{drawn}"


def versions(of: Mapping[str, str]) -> str:
    """``torch 2.13.0, numpy 2.3.5``."""
    return ", ".join(f"{name} {each}" for name, each in of.items())


def place(origin: Origin | None) -> str:
    """Module and line of the source, or that they are not known."""
    if origin is None:
        return "no torch operation gives the same numbers"
    return f"{origin.module or 'the module itself'}, {origin.file}:{origin.line}"


def described(culprit: Culprit) -> str:
    """A culprit in one line, without its text."""
    return f"{culprit.kind}: {culprit.name} ({culprit.type}){times(culprit)}; {place(culprit.origin)}"


def position(element: Element) -> str:
    """``seed 3 [0, 17]``."""
    return f"{element.sample} {list(element.index)}"


def replay_command(report: Report) -> str | None:
    """What reproduces the worst sample alone, ready for a shell."""
    if report.replay is None:
        return None
    told = "" if report.replay_package is None else f" --package {shlex.quote(report.replay_package)}"
    return f"coreflow validate replay {shlex.quote(report.replay)}{told}"


def jump(output: OutputReport) -> str:
    """The rung that adds most, in words."""
    name = output.largest_jump
    if name is None:
        return "none" if output.rungs else NOT_LOOKED_AT
    names = list(output.rungs)
    adds = JUMPS.get(name, name)
    if name == "R3" and "R2" not in output.rungs:
        adds = f"{adds}, or translation"  # nothing between torch and the saved weights was run
    before = [output.rungs[each].relative_rms for each in names[: names.index(name)]]
    rose = f"{number(before[-1])} to {number(output.rungs[name].relative_rms)}" if before else number(output.rungs[name].relative_rms)
    return f"{name} {adds} ({rose})"


def not_run(outputs: Iterable[OutputReport]) -> tuple[str, ...]:
    """Rungs that no output has; empty where no output has a ladder at all."""
    found = {name for output in outputs for name in output.rungs}
    return tuple(name for name in RUNGS if name not in found) if found else ()


def contract(output: OutputReport) -> str:
    """RMS error against what the contract allows; a dash where no contract was judged."""
    gate = next((gate for gate in output.gates if gate.name == "contract"), None)
    return "-" if gate is None else f"{number(gate.value)} of {number(gate.limit)}"


def flips(output: OutputReport) -> str:
    """How many, where whole numbers or margins were looked at."""
    return str(output.flips) if output.flips or output.dtype == "int32" or output.plots.margin else "-"


def non_finite(output: OutputReport) -> str:
    """NaN and infinite values, and how many of them are beyond fp16."""
    total = output.non_finite + output.overflowed
    return f"{total} ({output.overflowed} overflow)" if output.overflowed else str(total)


def headroom(output: OutputReport) -> str:
    """What is left of the tightest limit, or how many times it is exceeded."""
    if output.headroom >= 0:
        return f"{output.headroom:.0%}"
    return f"none ({1 - output.headroom:.3g}x)" if math.isfinite(output.headroom) else "none"


def outcome_word(output: OutputReport) -> str:
    """The verdict on one output and the gates that gave it."""
    gates = ", ".join(gate.name for gate in output.failed_gates)
    return f"{output.outcome.upper()} {gates}".rstrip()


def ambiguity(samples: Samples) -> tuple[str, ...]:
    """Samples near a border and those that were left out; empty where there are none."""
    if not samples.ambiguous:
        return ()
    said = f"{len(samples.ambiguous)} of {samples.total} samples ambiguous: a decision lies within fp16 noise of its border"
    left_out = [each for each in samples.ambiguous if each.left_out]
    if not left_out:
        return (said,)
    shown = ", ".join(f"{each.label} ({each.differing} elements differ)" for each in left_out[:SHOWN_AMBIGUOUS])
    more = f" and {len(left_out) - SHOWN_AMBIGUOUS} more" if len(left_out) > SHOWN_AMBIGUOUS else ""
    return said, f"{len(left_out)} of them not in the ratios, since a decision fell the other way: {shown}{more}"


def ops_found(report: Report) -> str:
    """What the search for a culprit came to, where it names none."""
    if not report.ops:
        return f"ops: {NOT_LOOKED_AT}"
    return f"ops: none of {len(report.ops)} stands out"


def units_found(report: Report) -> str:
    """Why there is no comparison of compute units; empty where there is one."""
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
    """Name and file of what was judged."""
    if isinstance(report, BundleReport):
        return f"bundle {report.bundle} ({report.kind}, exported {report.created})"
    return f"{report.name}  {report.package}  sha256 {report.digest[:12]}"


def coverage(reports: Sequence[Report], cascade: CascadeReport | None) -> str:
    """What was compared, and what was not."""
    compared = [output for report in reports for output in report.outputs.values()]
    samples = sum(report.samples.total for report in reports)
    seeds = sum(report.samples.drawn for report in reports)
    elements = sum(each.elements for each in compared)
    unjudged = [report.name for report in reports if not report.outputs]
    ambiguous = sum(len(report.samples.ambiguous) for report in reports)
    left_out = sum(report.samples.left_out for report in reports)
    text = (
        f"compared: {len(reports) - len(unjudged)} of {len(reports)} packages, {len(compared)} outputs, {elements:,} elements; "
        f"{samples} samples ({seeds} drawn from seeds, {samples - seeds} given), {ambiguous} of them ambiguous, {left_out} left out"
    )
    if cascade is not None:
        of = cascade.samples
        text += f"; cascade: {of.given} sentences and {of.drawn} drawn, {len(of.ambiguous)} of them ambiguous, {of.left_out} left out"
    ops = sum(len(report.ops) for report in reports)
    if ops:
        text += f"; {ops:,} ops looked at"
    unseen = [report.name for report in reports if not report.ops]
    if unseen:
        text += f"; ops {NOT_LOOKED_AT}" + (f" in {', '.join(unseen)}" if ops else "")
    if missing := not_run(compared):
        text += f"; rungs not run: {', '.join(missing)}"
    if unjudged:
        text += f"; NOT compared: {', '.join(unjudged)}"
    return text
