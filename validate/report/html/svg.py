"""Axes and marks: numbers to inline SVG. Colours are classes of ``page.css``; shapes and dashes differ too, so colour is never needed.

Every picture is ``WIDTH`` units wide, about the width of a phone, so that its text is as large there as on a desk.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from coreflow.validate.report.html.markup import Child, Html, join, tag

WIDTH = 390.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 16.0, 26.0, 40.0  # room for the labels of the axes
_TICKS = 6  # at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Values between ``low`` and ``high`` to places between ``start`` and ``end``; values outside go to the border.

    >>> Scale(low=1.0, high=100.0, start=0.0, end=200.0, log=True).at(10.0)
    100.0
    """

    low: float
    high: float
    start: float
    end: float
    log: bool

    def at(self, value: float) -> float:
        """The place of ``value``; NaN and values above ``high`` go to the far end, values below ``low`` to the near one."""
        if math.isnan(value) or value >= self.high:
            return self.end
        if value <= self.low:
            return self.start
        low, high, at = (math.log10(bound) if self.log else bound for bound in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    @property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Values and labels: powers of ten, or whole steps."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first) / _TICKS))
            return tuple((10.0**power, f"1e{power}" if power else "1") for power in range(first, last + 1, every))
        step = _round_step((self.high - self.low) / (_TICKS - 1))
        places = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        return tuple((place * step, f"{place * step:g}") for place in places)


def log_bounds(values: Iterable[float], *always: float) -> tuple[float, float]:
    """Whole powers of ten around the positive finite values and ``always``; never an empty range."""
    positive = [value for value in (*values, *always) if math.isfinite(value) and value > 0]
    if not positive:
        return 1e-1, 1e1
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return 10.0 ** max(low, -300), 10.0 ** min(max(high, low + 1), 300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes inside a picture.

    >>> panel((1, 100), (1e-6, 1), height=300.0, log_x=True).point(10, 1e-3)
    (213.0, 143.0)
    """

    x: Scale
    y: Scale

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Values to places."""
        return self.x.at(x), self.y.at(y)


def panel(
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    height: float,
    top: float = 0.0,
    log_x: bool = False,
    log_y: bool = True,
) -> Panel:
    """Axes in a strip of the picture that begins at ``top``."""
    return Panel(
        x=Scale(low=x[0], high=x[1], start=_LEFT, end=WIDTH - _RIGHT, log=log_x),
        y=Scale(low=y[0], high=y[1], start=top + height - _BOTTOM, end=top + _TOP, log=log_y),
    )


def picture(label: str, height: float, *parts: Child) -> Html:
    """The SVG; ``label`` says in words what it shows."""
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label=label, class_="plot")


def axes(panel: Panel, x_label: str, y_label: str) -> Html:
    """Grid, tick labels and names of both axes."""
    left, right, bottom, top = panel.x.start, panel.x.end, panel.y.start, panel.y.end
    parts = [x_grid(panel)]
    for value, text in panel.y.ticks:
        parts += [line(left, panel.y.at(value), right, panel.y.at(value), "grid"), label(left - 5, panel.y.at(value) + 4, text, "end")]
    parts += [line(left, bottom, right, bottom, "axis"), line(left, bottom, left, top, "axis")]
    # The name of the upright axis stands above it: turned text is hard to read.
    parts += [label((left + right) / 2, bottom + 30, x_label, "middle"), label(2, top - 12, y_label, "start")]
    return join(parts)


def x_grid(panel: Panel) -> Html:
    """Upright lines at the ticks of the x axis, and their labels below it."""
    bottom, top = panel.y.start, panel.y.end
    places = [(panel.x.at(value), text) for value, text in panel.x.ticks]
    return join((line(x, bottom, x, top, "grid"), label(x, bottom + 14, text, "middle")) for x, text in places)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    """A straight line."""
    return tag("line", x1=_coordinate(x1), y1=_coordinate(y1), x2=_coordinate(x2), y2=_coordinate(y2), class_=kind)


def label(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> Html:
    """A line of text; ``anchor`` is start, middle or end."""
    return tag("text", text, x=_coordinate(x), y=_coordinate(y), text_anchor=anchor, class_=kind or None)


def box(x: float, y: float, width: float, height: float, kind: str) -> Html:
    """A filled rectangle."""
    return tag(
        "rect", x=_coordinate(x), y=_coordinate(y), width=_coordinate(max(width, 0)), height=_coordinate(max(height, 0)), class_=kind
    )


def dots(points: Iterable[tuple[float, float]], kind: str) -> Html:
    """Many points as one path: thousands of circles would make a page of megabytes."""
    return tag("path", d="".join(f"M{_coordinate(x)} {_coordinate(y)}h0" for x, y in points), class_=f"dots {kind}")


def crosses(points: Iterable[tuple[float, float]], kind: str, size: float = 3.0) -> Html:
    """A mark that differs from a dot by its shape."""
    arms = (f"M{_coordinate(x - size)} {_coordinate(y - size)}l{2 * size:g} {2 * size:g}m0 {-2 * size:g}l{-2 * size:g} {2 * size:g}"
            for x, y in points)  # fmt: skip
    return tag("path", d="".join(arms), class_=kind)


def trace(points: Sequence[tuple[float, float]], kind: str) -> Html:
    """Points joined by straight lines."""
    return tag("path", d="M" + "L".join(f"{_coordinate(x)} {_coordinate(y)}" for x, y in points) if points else "", class_=f"trace {kind}")


def stems(ends: Iterable[tuple[float, float, float]], kind: str) -> Html:
    """Upright lines (x, from, to) as one path."""
    return tag("path", d="".join(f"M{_coordinate(x)} {_coordinate(low)}V{_coordinate(high)}" for x, low, high in ends), class_=kind)


def steps(panel: Panel, edges: Sequence[float], heights: Sequence[float], kind: str) -> Html:
    """A histogram's outline, down to the axis at both ends; ``edges`` are one more than ``heights``."""
    floor = panel.y.start
    points = [(panel.x.at(edges[0]), floor)]
    for place, height in enumerate(heights):
        points += [(panel.x.at(edges[place]), panel.y.at(height)), (panel.x.at(edges[place + 1]), panel.y.at(height))]
    return trace([*points, (panel.x.at(edges[-1]), floor)], kind)


def curve(panel: Panel, of: Callable[[float], float], kind: str) -> Html:
    """A power law, which is a straight line on two logarithmic axes; cut where it leaves the panel."""
    count = 64
    low, high = math.log10(panel.x.low), math.log10(panel.x.high)
    values = [10 ** (low + (high - low) * place / count) for place in range(count + 1)]
    return trace([panel.point(value, of(value)) for value in values if panel.y.low <= of(value) <= panel.y.high], kind)


def _coordinate(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, 20 ... that is not smaller; ops are counted, so never below 1."""
    if step <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step)
