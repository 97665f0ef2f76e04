"""The ladder of rungs in a terminal: a line of characters per output, all on one logarithmic axis."""

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from coreflow.validate.report.model import OutputReport, RungName
from coreflow.validate.report.terminal.text import STYLES, empty_table, line
from coreflow.validate.report.wording import NOT_LOOKED_AT, jump

_BAR, _SHORT_BAR = 44, 20  # characters
_FULL_WIDTH = 110  # of a console that has room for the longer bar


class Ladder:
    """A bar per output on a logarithmic axis that all of them share: 1 to 5 are the rungs, s is R2s, B is the budget.

    >>> console.print(Ladder(report.by_headroom))
    """

    def __init__(self, outputs: Sequence[OutputReport]) -> None:
        self.outputs = [output for output in outputs if output.rungs]
        self.without = [output.name for output in outputs if not output.rungs]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The bars, and a line for the outputs that have none."""
        if self.outputs:
            width = _BAR if options.max_width >= _FULL_WIDTH else _SHORT_BAR
            low, high = _powers(self.outputs)
            left, right = f"1e{low}", f"1e{high}" if high else "1"
            heavy = "=" if options.ascii_only else "━"
            table = empty_table(f"ladder: relative RMS error, {left} to {right}; 1-5 rungs R1-R5, s R2s, B budget, {heavy} largest jump")
            table.add_column("output", overflow="fold")
            table.add_column(left + right.rjust(width + 2 - len(left)), no_wrap=True)
            table.add_column("largest jump", overflow="fold")
            for output in self.outputs:
                style = STYLES[output.outcome] if output.outcome != "pass" else ""
                drawn = bar(output, low, high, width, ascii_only=options.ascii_only)
                table.add_row(line(output.name), drawn, line(jump(output), style))
            yield table
        if self.without:
            yield line(f"  ladder of {', '.join(self.without)}: {NOT_LOOKED_AT}", "dim")


def bar(output: OutputReport, low: int, high: int, width: int, *, ascii_only: bool = False) -> Text:
    """One ladder between 10**low and 10**high; errors that are not finite stand at the far end, 0 at the near one.

    A rung that falls on the place of another stands beside it, so that none is hidden.
    """
    light, heavy, ends = ("-", "=", "||") if ascii_only else ("─", "━", "├┤")
    cells = [light] * width
    places = {name: _place(rung.relative_rms, low, high, width) for name, rung in output.rungs.items()}
    if (largest := output.largest_jump) is not None:
        rung = list(places).index(largest)
        start, end = sorted((list(places.values())[rung - 1] if rung else 0, places[largest]))
        cells[start : end + 1] = [heavy] * (end - start + 1)
    signs = _signs(output, places, low, high, width)
    text = Text(ends[0])
    for place, cell in enumerate(cells):
        text.append(signs.get(place, cell), style="bold red" if cell == heavy else "bold" if place in signs else "dim")
    return text.append(ends[1])


def _signs(output: OutputReport, places: Mapping[RungName, int], low: int, high: int, width: int) -> dict[int, str]:
    """Place to sign: the number of each rung, s for R2s and B for the budget, each at the free place nearest to its own."""
    nearest = {name[-1]: place for name, place in places.items()}
    if output.reference_rms > 0 and 0 < output.budget < math.inf:
        nearest["B"] = _place(output.budget / output.reference_rms, low, high, width)
    signs: dict[int, str] = {}
    for sign, place in nearest.items():
        free = (other for other in range(width) if other not in signs)
        signs[min(free, key=lambda other: (abs(other - place), -other))] = sign
    return signs


def _powers(outputs: Sequence[OutputReport]) -> tuple[int, int]:
    """Powers of ten around all errors and budgets."""
    values = [rung.relative_rms for output in outputs for rung in output.rungs.values()]
    values += [output.budget / output.reference_rms for output in outputs if output.reference_rms > 0]
    positive = [value for value in values if 0 < value < math.inf]
    if not positive:
        return -6, 0
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return low, max(high, low + 1)


def _place(value: float, low: int, high: int, width: int) -> int:
    if not value < math.inf:
        return width - 1
    share = (math.log10(value) - low) / (high - low) if value > 0 else 0.0
    return min(width - 1, max(0, round(share * (width - 1))))
