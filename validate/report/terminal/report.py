"""A report in a terminal: headline, verdict, tables and footer, for a console of any width."""

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.text import Text

from coreflow.validate.report.columns import CHAIN, ELEMENTS, OUTPUTS, Column, pick
from coreflow.validate.report.model import BundleReport, ChainReport, Element, OutputReport, Report, Samples
from coreflow.validate.report.terminal.ladder import Ladder
from coreflow.validate.report.terminal.text import STYLES, column_table, empty_table, line
from coreflow.validate.report.wording import (
    NOT_LOOKED_AT,
    SHOWN_CONSTANTS,
    SHOWN_CULPRITS,
    ambiguity,
    coverage,
    culprit_title,
    execution,
    number,
    position,
    precise_number,
    printable,
    replay_command,
    source_line,
    title_of,
    unstated,
    versions_text,
    why_no_culprit,
    why_no_units,
)

_FULL_WIDTH = 150  # of a console that has room for all columns
_SHOWN_FAILURES = 3  # outputs whose worst elements are listed
_POSITION: Column[Element] = Column(key="position", title="  where", format=lambda element: f"  {position(element)}", left=True)
_ELEMENTS = (_POSITION, *pick(ELEMENTS, "reference", "simulated", "actual"))


def render(report: Report | BundleReport) -> RenderableType:
    """The renderable of a whole report."""
    return Group(*(_bundle(report) if isinstance(report, BundleReport) else _single(report)))


def _single(report: Report) -> Iterator[RenderableType]:
    yield line(title_of(report), "bold")
    yield line(f"  {execution(report)}; reference: {report.reference}; budget: {report.budget}; {versions_text(report.versions)}", "dim")
    yield _verdict(report)
    yield from _stage(report)
    yield line(coverage([report], None), "dim")


def _bundle(report: BundleReport) -> Iterator[RenderableType]:
    yield line(title_of(report), "bold")
    first = next(iter(report.stages.values()), None)
    if first is not None:
        yield line(f"  {execution(first)}; reference: {first.reference}; {versions_text(report.versions)}", "dim")
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
        yield from _chain(report.cascade)
    for problem in report.problems:
        yield line(f"  not judged: {problem}", "magenta")
    yield Text()
    yield line(coverage(list(report.stages.values()), report.cascade), "dim")


def _stage(report: Report) -> Iterator[RenderableType]:
    for problem in unstated(report.problems, report.text):
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
    """Culprits, the worst elements of failing outputs, and the command that shows the failure again."""
    if not report.culprits:
        yield line(f"  culprits: none named; {why_no_culprit(report)}")
    else:
        shown = report.culprits[:SHOWN_CULPRITS]
        more = f", {len(shown)} of {len(report.culprits)}" if len(shown) < len(report.culprits) else ""
        yield line(f"  culprits, the worst first{more}:", "bold")
        for rank, culprit in enumerate(shown, 1):
            yield line(f"  {rank}. {culprit_title(culprit)}")
            yield line(f"     {source_line(culprit.origin)}: {culprit.text}", "dim")
    failing = [output for output in report.by_headroom if output.outcome != "pass"]
    for output in failing[:_SHOWN_FAILURES]:
        if output.worst_elements:
            yield column_table(_ELEMENTS, output.worst_elements, f"  worst elements of {output.name}", wrap=["position"])
        else:
            yield line(f"  worst elements of {output.name}: {NOT_LOOKED_AT}")
    if command := replay_command(report):
        replay = line(f"  replay: {command}", "bold")
        replay.no_wrap, replay.overflow = True, "ignore"  # to be copied
        yield replay


def _constants(report: Report) -> Iterator[RenderableType]:
    for constant in report.constants[:SHOWN_CONSTANTS]:
        many = f", {constant.elements} elements" if constant.elements > 1 else ""
        yield line(f"  constant {constant.name} of {constant.op} {constant.problem}: {precise_number(constant.value)}{many}", "yellow")
    if len(report.constants) > SHOWN_CONSTANTS:
        yield line(f"  and {len(report.constants) - SHOWN_CONSTANTS} more constants that fp16 does not hold", "yellow")


def _units(report: Report) -> Iterator[RenderableType]:
    if len(report.compute_unit_rho) < 2:
        if report.backend != "lifted":
            yield line(f"  {why_no_units(report)}", "dim")
        return
    units = list(report.compute_unit_rho)
    table = empty_table("  rho_rms per compute unit")
    table.add_column("  output", overflow="fold")
    for unit in units:
        table.add_column(printable(unit), justify="right")
    for name in report.outputs:
        ratios = [report.compute_unit_rho[unit].get(name) for unit in units]
        table.add_row(line(f"  {name}"), *(NOT_LOOKED_AT if rho is None else number(rho) for rho in ratios))
    yield table


def _chain(chain: ChainReport) -> Iterator[RenderableType]:
    if chain.verdict != "pass":
        yield _verdict(chain)
    yield OutputsTable(tuple(chain.outputs.values()))
    yield Ladder(tuple(chain.outputs.values()))
    title = "chain: rho_rms of each stage alone, and of everything up to and with it"
    yield column_table(CHAIN, chain.rows, title, overflow="ellipsis")
    tokens = chain.tokens
    yield line(f"  tokens of {tokens.sentences} golden sentences: {tokens.equal} of {tokens.tokens} equal ({tokens.share:.1%})")
    for sentence in tokens.unexplained:
        yield line(f"  differs, unexplained: {sentence}", "bold red")
    for sentence in tokens.explained:
        yield line(f"  differs, the reference is undecided: {sentence}", "yellow")
    yield from _samples(chain.samples)
    for problem in chain.problems:
        yield line(f"  not judged: {problem}", "magenta")


class OutputsTable:
    """A row per output, in the order given; narrow consoles get the essential columns.

    >>> console.print(OutputsTable(report.by_headroom))
    """

    def __init__(self, outputs: Sequence[OutputReport]) -> None:
        self.outputs = outputs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The table that fits."""
        all_fit = options.max_width >= _FULL_WIDTH
        columns = [column for column in OUTPUTS if all_fit or column.essential]
        yield column_table(columns, self.outputs, wrap=["worst_slice", "verdict"])


def _samples(samples: Samples) -> Iterator[RenderableType]:
    for text, style in zip(ambiguity(samples), ("", "yellow"), strict=False):
        yield line(f"  {text}", style)


def _verdict(part: Report | BundleReport | ChainReport) -> Text:
    text = Text("  " if isinstance(part, ChainReport) else "")
    text.append(part.verdict.upper(), style=STYLES[part.verdict])
    if part.cause is not None:
        text.append(f" ({part.cause})", style=STYLES[part.verdict])
    return text.append(f"  {printable(part.text)}")
