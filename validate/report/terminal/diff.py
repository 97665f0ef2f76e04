"""Changes between two reports in a terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table

from coreflow.validate.report.diff import ReportDiff
from coreflow.validate.report.terminal.text import empty_table, line
from coreflow.validate.report.wording import number

_STYLES = {"worse": "bold red", "better": "green", "changed": ""}


def render_diff(diff: ReportDiff) -> RenderableType:
    """Headline, ratios before and after, and every change, what got worse first."""
    return Group(*_parts(diff))


def _parts(diff: ReportDiff) -> Iterator[RenderableType]:
    worse = len(diff.worse)
    count = f"{worse} {'thing' if worse == 1 else 'things'} got worse" if worse else "nothing got worse"
    headline = f"{'WORSE' if worse else 'NO WORSE'}  {diff.old_verdict} -> {diff.new_verdict}; {count}"
    yield line(headline, "bold red" if worse else "green")
    if diff.outputs:
        yield _outputs(diff)
    for change in diff.changes:
        yield line(f"  {change.direction}: {change.part}: {change.what}: {change.before} -> {change.after}", _STYLES[change.direction])
    if not diff.changes:
        yield line("  no gate, verdict or ratio changed", "dim")


def _outputs(diff: ReportDiff) -> Table:
    table = empty_table()
    for title in ("package", "output", "rho_rms", "was", "rel. RMS", "was", ""):
        table.add_column(title, justify="left" if title in ("package", "output", "") else "right", overflow="fold")
    for output in diff.outputs:
        ratios = (output.rho_after, output.rho_before, output.relative_rms_after, output.relative_rms_before)
        cells = ("not finite" if ratio is None else number(ratio) for ratio in ratios)
        table.add_row(line(output.part), line(output.output), *cells, line("WORSE" if output.worse else "", "bold red"))
    return table
