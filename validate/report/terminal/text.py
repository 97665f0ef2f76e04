"""Lines and tables of a terminal: no text is markup, none steers the terminal, and words carry every verdict."""

from collections.abc import Iterable, Mapping, Sequence

from rich.console import OverflowMethod, RenderableType
from rich.table import Table
from rich.text import Text

from coreflow.validate.report.columns import Column, Row
from coreflow.validate.report.model import Outcome
from coreflow.validate.report.wording import printable

STYLES: Mapping[Outcome, str] = {
    "pass": "green",
    "warn": "yellow",
    "fail": "bold red",
    "fp16-unsafe": "bold red",
    "incomplete": "bold magenta",
}


def line(text: str, style: str = "") -> Text:
    """Text in which nothing is markup and nothing steers the terminal."""
    return Text(printable(text), style=style)


def empty_table(title: str | None = None) -> Table:
    """A table without borders, columns or rows."""
    heading = None if title is None else line(title, "dim")
    return Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim", title=heading, title_justify="left")


def column_table(
    columns: Sequence[Column[Row]],
    rows: Iterable[Row],
    title: str | None = None,
    *,
    wrap: Sequence[str] = (),
    overflow: OverflowMethod = "fold",
) -> Table:
    """A table with a row per item; columns whose keys are in ``wrap`` break between words, ``overflow`` is for what is too long then."""
    table = empty_table(title)
    for column in columns:
        title, no_wrap = column.short or column.title, column.key not in wrap
        table.add_column(title, justify="left" if column.left else "right", no_wrap=no_wrap, overflow=overflow)
    for row in rows:
        table.add_row(*(_cell(column, row) for column in columns))
    return table


def _cell(column: Column[Row], row: Row) -> RenderableType:
    return line(column.format(row), "" if column.outcome is None else STYLES[column.outcome(row)])
