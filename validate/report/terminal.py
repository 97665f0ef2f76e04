"""A report as a rich renderable. Words carry every verdict; colour only repeats them."""

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from coreflow.validate.report.model import BundleReport, CascadeReport, Outcome, OutputReport, Report, Samples

_STYLES: dict[Outcome, str] = {
    "pass": "green",
    "warn": "yellow",
    "fail": "bold red",
    "fp16-unsafe": "bold red",
    "incomplete": "bold magenta",
}
_COLUMNS = (
    "output",
    "RMS(ref)",
    "rel. RMS",
    "SNR dB",
    "budget",
    "rho_rms",
    "rho_max",
    "rho_slice",
    "worst slice",
    "max error",
    "contract",
    "non-finite",
    "headroom",
    "verdict",
)
# What is left where a line has no room for all of them.
_ESSENTIAL = ("output", "SNR dB", "rho_rms", "rho_max", "rho_slice", "headroom", "verdict")
_WIDE = 150
_SHOWN_AMBIGUOUS = 6


def render(report: Report | BundleReport) -> RenderableType:
    """Header, verdict, tables and footer, for a console of any width."""
    return Group(*(_bundle(report) if isinstance(report, BundleReport) else _single(report)))


def _single(report: Report) -> Iterator[RenderableType]:
    yield _line(f"{report.name}  {report.package}  sha256 {report.digest[:12]}", "bold")
    yield _line(f"  {_execution(report)}; reference: torch in float64; {_versions(report.versions)}", "dim")
    yield _verdict(report)
    yield from _stage(report)
    yield _coverage([report], None)


def _bundle(report: BundleReport) -> Iterator[RenderableType]:
    yield _line(f"bundle {report.bundle} ({report.kind}, exported {report.created})", "bold")
    first = next(iter(report.stages.values()), None)
    if first is not None:
        yield _line(f"  {_execution(first)}; reference: torch in float64; {_versions(report.versions)}", "dim")
    for warning in report.warnings:
        yield _line(f"  warning: {warning}", "yellow")
    yield _verdict(report)
    for stage in report.stages.values():
        yield Text()
        yield _line(f"{stage.name}  {stage.package}  sha256 {stage.digest[:12]}", "bold")
        if stage.verdict != "pass":
            yield _verdict(stage)
        yield from _stage(stage)
    if report.cascade is not None:
        yield Text()
        yield _line("cascade: the stages wired together, from text and embeddings to logits", "bold")
        yield from _cascade(report.cascade)
    for problem in report.problems:
        yield _line(f"  not judged: {problem}", "magenta")
    yield Text()
    yield _coverage(list(report.stages.values()), report.cascade)


def _stage(report: Report) -> Iterator[RenderableType]:
    if report.outputs:
        yield OutputsTable(report.by_headroom)
    yield from _samples(report.samples)


def _cascade(cascade: CascadeReport) -> Iterator[RenderableType]:
    if cascade.verdict != "pass":
        yield _verdict(cascade)
    yield OutputsTable(tuple(cascade.outputs.values()))
    table = _table("chain: rho_rms of each stage alone, and of everything up to and with it")
    for column in ("stage", "teacher-forced", "alone", "cascaded", "up to here", "at"):
        table.add_column(column, justify="right" if column in ("teacher-forced", "cascaded") else "left", no_wrap=True)
    for row in cascade.rows:
        table.add_row(
            Text(row.stage),
            _number(row.teacher_forced),
            _word(row.alone),
            _number(row.cascaded),
            _word(row.outcome),
            Text(row.output),
        )
    yield table
    tokens = cascade.tokens
    yield _line(f"  tokens of {tokens.sentences} golden sentences: {tokens.equal} of {tokens.tokens} equal ({tokens.share:.1%})")
    for said in tokens.unexplained:
        yield _line(f"  differs, unexplained: {said}", "bold red")
    for said in tokens.explained:
        yield _line(f"  differs, the reference is undecided: {said}", "yellow")
    yield from _samples(cascade.samples)


class OutputsTable:
    """A row per output, in the order given; narrow consoles get the essential columns."""

    def __init__(self, outputs: Sequence[OutputReport]) -> None:
        self.outputs = outputs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The table that fits."""
        columns = _COLUMNS if options.max_width >= _WIDE else _ESSENTIAL
        table = _table()
        for column in columns:
            is_text = column in ("output", "worst slice", "verdict")
            table.add_column(column, justify="left" if is_text else "right", no_wrap=column not in ("worst slice", "verdict"))
        for each in self.outputs:
            cells = _cells(each)
            table.add_row(*(cells[column] for column in columns))
        yield table


def _cells(output: OutputReport) -> dict[str, RenderableType]:
    verdict = _word(output.outcome)
    if output.failed_gates:
        verdict.append(f" {', '.join(gate.name for gate in output.failed_gates)}")
    return {
        "output": Text(output.name),
        "RMS(ref)": _number(output.reference_rms),
        "rel. RMS": _number(output.relative_rms),
        "SNR dB": _number(output.snr_db, 1),
        "budget": _number(output.budget),
        "rho_rms": _number(output.rho_rms),
        "rho_max": _number(output.rho_max),
        "rho_slice": _number(output.rho_slice),
        "worst slice": Text(output.worst_slice),
        "max error": _number(output.max_abs),
        "contract": _number(output.contract),
        "non-finite": f"{output.flips} flips" if output.dtype == "int32" else str(output.non_finite + output.overflowed),
        "headroom": f"{output.headroom:.0%}" if math.isfinite(output.headroom) else "none",
        "verdict": verdict,
    }


def _samples(samples: Samples) -> Iterator[RenderableType]:
    if not samples.ambiguous:
        return
    yield _line(f"  {len(samples.ambiguous)} of {samples.total} samples ambiguous: a decision lies within fp16 noise of its border")
    if left_out := [each for each in samples.ambiguous if each.left_out]:
        shown = ", ".join(f"{each.label} ({each.differing} elements differ)" for each in left_out[:_SHOWN_AMBIGUOUS])
        more = f" and {len(left_out) - _SHOWN_AMBIGUOUS} more" if len(left_out) > _SHOWN_AMBIGUOUS else ""
        yield _line(f"  {len(left_out)} of them not in the ratios, since a decision fell the other way: {shown}{more}", "yellow")


def _verdict(part: Report | BundleReport | CascadeReport) -> Text:
    line = Text("  " if isinstance(part, CascadeReport) else "")
    line.append(part.verdict.upper(), style=_STYLES[part.verdict])
    if part.cause is not None:
        line.append(f" ({part.cause})", style=_STYLES[part.verdict])
    return line.append(f"  {part.text}")


def _coverage(reports: Sequence[Report], cascade: CascadeReport | None) -> Text:
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
    if unjudged:
        text += f"; NOT compared: {', '.join(unjudged)}"
    return _line(text, "dim")


def _execution(report: Report) -> str:
    how = f"numerics {report.numerics}" if report.backend == "lifted" else f"compute units {report.compute_units}"
    seeds = report.samples.seeds
    drawn = f", seeds {seeds[0]} to {seeds[-1]}" if seeds else ""
    return f"backend {report.backend}, {how}{drawn}"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _table(title: str | None = None) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim", title=title, title_justify="left", title_style="dim")


def _word(outcome: Outcome) -> Text:
    return Text(outcome.upper(), style=_STYLES[outcome])


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style)


def _number(value: float, decimals: int | None = None) -> str:
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf"
    if decimals is not None:
        return f"{value:.{decimals}f}"
    return f"{value:.2f}" if 0.01 <= abs(value) < 1000 or value == 0 else f"{value:.1e}"
