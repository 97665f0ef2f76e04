"""Markdown, short enough for a pull request: the verdict, the outputs that do not pass, and the culprits."""

import re
from collections.abc import Iterable, Iterator, Sequence

from coreflow.validate.report.columns import LARGEST_JUMP, OUTPUTS, Column, pick
from coreflow.validate.report.model import BundleReport, ChainReport, Outcome, OutputReport, Report
from coreflow.validate.report.wording import (
    SHOWN_CULPRITS,
    SIGNS,
    coverage,
    excess,
    failed_gate_names,
    parts_of,
    printable,
    replay_command,
    source_line,
    unstated,
    why_no_culprit,
)

SUFFIX = ".md"
TITLE = "Markdown"
_COLUMNS = (*pick(OUTPUTS, "output", "verdict", "relative_rms", "rho_rms", "rho_max", "rho_slice", "headroom"), LARGEST_JUMP)


def to_text(report: Report | BundleReport, *, strict: bool = False) -> str:
    """Headline, outputs that do not pass, culprits; the others are folded away. Every outcome shows, so ``strict`` changes nothing."""
    return re.sub("\n{3,}", "\n\n", "\n".join(_lines(report))) + "\n"


def _lines(report: Report | BundleReport) -> Iterator[str]:
    parts = parts_of(report)
    chain = report.cascade if isinstance(report, BundleReport) else None
    cause = "" if report.cause is None else f" ({report.cause})"
    yield f"### {_word(report.verdict)}{cause}: coreflow validate {code(report.name)}"
    yield ""
    yield escape(report.text)
    yield ""
    yield from _problems(report)
    rows = [(part.name, output) for part in parts for output in part.by_headroom]
    if chain is not None:
        rows += [("cascade", output) for output in chain.outputs.values()]
    # A package without outputs has a verdict all the same, and it is not to be missing here.
    without_outputs = [part for part in parts if not part.outputs]
    failing = [(name, output) for name, output in rows if output.outcome != "pass"]
    passing = [(name, output) for name, output in rows if output.outcome == "pass"]
    if failing or without_outputs:
        yield ""
        yield from _table([*(_cells(*row) for row in failing), *map(_empty_cells, without_outputs)])
    for part in parts:
        yield from _culprits(part)
    if chain is not None:
        yield from _tokens(chain)
    if passing:
        yield ""
        yield f"<details><summary>{len(passing)} of {len(rows)} outputs pass</summary>"
        yield ""
        yield from _table(_cells(*row) for row in passing)
        yield ""
        yield "</details>"
    yield ""
    yield f"<sub>{escape(coverage(parts, chain))}</sub>"


def _problems(report: Report | BundleReport) -> Iterator[str]:
    """Warnings, and everything that could not be judged, an item each."""
    problems = [(part.name, problem) for part in parts_of(report) for problem in unstated(part.problems, report.text)]
    if isinstance(report, BundleReport):
        problems += [(report.name, problem) for problem in report.problems]
        yield from (f"- warning: {escape(warning)}" for warning in report.warnings)
    yield from (f"- {code(name)} not judged: {escape(problem)}" for name, problem in problems)


def _culprits(report: Report) -> Iterator[str]:
    if report.verdict == "pass":
        return
    if report.culprits:
        yield ""
        yield f"Culprits in {code(report.name)}, the worst first:"
        yield ""
        for rank, culprit in enumerate(report.culprits[:SHOWN_CULPRITS], 1):
            title = f"**{culprit.kind}** {code(culprit.name)} ({code(culprit.type)}){excess(culprit)}"
            yield f"{rank}. {title}; {escape(source_line(culprit.origin))}: {escape(culprit.text)}"
    elif report.outputs:
        yield ""
        yield f"No culprit is named in {code(report.name)}; {why_no_culprit(report)}."
    if command := replay_command(report):
        yield ""
        yield f"Replay: {code(command)}"


def _tokens(chain: ChainReport) -> Iterator[str]:
    tokens = chain.tokens
    yield ""
    yield f"Tokens of {tokens.sentences} golden sentences: {tokens.equal} of {tokens.tokens} equal."
    for sentence in tokens.unexplained:
        yield f"- differs, unexplained: {escape(sentence)}"


def _cells(package: str, output: OutputReport) -> list[str]:
    verdict = f"{_word(output.outcome)} {failed_gate_names(output)}".rstrip()
    marked = {"output": code(output.name), "verdict": verdict}
    return [code(package), *(marked.get(column.key) or _plain_cell(column, output) for column in _COLUMNS)]


def _plain_cell(column: Column[OutputReport], output: OutputReport) -> str:
    # Numbers hold no markup, and escaping would take "3." for a list.
    return escape(column.format(output)) if column.left else column.format(output)


def _empty_cells(report: Report) -> list[str]:
    return [code(report.name), "nothing compared", _word(report.verdict), *("" for _ in _COLUMNS[2:])]


def _table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| package | {' | '.join(column.title for column in _COLUMNS)} |"
    yield f"| :-- | {' | '.join(':--' if column.left else '--:' for column in _COLUMNS)} |"
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
