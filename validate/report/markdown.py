"""A report as Markdown, short enough for a pull request: the verdict, what does not pass, and what explains it."""

import re
from collections.abc import Iterable, Iterator, Sequence

from coreflow.validate.report.model import BundleReport, CascadeReport, Outcome, OutputReport, Report
from coreflow.validate.report.wording import (
    SHOWN_CULPRITS,
    SIGNS,
    coverage,
    headroom,
    jump,
    number,
    ops_found,
    parts_of,
    place,
    printable,
    replay_command,
    times,
)

_COLUMNS = ("package", "output", "verdict", "relative RMS", "rho_rms", "rho_max", "rho_slice", "headroom", "largest jump")


def to_markdown(report: Report | BundleReport) -> str:
    """Headline, a table of what does not pass, culprits; what passes is folded away."""
    return re.sub("\n{3,}", "\n\n", "\n".join(_lines(report))) + "\n"


def _lines(report: Report | BundleReport) -> Iterator[str]:
    parts = parts_of(report)
    cascade = report.cascade if isinstance(report, BundleReport) else None
    cause = "" if report.cause is None else f" ({report.cause})"
    yield f"### {_word(report.verdict)}{cause}: coreflow validate {code(report.name)}"
    yield ""
    yield escape(report.text)
    yield ""
    problems = [(part.name, each) for part in parts for each in part.problems if each not in report.text]
    if isinstance(report, BundleReport):
        problems += [(report.name, each) for each in report.problems]
        for each in report.warnings:
            yield f"- warning: {escape(each)}"
    for name, each in problems:
        yield f"- {code(name)} not judged: {escape(each)}"
    rows = [(part.name, output) for part in parts for output in part.by_headroom]
    if cascade is not None:
        rows += [("cascade", output) for output in cascade.outputs.values()]
    # A package without outputs has a verdict all the same, and it is not to be missing here.
    unjudged = [part for part in parts if not part.outputs]
    failing = [(name, output) for name, output in rows if output.outcome != "pass"]
    passing = [(name, output) for name, output in rows if output.outcome == "pass"]
    if failing or unjudged:
        yield ""
        yield from _table(_COLUMNS, [*map(_cells, failing), *map(_unjudged, unjudged)])
    for part in parts:
        yield from _culprits(part)
    if cascade is not None:
        yield from _tokens(cascade)
    if passing:
        yield ""
        yield f"<details><summary>{len(passing)} of {len(rows)} outputs pass</summary>"
        yield ""
        yield from _table(_COLUMNS, map(_cells, passing))
        yield ""
        yield "</details>"
    yield ""
    yield f"<sub>{escape(coverage(parts, cascade))}</sub>"


def _culprits(report: Report) -> Iterator[str]:
    if report.verdict == "pass":
        return
    if report.culprits:
        yield ""
        yield f"Culprits in {code(report.name)}, the worst first:"
        yield ""
        for which, each in enumerate(report.culprits[:SHOWN_CULPRITS], 1):
            where = escape(place(each.origin))
            yield f"{which}. **{each.kind}** {code(each.name)} ({code(each.type)}){times(each)}; {where}: {escape(each.text)}"
    elif report.outputs:
        yield ""
        yield f"No culprit is named in {code(report.name)}; {ops_found(report)}."
    if command := replay_command(report):
        yield ""
        yield f"Replay: {code(command)}"


def _tokens(cascade: CascadeReport) -> Iterator[str]:
    tokens = cascade.tokens
    yield ""
    yield f"Tokens of {tokens.sentences} golden sentences: {tokens.equal} of {tokens.tokens} equal."
    for each in tokens.unexplained:
        yield f"- differs, unexplained: {escape(each)}"


def _cells(row: tuple[str, OutputReport]) -> tuple[str, ...]:
    name, output = row
    gates = ", ".join(gate.name for gate in output.failed_gates)
    return (
        code(name),
        code(output.name),
        f"{_word(output.outcome)} {gates}".rstrip(),
        number(output.relative_rms),
        number(output.rho_rms),
        number(output.rho_max),
        number(output.rho_slice),
        headroom(output),
        escape(jump(output)),
    )


def _unjudged(report: Report) -> tuple[str, ...]:
    return (code(report.name), "nothing compared", _word(report.verdict), *("" for _ in _COLUMNS[3:]))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"| {' | '.join(':--' if column in ('package', 'output', 'verdict', 'largest jump') else '--:' for column in columns)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _word(outcome: Outcome) -> str:
    return f"{SIGNS[outcome]} **{outcome.upper()}**"


def code(text: str) -> str:
    """A code span that holds any text, in a table too; line breaks become spaces."""
    # Between a row's bars even a code span needs its own bars escaped; there is no escape outside of a table that harms nothing,
    # so a bar becomes one that looks the same.
    flat = " ".join(printable(text).split()).replace("|", "∣")
    ticks = "`" * (max((len(run) for run in re.findall("`+", flat)), default=0) + 1)
    edge = " " if flat[:1] in ("`", "") or flat.endswith("`") else ""
    return f"{ticks}{edge}{flat}{edge}{ticks}"


def escape(text: str) -> str:
    """Text in which nothing is markup; line breaks become spaces."""
    flat = " ".join(printable(text).split())
    inline = re.sub(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", flat).replace("&", "&amp;").replace("<", "&lt;")
    # What means something only at the start of a line: headings, quotes, lists.
    return re.sub(r"^(\d*)([#>+=.)-])", r"\1\\\2", inline)
