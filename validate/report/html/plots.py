"""Pictures of one output. Each is a figure with a heading, the picture, a sentence on how to read it, and the table behind it.

Where nothing was recorded, the sentence says so and no axes are drawn.
"""

import math
from collections.abc import Iterator, Sequence

from coreflow.models import fp16
from coreflow.validate.report.html import svg
from coreflow.validate.report.html.markup import Child, Html, details, join, table, tag
from coreflow.validate.report.model import OutputReport, Report
from coreflow.validate.report.wording import NOT_LOOKED_AT, RUNGS, jump, nan_as_infinite, number, why_no_units

_ROW = 36.0  # of the ladder
_SHOWN_ROWS = 40
_SHOWN_OUTPUTS = 12


def figure(title: str, drawn: Html, reading: Child, *behind: Child) -> Html:
    """A picture with its heading, how to read it, and its numbers."""
    return tag("figure", tag("h4", title), drawn, tag("figcaption", reading), details("The numbers", *behind))


def absent(title: str, reason: str) -> Html:
    """A figure without a picture that says why there is none."""
    return tag("figure", tag("h4", title), tag("p", reason, class_="absent"))


def output_plots(output: OutputReport) -> Html:
    """All pictures of one output."""
    return tag("div", ladder(output), error_over_reference(output), histogram(output), margins(output), class_="plots")


def ladder(output: OutputReport) -> Html:
    """Relative RMS error of every rung on a logarithmic axis, and where it grows most."""
    title = "Ladder"
    if not output.rungs:
        return absent(title, f"Ladder: {NOT_LOOKED_AT}; no rung was compared at this output.")
    budget = output.budget / output.reference_rms if output.reference_rms > 0 else math.nan
    values = [rung.relative_rms for rung in output.rungs.values()]
    low, high = svg.log_bounds([*values, budget])
    names, largest = list(RUNGS), output.largest_jump
    height = _ROW * len(names) + 62
    panel = svg.panel((low, high), (0, 1), height=height, log_x=True, log_y=False)
    top, bottom = panel.y.end, panel.y.start
    parts = [svg.x_grid(panel)]
    for place, name in enumerate(names):
        rung, above = output.rungs.get(name), top + _ROW * place
        parts.append(svg.label(4, above + 22, name, kind="strong"))
        if rung is None:
            parts.append(svg.label(panel.x.start + 4, above + 22, "not run", kind="muted"))
            continue
        marked = name == largest
        text = number(rung.relative_rms) + (" ◀ largest jump" if marked else "")
        parts.append(svg.box(panel.x.start, above + 15, panel.x.at(rung.relative_rms) - panel.x.start, 9, "bar bad" if marked else "bar"))
        parts.append(svg.label(panel.x.start + 2, above + 11, text, kind="strong" if marked else ""))
    if math.isfinite(budget) and budget > 0:
        parts.append(svg.line(panel.x.at(budget), top, panel.x.at(budget), bottom, "limit"))
    parts.append(svg.label((panel.x.start + panel.x.end) / 2, bottom + 32, "RMS(error) / RMS(reference)", "middle"))
    label = f"{output.name}: ladder of relative RMS errors; largest jump: {jump(output)}"
    rows = [
        (name, RUNGS.get(name, ""), *(("not run", "not run") if rung is None else (number(rung.relative_rms), number(rung.rho))))
        for name in names
        for rung in (output.rungs.get(name),)
    ]
    return figure(
        title,
        svg.picture(label, height, *parts),
        ("Largest jump: ", tag("strong", jump(output)), ". Dashed: the budget."),
        table(
            f"Ladder of {output.name}",
            ("rung", "what runs", "relative RMS", "rho"),
            [*rows, ("budget", "the simulation, whose error is the unit of rho", number(budget), number(1.0))],
            texts=("what runs",),
        ),
    )


def error_over_reference(output: OutputReport) -> Html:
    """|error| over |reference|, with the line of one rounding."""
    title, plots = "Error over size", output.plots
    pairs = [(size, error) for size, error in zip(plots.reference, plots.error, strict=True) if size > 0 and error > 0]
    if not pairs:
        return absent(title, _nothing("Error over size", len(plots.reference), "every error, or every reference, is exactly 0"))
    height = 300.0
    x = svg.log_bounds(size for size, _ in pairs)
    y = svg.log_bounds((error for _, error in pairs), fp16.UNIT_ROUNDOFF * x[1])
    panel = svg.panel(x, y, height=height, log_x=True)
    parts = (
        svg.axes(panel, "|reference|", "|error|"),
        svg.dots((panel.point(*pair) for pair in pairs if math.isfinite(pair[1])), "actual"),
        svg.crosses((panel.point(*pair) for pair in pairs if not math.isfinite(pair[1])), "cross"),
        svg.curve(panel, lambda size: fp16.UNIT_ROUNDOFF * size, "limit"),
    )
    zeros = len(plots.reference) - len(pairs)
    left_out = f" {zeros:,} with an error or a reference of exactly 0 are not drawn." if zeros else ""
    return figure(
        title,
        svg.picture(f"{output.name}: error over the size of the reference, both logarithmic", height, *parts),
        f"{len(pairs):,} of {output.elements:,} elements. Dashed: u·|reference|, half a unit in the last place, u = 2^-11.{left_out}",
        table(
            f"Errors of {output.name} by size of the reference",
            ("|reference|", "elements", "median |error|", "largest |error|", "largest / (u·|reference|)"),
            _by_decade(pairs),
        ),
    )


def _by_decade(pairs: Sequence[tuple[float, float]]) -> Iterator[Sequence[Child]]:
    decades: dict[int, list[tuple[float, float]]] = {}
    for size, error in pairs:
        decades.setdefault(math.floor(math.log10(size)) if math.isfinite(size) else 309, []).append((size, error))
    for decade in sorted(decades, reverse=True):
        members = decades[decade]
        errors = sorted(error for _, error in members)
        yield (
            f"1e{decade} to 1e{decade + 1}" if decade < 309 else "infinite",
            f"{len(members):,}",
            number(errors[len(errors) // 2]),
            number(errors[-1]),
            number(max(error / (fp16.UNIT_ROUNDOFF * size) for size, error in members)),
        )


def histogram(output: OutputReport) -> Html:
    """How many errors are how large, over those of the simulation."""
    title, plots = "Histogram of errors", output.plots
    if not plots.edges or not (any(plots.actual_counts) or any(plots.simulated_counts)):
        return absent(title, _nothing("Histogram", len(plots.edges), "every error is exactly 0"))
    height = 300.0
    edges = [10.0**edge for edge in plots.edges]
    counts = (*plots.actual_counts, *plots.simulated_counts)
    panel = svg.panel((edges[0], edges[-1]), (0.5, svg.log_bounds(counts)[1]), height=height, log_x=True)
    parts = (
        svg.axes(panel, "|error|", "elements"),
        svg.steps(panel, edges, plots.actual_counts, "actual"),
        svg.steps(panel, edges, plots.simulated_counts, "simulated"),
    )
    rows = [
        (f"{number(low)} to {number(high)}", f"{actual:,}", f"{simulated:,}")
        for low, high, actual, simulated in zip(edges, edges[1:], plots.actual_counts, plots.simulated_counts, strict=False)
    ]
    return figure(
        title,
        svg.picture(f"{output.name}: histogram of errors over that of the simulation", height, *parts),
        (_key("actual", "the package"), _key("simulated", "the simulation (dashed)"), "Further right is worse; both axes logarithmic."),
        table(f"Errors of {output.name}", ("|error|", "package", "simulation"), rows),
    )


def margins(output: OutputReport) -> Html:
    """By how much the largest value of a row wins, against how much the package moved it."""
    title, plots = "Argmax margin", output.plots
    rows = list(zip(plots.margin, plots.perturbation, strict=True))
    drawn = [(margin, moved) for margin, moved in rows if margin > 0 and moved > 0]
    if not drawn:
        return absent(title, _nothing("Argmax margin", len(rows), "no row was moved"))
    height = 300.0
    bounds = svg.log_bounds(value for pair in drawn for value in pair if math.isfinite(value))
    panel = svg.panel(bounds, bounds, height=height, log_x=True)
    flips = [pair for pair in drawn if not pair[1] < pair[0]]
    parts = (
        svg.axes(panel, "margin of the reference", "moved by the package"),
        svg.dots((panel.point(*pair) for pair in drawn if pair[1] < pair[0]), "actual"),
        svg.crosses((panel.point(*pair) for pair in flips), "cross"),
        svg.curve(panel, lambda margin: margin, "limit"),
    )
    nearest = sorted(rows, key=lambda pair: pair[0] / pair[1] if pair[1] > 0 else math.inf)
    more = f", the {_SHOWN_ROWS} nearest of {len(rows):,}" if len(rows) > _SHOWN_ROWS else ""
    unmoved = f" {len(rows) - len(drawn):,} rows that are tied or were not moved are not drawn." if len(drawn) < len(rows) else ""
    return figure(
        title,
        svg.picture(f"{output.name}: argmax margin of the reference against perturbation by the package", height, *parts),
        f"{len(drawn):,} rows. On or above the dashed line ({len(flips):,} crosses) the largest value may be another one.{unmoved}",
        table(
            f"Rows of {output.name} nearest to a flip{more}",
            ("row", "margin", "moved by", "moved / margin"),
            [
                (str(place), number(margin), number(moved), number(moved / margin) if margin > 0 else "tied")
                for place, (margin, moved) in enumerate(nearest[:_SHOWN_ROWS], 1)
            ],
        ),
    )


def compute_units(report: Report) -> Html:
    """rho_rms of the worst outputs on every compute unit that ran."""
    title = "Compute units"
    if reason := why_no_units(report):
        return absent(title, f"{reason[0].upper()}{reason[1:]}.")
    units = list(report.compute_unit_rho)
    names = sorted(
        {name for rho in report.compute_unit_rho.values() for name in rho}, key=lambda name: _worst_rho(report, name), reverse=True
    )
    shown = names[:_SHOWN_OUTPUTS]
    values = [rho[name] for rho in report.compute_unit_rho.values() for name in shown if name in rho]
    height = 24.0 * len(shown) * len(units) + 62
    panel = svg.panel(svg.log_bounds(values, 1.0), (0, 1), height=height, log_x=True, log_y=False)
    parts = [svg.x_grid(panel)]
    for place, (name, unit) in enumerate((name, unit) for name in shown for unit in units):
        rho, above = report.compute_unit_rho[unit].get(name), panel.y.end + 24 * place
        text = f"{name}, {unit}: {NOT_LOOKED_AT if rho is None else number(rho)}"
        parts.append(svg.label(panel.x.start + 2, above + 10, text))
        if rho is not None:
            parts.append(svg.box(panel.x.start, above + 13, panel.x.at(rho) - panel.x.start, 6, "bar"))
    parts.append(svg.line(panel.x.at(1), panel.y.end, panel.x.at(1), panel.y.start, "limit"))
    parts.append(svg.label((panel.x.start + panel.x.end) / 2, panel.y.start + 32, "rho_rms", "middle"))
    more = f" The {len(shown)} worst of {len(names)} outputs." if len(shown) < len(names) else ""
    cells = [
        (name, *(number(report.compute_unit_rho[unit][name]) if name in report.compute_unit_rho[unit] else NOT_LOOKED_AT for unit in units))
        for name in names
    ]
    return figure(
        title,
        svg.picture(f"{report.name}: rho_rms per compute unit", height, *parts),
        f"Dashed: 1, the error of {report.budget}.{more}",
        table("rho_rms per output and compute unit", ("output", *units), cells),
    )


def _worst_rho(report: Report, name: str) -> float:
    return max((nan_as_infinite(rho[name]) for rho in report.compute_unit_rho.values() if name in rho), default=0.0)


def _nothing(title: str, recorded: int, reason: str) -> str:
    return f"{title}: nothing to draw, since {reason}." if recorded else f"{title}: {NOT_LOOKED_AT}."


def _key(kind: str, text: str) -> Html:
    """An entry of the legend, drawn as the line it stands for."""
    stroke = tag("svg", svg.line(0, 6, 22, 6, f"trace {kind}"), viewBox="0 0 22 12", class_="key", aria_hidden="true")
    return join((tag("span", stroke, f" {text}.", class_="entry"), " "))
