"""Pictures and the table of a program's ops, in execution order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from coreflow.models import fp16
from coreflow.validate.report.columns import OPS, pick
from coreflow.validate.report.html import svg
from coreflow.validate.report.html.markup import Child, Html, join, table, tag
from coreflow.validate.report.html.plots import absent, compute_units, figure
from coreflow.validate.report.html.tables import column_table
from coreflow.validate.report.model import OpReport, Report
from coreflow.validate.report.wording import NOT_LOOKED_AT, nan_as_infinite, number

_FP16_NORMAL = 6.1e-5  # the smallest normal fp16 number, as it is written beside its line
_MUCH = 0.01  # of the results below the smallest normal number; a few near zero are in every result
_SHOWN_OPS = 40
_MAX_BANDS = 12
_MAX_DEPTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Ops that follow each other and come from one module.

    >>> [(band.module, band.last - band.first + 1) for band in bands(report.ops)]
    [('layers.0', 12), ('layers.1', 12)]
    """

    module: str
    first: int  # places in the sequence of ops
    last: int


def program_plots(report: Report) -> Html:
    """Errors and ranges of the ops, and the compute units, side by side."""
    return tag("div", error_along(report), dynamic_range(report), compute_units(report), class_="plots")


def bands(ops: Sequence[OpReport]) -> tuple[Band, ...]:
    """Module boundaries at the finest depth of the module tree that still gives few bands.

    An op without an origin belongs to the band before it, or, at the start, to the one after it.
    """
    coarsest = _bands_at(ops, 1)
    deeper = (_bands_at(ops, depth) for depth in range(2, _MAX_DEPTH + 1))
    return max((cut for cut in (coarsest, *deeper) if len(cut) <= _MAX_BANDS), key=len, default=coarsest)


def _bands_at(ops: Sequence[OpReport], depth: int) -> tuple[Band, ...]:
    cut: list[Band] = []
    module = next((_module_at(op, depth) for op in ops if op.origin is not None), "")
    for place, op in enumerate(ops):
        module = _module_at(op, depth) if op.origin is not None else module
        if cut and cut[-1].module == module:
            cut[-1] = replace(cut[-1], last=place)
        else:
            cut.append(Band(module=module, first=place, last=place))
    return tuple(cut)


def _module_at(op: OpReport, depth: int) -> str:
    return "" if op.origin is None else ".".join(op.origin.module.split(".")[:depth])


def error_along(report: Report) -> Html:
    """Accumulated and local error against the place in the program; shaded bands are modules."""
    title, ops = "Error along the program", report.ops
    if not ops:
        return absent(title, f"Error along the program: {NOT_LOOKED_AT}; no op was compared.")
    height, middle = 400.0, 200.0
    modules = bands(ops)
    across = (0.0, float(max(len(ops) - 1, 1)))
    upper = svg.panel(across, svg.log_bounds(op.accumulated for op in ops), height=middle + 8, top=8)
    lower = svg.panel(across, svg.log_bounds((op.local_rho for op in ops), 0.3, 3.0), height=middle - 8, top=middle + 8)
    parts: list[Child] = [_shade(panel, modules) for panel in (upper, lower)]
    for panel, name, values in (
        (upper, "accumulated: relative RMS error", [op.accumulated for op in ops]),
        (lower, "local rho: error of the op alone, in roundings", [op.local_rho for op in ops]),
    ):
        points = [panel.point(place, value) for place, value in enumerate(values) if 0 < value < math.inf]
        lost = [panel.point(place, math.inf) for place, value in enumerate(values) if not math.isfinite(value)]
        parts += [svg.axes(panel, "op" if panel is lower else "", name), svg.trace(points, "thin actual"), svg.dots(points, "actual")]
        parts.append(svg.crosses(lost, "cross"))
    parts.append(svg.line(lower.x.start, lower.y.at(1), lower.x.end, lower.y.at(1), "limit"))
    rows = [
        (
            f"{place} {band.module or 'the module itself'}",
            f"{ops[band.first].index} to {ops[band.last].index}",
            number(max(nan_as_infinite(op.accumulated) for op in ops[band.first : band.last + 1])),
            number(max(nan_as_infinite(op.local_rho) for op in ops[band.first : band.last + 1])),
        )
        for place, band in enumerate(modules, 1)
    ]
    worst = sorted(ops, key=lambda op: nan_as_infinite(op.local_rho), reverse=True)
    return figure(
        title,
        svg.picture(f"{report.name}: accumulated and local error of {len(ops)} ops in execution order", height, *parts),
        "Bands are modules, numbered as in the table. Dashed: one rounding, which is healthy. Crosses: not finite. An op without any "
        "error, as a reshape, has no dot.",
        table("Errors by module", ("module", "ops", "largest accumulated", "largest local rho"), rows),
        column_table(
            f"Ops by local rho{_shown_of(len(ops))}",
            pick(OPS, "op", "index", "accumulated", "local_rho", "amplification"),
            worst[:_SHOWN_OPS],
        ),
    )


def dynamic_range(report: Report) -> Html:
    """The smallest and the largest result of every op, against what fp16 holds."""
    title, ops = "Dynamic range", report.ops
    if not ops:
        return absent(title, f"Dynamic range: {NOT_LOOKED_AT}; no op was compared.")
    height = 400.0
    bounds = svg.log_bounds((value for op in ops for value in (op.largest, op.smallest)), 10 * fp16.MAX, _FP16_NORMAL)
    panel = svg.panel((0.0, float(max(len(ops) - 1, 1))), bounds, height=height)
    within = [(place, op) for place, op in enumerate(ops) if op.largest > 0 and 0 < op.smallest < math.inf]
    parts: list[Child] = [
        _shade(panel, bands(ops)),
        svg.axes(panel, "op", "|result|, smallest that is not 0 to largest"),
        svg.stems(((panel.x.at(place), panel.y.at(op.smallest), panel.y.at(op.largest)) for place, op in within), "stem"),
        svg.dots((panel.point(place, op.largest) for place, op in within), "actual"),
    ]
    for value, text in ((fp16.MAX, "65504"), (_FP16_NORMAL, "6.1e-5")):
        parts += [svg.line(panel.x.start, panel.y.at(value), panel.x.end, panel.y.at(value), "limit")]
        parts += [svg.label(panel.x.end, panel.y.at(value) - 3, text, "end", "strong halo")]
    parts += [
        svg.crosses((panel.point(place, bounds[1]) for place, op in enumerate(ops) if op.overflowed), "cross"),
        svg.crosses((panel.point(place, bounds[0]) for place, op in enumerate(ops) if op.underflowed > _MUCH), "cross faint"),
    ]
    edge = sorted(ops, key=lambda op: (op.overflowed == 0, -op.underflowed, -op.largest))
    return figure(
        title,
        svg.picture(f"{report.name}: range of the results of {len(ops)} ops against what fp16 holds", height, *parts),
        "Dashed: the largest fp16 number and the smallest normal one. Crosses above: overflow; crosses below: more than "
        f"{_MUCH:.0%} of the result is smaller than fp16 holds with full precision.",
        column_table(
            f"Ops at the edge of fp16{_shown_of(len(ops))}",
            pick(OPS, "op", "index", "smallest", "largest", "overflowed", "underflowed"),
            edge[:_SHOWN_OPS],
        ),
    )


def op_table(report: Report, key: str) -> Html:
    """Every op; a few lines of script make it searchable, and without them all of it is there. ``key`` is unique in the page."""
    if not report.ops:
        return tag("p", f"Ops: {NOT_LOOKED_AT}.", class_="absent")
    # Hidden until the script shows it: without scripts a field that does nothing would only mislead.
    search = tag(
        "p",
        tag("label", "Search the ops ", tag("input", type="search", data_table=key, autocomplete="off")),
        " ",
        tag("output", "", aria_live="polite"),
        class_="search",
        hidden=True,
    )
    return tag("div", search, column_table(f"The {len(report.ops)} ops of {report.name}", OPS, report.ops, id=key), class_="ops")


def _shade(panel: svg.Panel, modules: Sequence[Band]) -> Html:
    """Every second band shaded, and its number where there is room."""
    parts: list[Html] = []
    for place, band in enumerate(modules, 1):
        # Half a step to either side, so that bands touch.
        left, right = panel.x.at(band.first - 0.5), panel.x.at(band.last + 0.5)
        if place % 2 == 0:
            parts.append(svg.box(left, panel.y.end, right - left, panel.y.start - panel.y.end, "band"))
        if right - left > 14:
            parts.append(svg.label((left + right) / 2, panel.y.end + 11, str(place), "middle", "muted"))
    return join(parts)


def _shown_of(count: int) -> str:
    return f", the {_SHOWN_OPS} worst of {count}; all are in the table of ops" if count > _SHOWN_OPS else ""
