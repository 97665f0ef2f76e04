"""A report as a rich renderable. Words carry every verdict; colour only repeats them."""

import math
from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from coreflow.validate.report.diff import ReportDiff
from coreflow.validate.report.model import BundleReport, CascadeReport, Outcome, OutputReport, Report, Samples
from coreflow.validate.report.wording import (
    NOT_LOOKED_AT,
    SHOWN_CONSTANTS,
    SHOWN_CULPRITS,
    ambiguity,
    contract,
    coverage,
    exact_number,
    execution,
    flips,
    headroom,
    jump,
    non_finite,
    number,
    ops_found,
    outcome_word,
    place,
    position,
    printable,
    replay_command,
    times,
    title_of,
    units_found,
    versions,
)

STYLES: dict[Outcome, str] = {
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
    "contract",
    "flips",
    "non-finite",
    "headroom",
    "verdict",
)
# What is left where a line has no room for all of them.
_ESSENTIAL = ("output", "SNR dB", "rho_rms", "rho_max", "rho_slice", "headroom", "verdict")
_LEFT = ("output", "worst slice", "verdict")
_WIDE = 150
_BAR, _SHORT_BAR = 44, 20
_SHOWN_FAILURES = 3  # outputs whose worst elements are listed


def render(report: Report | BundleReport) -> RenderableType:
    """Header, verdict, tables and footer, for a console of any width."""
    return Group(*(_bundle(report) if isinstance(report, BundleReport) else _single(report)))


def _single(report: Report) -> Iterator[RenderableType]:
    yield line(title_of(report), "bold")
    yield line(f"  {execution(report)}; reference: {report.reference}; budget: {report.budget}; {versions(report.versions)}", "dim")
    yield _verdict(report)
    yield from _stage(report)
    yield line(coverage([report], None), "dim")


def _bundle(report: BundleReport) -> Iterator[RenderableType]:
    yield line(title_of(report), "bold")
    first = next(iter(report.stages.values()), None)
    if first is not None:
        yield line(f"  {execution(first)}; reference: {first.reference}; {versions(report.versions)}", "dim")
    for warning in report.warnings:
        yield line(f"  warning: {warning}", "yellow")
    yield _verdict(report)
    for stage in report.stages.values():
        yield Text()
        yield line(title_of(stage), "bold")
        if stage.verdict != "pass":
            yield _verdict(stage)
        yield from _stage(stage)
    if report.cascade is not None:
        yield Text()
        yield line("cascade: the stages wired together, from text and embeddings to logits", "bold")
        yield from _cascade(report.cascade)
    for problem in report.problems:
        yield line(f"  not judged: {problem}", "magenta")
    yield Text()
    yield line(coverage(list(report.stages.values()), report.cascade), "dim")


def _stage(report: Report) -> Iterator[RenderableType]:
    for problem in report.problems:
        if problem not in report.text:
            yield line(f"  not judged: {problem}", "magenta")
    if report.outputs:
        yield OutputsTable(report.by_headroom)
        yield Ladder(report.by_headroom)
    yield from _samples(report.samples)
    for note in report.notes:
        yield line(f"  note: {note}")
    yield from _constants(report)
    yield from _units(report)
    if report.verdict != "pass" and report.outputs:
        yield from _explanation(report)


def _explanation(report: Report) -> Iterator[RenderableType]:
    """What a failure comes from, where it is largest, and how to see it again."""
    if not report.culprits:
        yield line(f"  culprits: none named; {ops_found(report)}")
    else:
        shown = report.culprits[:SHOWN_CULPRITS]
        more = f", {len(shown)} of {len(report.culprits)}" if len(shown) < len(report.culprits) else ""
        yield line(f"  culprits, the worst first{more}:", "bold")
        for which, each in enumerate(shown, 1):
            yield line(f"  {which}. {each.kind}: {each.name} ({each.type}){times(each)}")
            yield line(f"     {place(each.origin)}: {each.text}", "dim")
    failing = [output for output in report.by_headroom if output.outcome != "pass"]
    for output in failing[:_SHOWN_FAILURES]:
        if output.worst_elements:
            yield _elements(output)
        else:
            yield line(f"  worst elements of {output.name}: {NOT_LOOKED_AT}")
    if command := replay_command(report):
        whole = line(f"  replay: {command}", "bold")
        whole.no_wrap, whole.overflow = True, "ignore"  # to be copied
        yield whole


def _elements(output: OutputReport) -> Table:
    shown = table(f"  worst elements of {output.name}")
    for column in ("  where", "reference", "simulated", "package"):
        shown.add_column(column, justify="left" if column == "  where" else "right", overflow="fold")
    for each in output.worst_elements:
        shown.add_row(line(f"  {position(each)}"), exact_number(each.reference), exact_number(each.simulated), exact_number(each.actual))
    return shown


def _constants(report: Report) -> Iterator[RenderableType]:
    for each in report.constants[:SHOWN_CONSTANTS]:
        many = f", {each.elements} elements" if each.elements > 1 else ""
        yield line(f"  constant {each.name} of {each.op} {each.problem}: {exact_number(each.value)}{many}", "yellow")
    if len(report.constants) > SHOWN_CONSTANTS:
        yield line(f"  and {len(report.constants) - SHOWN_CONSTANTS} more constants that fp16 does not hold", "yellow")


def _units(report: Report) -> Iterator[RenderableType]:
    if len(report.compute_unit_rho) < 2:
        if report.backend != "lifted":
            yield line(f"  {units_found(report)}", "dim")
        return
    units = list(report.compute_unit_rho)
    shown = table("  rho_rms per compute unit")
    shown.add_column("  output", overflow="fold")
    for unit in units:
        shown.add_column(printable(unit), justify="right")
    for name in report.outputs:
        found = [report.compute_unit_rho[unit].get(name) for unit in units]
        shown.add_row(line(f"  {name}"), *(NOT_LOOKED_AT if rho is None else number(rho) for rho in found))
    yield shown


def _cascade(cascade: CascadeReport) -> Iterator[RenderableType]:
    if cascade.verdict != "pass":
        yield _verdict(cascade)
    yield OutputsTable(tuple(cascade.outputs.values()))
    yield Ladder(tuple(cascade.outputs.values()))
    chain = table("chain: rho_rms of each stage alone, and of everything up to and with it")
    for column in ("stage", "teacher-forced", "alone", "cascaded", "up to here", "at"):
        chain.add_column(column, justify="right" if column in ("teacher-forced", "cascaded") else "left", no_wrap=True)
    for row in cascade.rows:
        chain.add_row(
            line(row.stage), number(row.teacher_forced), word(row.alone), number(row.cascaded), word(row.outcome), line(row.output)
        )
    yield chain
    tokens = cascade.tokens
    yield line(f"  tokens of {tokens.sentences} golden sentences: {tokens.equal} of {tokens.tokens} equal ({tokens.share:.1%})")
    for said in tokens.unexplained:
        yield line(f"  differs, unexplained: {said}", "bold red")
    for said in tokens.explained:
        yield line(f"  differs, the reference is undecided: {said}", "yellow")
    yield from _samples(cascade.samples)
    for problem in cascade.problems:
        yield line(f"  not judged: {problem}", "magenta")


class OutputsTable:
    """A row per output, in the order given; narrow consoles get the essential columns."""

    def __init__(self, outputs: Sequence[OutputReport]) -> None:
        self.outputs = outputs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The table that fits."""
        columns = _COLUMNS if options.max_width >= _WIDE else _ESSENTIAL
        shown = table()
        for column in columns:
            shown.add_column(
                column, justify="left" if column in _LEFT else "right", no_wrap=column not in ("worst slice", "verdict"), overflow="fold"
            )
        for each in self.outputs:
            cells = _cells(each)
            shown.add_row(*(cells[column] for column in columns))
        yield shown


def _cells(output: OutputReport) -> dict[str, RenderableType]:
    return {
        "output": line(output.name),
        "RMS(ref)": number(output.reference_rms),
        "rel. RMS": number(output.relative_rms),
        "SNR dB": number(output.snr_db, 1),
        "budget": number(output.budget),
        "rho_rms": number(output.rho_rms),
        "rho_max": number(output.rho_max),
        "rho_slice": number(output.rho_slice),
        "worst slice": line(output.worst_slice),
        "contract": contract(output),
        "flips": flips(output),
        "non-finite": non_finite(output),
        "headroom": headroom(output),
        "verdict": line(outcome_word(output), STYLES[output.outcome]),
    }


class Ladder:
    """A bar per output on a logarithmic axis that all of them share: 1 to 5 are the rungs, B is the budget."""

    def __init__(self, outputs: Sequence[OutputReport]) -> None:
        self.outputs = [output for output in outputs if output.rungs]
        self.without = [output.name for output in outputs if not output.rungs]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The bars, and a line for the outputs that have none."""
        if self.outputs:
            wide = options.max_width >= 110
            width, plain = _BAR if wide else _SHORT_BAR, options.ascii_only
            low, high = _powers(self.outputs)
            left, right = f"1e{low}", f"1e{high}" if high else "1"
            heavy = "=" if plain else "━"
            shown = table(f"ladder: relative RMS error, {left} to {right}; 1-5 rungs R1-R5, B budget, {heavy} largest jump")
            shown.add_column("output", overflow="fold")
            shown.add_column(left + right.rjust(width + 2 - len(left)), no_wrap=True)
            shown.add_column("largest jump", overflow="fold")
            for output in self.outputs:
                style = STYLES[output.outcome] if output.outcome != "pass" else ""
                shown.add_row(line(output.name), bar(output, low, high, width, plain=plain), line(jump(output), style))
            yield shown
        if self.without:
            yield line(f"  ladder of {', '.join(self.without)}: {NOT_LOOKED_AT}", "dim")


def bar(output: OutputReport, low: int, high: int, width: int, *, plain: bool = False) -> Text:
    """One ladder between 10**low and 10**high; what is not finite stands at the far end, 0 at the near one.

    A rung that falls on the place of another stands beside it, so that none is hidden.
    """
    light, heavy, ends = ("-", "=", "||") if plain else ("─", "━", "├┤")
    cells = [light] * width
    places = {name: _column(rung.relative_rms, low, high, width) for name, rung in output.rungs.items()}
    if (most := output.largest_jump) is not None:
        at = list(places).index(most)
        start, end = sorted((list(places.values())[at - 1] if at else 0, places[most]))
        cells[start : end + 1] = [heavy] * (end - start + 1)
    marks = {name[1:]: at for name, at in places.items()}
    if output.reference_rms > 0 and 0 < output.budget < math.inf:
        marks["B"] = _column(output.budget / output.reference_rms, low, high, width)
    taken: dict[int, str] = {}
    for sign, at in marks.items():
        taken[next(free for free in sorted(range(width), key=lambda other: (abs(other - at), -other)) if free not in taken)] = sign
    text = Text(ends[0])
    for at, cell in enumerate(cells):
        text.append(taken.get(at, cell), style="bold red" if cell == heavy else "bold" if at in taken else "dim")
    return text.append(ends[1])


def _powers(outputs: Sequence[OutputReport]) -> tuple[int, int]:
    values = [rung.relative_rms for output in outputs for rung in output.rungs.values()]
    values += [output.budget / output.reference_rms for output in outputs if output.reference_rms > 0]
    fine = [value for value in values if 0 < value < math.inf]
    if not fine:
        return -6, 0
    low, high = math.floor(math.log10(min(fine))), math.ceil(math.log10(max(fine)))
    return low, max(high, low + 1)


def _column(value: float, low: int, high: int, width: int) -> int:
    if not value < math.inf:
        return width - 1
    share = (math.log10(value) - low) / (high - low) if value > 0 else 0.0
    return min(width - 1, max(0, round(share * (width - 1))))


def _samples(samples: Samples) -> Iterator[RenderableType]:
    for said, style in zip(ambiguity(samples), ("", "yellow"), strict=False):
        yield line(f"  {said}", style)


def _verdict(part: Report | BundleReport | CascadeReport) -> Text:
    said = Text("  " if isinstance(part, CascadeReport) else "")
    said.append(part.verdict.upper(), style=STYLES[part.verdict])
    if part.cause is not None:
        said.append(f" ({part.cause})", style=STYLES[part.verdict])
    return said.append(f"  {printable(part.text)}")


def render_diff(diff: ReportDiff) -> RenderableType:
    """What changed between two reports, what got worse first."""
    return Group(*_diff(diff))


def _diff(diff: ReportDiff) -> Iterator[RenderableType]:
    worse = len(diff.worse)
    said = f"{worse} {'thing' if worse == 1 else 'things'} got worse" if worse else "nothing got worse"
    yield line(f"{'WORSE' if worse else 'NO WORSE'}  {diff.old_verdict} -> {diff.new_verdict}; {said}", "bold red" if worse else "green")
    if diff.outputs:
        shown = table()
        for column in ("package", "output", "rho_rms", "was", "rel. RMS", "was", ""):
            shown.add_column(column, justify="left" if column in ("package", "output", "") else "right", overflow="fold")
        for each in diff.outputs:
            numbers = (each.rho_after, each.rho_before, each.relative_rms_after, each.relative_rms_before)
            cells = ("not finite" if value is None else number(value) for value in numbers)
            shown.add_row(line(each.part), line(each.output), *cells, line("WORSE" if each.worse else "", "bold red"))
        yield shown
    styles = {"worse": "bold red", "better": "green", "changed": ""}
    for change in diff.changes:
        yield line(f"  {change.direction}: {change.part}: {change.what}: {change.before} -> {change.after}", styles[change.direction])
    if not diff.changes:
        yield line("  no gate, verdict or ratio changed", "dim")


def table(title: str | None = None) -> Table:
    """Without borders; a title is text."""
    shown = None if title is None else line(title, "dim")
    return Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim", title=shown, title_justify="left")


def word(outcome: Outcome) -> Text:
    """A verdict."""
    return Text(outcome.upper(), style=STYLES[outcome])


def line(text: str, style: str = "") -> Text:
    """Text in which nothing is markup and nothing steers the terminal."""
    return Text(printable(text), style=style)
