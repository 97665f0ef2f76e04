"""Tables of the page from the columns that all renderings share."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from coreflow.validate.report.columns import Column, Row
from coreflow.validate.report.html.markup import Child, Html, table, tag
from coreflow.validate.report.model import Outcome
from coreflow.validate.report.wording import SIGNS


def column_table(
    caption: str,
    columns: Sequence[Column[Row]],
    rows: Iterable[Row],
    *,
    cells: Mapping[str, Callable[[Row], Child]] | None = None,
    id: str | None = None,
) -> Html:
    """A table with a row per item; ``cells`` makes other markup than text in the columns of its keys."""

    def cell(column: Column[Row], row: Row) -> Child:
        if cells is not None and column.key in cells:
            return cells[column.key](row)
        return column.format(row) if column.outcome is None else outcome_badge(column.outcome(row))

    texts = [column.title for column in columns if column.left]
    written = ([cell(column, row) for column in columns] for row in rows)
    return table(caption, [column.title for column in columns], written, texts=texts, id=id)


def outcome_badge(outcome: Outcome) -> Html:
    """Sign and word of an outcome, in its colour."""
    return tag("span", f"{SIGNS[outcome]} {outcome.upper()}", class_=f"verdict {outcome}")
