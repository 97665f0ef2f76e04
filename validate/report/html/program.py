"""The pictures and the table of a program's ops, in execution order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from coreflow.validate.report.html import svg
from coreflow.validate.report.html.markup import Child, Html, join, table, tag
from coreflow.validate.report.html.plots import absent, compute_units, figure
from coreflow.validate.report.model import OpReport, Report
from coreflow.validate.report.wording import NOT_LOOKED_AT, number, place, ranked

_FP16_MAX, _FP16_NORMAL = 65504.0, 6.1e-5  # the largest fp16 number, the smallest normal one
_MUCH = 0.01  # of the results below the smallest normal number; a few near zero are in every result
_SHOWN_OPS = 40
_MAX_BANDS = 12
_MAX_DEPTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Ops that follow each other and come from one module."""

    module: str
    first: int  # places in the sequence of ops
    last: int


def program_plots(report: Report) -> Html:
    """What the ops show, beside the compute units."""
    return tag("div", error_along(report), dynamic_range(report), compute_units(report), class_="plots")


def bands(ops: Sequence[OpReport]) -> tuple[Band, ...]:
    """Module boundaries at the finest depth of the module tree that still gives few bands.

    An op without an origin belongs to the band before it, or, at the start, to the one after it.
    """
    coarsest = _bands_at(ops, 1)
    deeper = (_bands_at(ops, depth) for depth in range(2, _MAX_DEPTH + 1))
    return max((found for found in (coarsest, *deeper) if len(found) <= _MAX_BANDS), key=len, default=coarsest)


def _bands_at(ops: Sequence[OpReport], depth: int) -> tuple[Band, ...]:
    found: list[Band] = []
    module = next((_module_at(op, depth) for op in ops if op.origin is not None), "")
    for where, op in enumerate(ops):
        module = _module_at(op, depth) if op.origin is not None else module
        if found and found[-1].module == module:
            found[-1] = replace(found[-1], last=where)
        else:
            found.append(Band(module=module, first=where, last=where))
    return tuple(found)


def _module_at(op: OpReport, depth: int) -> str:
    return "" if op.origin is None else ".".join(op.origin.module.split(".")[:depth])


def error_along(report: Report) -> Html:
    """Accumulated and local error against the place in the program; shaded bands are modules."""
    title, ops = "Error along the program", report.ops
    if not ops:
        return absent(title, f"Error along the program: {NOT_LOOKED_AT}; no op was compared.")
    height, half = 400.0, 200.0
    parts_of = bands(ops)
    across = (0.0, float(max(len(ops) - 1, 1)))
    upper = svg.panel(across, svg.log_bounds(op.accumulated for op in ops), height=half + 8, top=8)
    lower = svg.panel(across, svg.log_bounds((op.local_rho for op in ops), 0.3, 3.0), height=half - 8, top=half + 8)
    parts: list[Child] = [_shade(on, parts_of) for on in (upper, lower)]
    for on, name, values in (
        (upper, "accumulated: relative RMS error", [op.accumulated for op in ops]),
        (lower, "local rho: error of the op alone, in roundings", [op.local_rho for op in ops]),
    ):
        points = [on.point(where, value) for where, value in enumerate(values) if 0 < value < math.inf]
        lost = [on.point(where, math.inf) for where, value in enumerate(values) if not math.isfinite(value)]
        parts += [svg.axes(on, "op" if on is lower else "", name), svg.trace(points, "thin actual"), svg.dots(points, "actual")]
        parts.append(svg.crosses(lost, "cross"))
    parts.append(svg.line(lower.x.start, lower.y.at(1), lower.x.end, lower.y.at(1), "limit"))
    rows = [
        (
            f"{which} {band.module or 'the module itself'}",
            f"{ops[band.first].index} to {ops[band.last].index}",
            number(max(ranked(op.accumulated) for op in ops[band.first : band.last + 1])),
            number(max(ranked(op.local_rho) for op in ops[band.first : band.last + 1])),
        )
        for which, band in enumerate(parts_of, 1)
    ]
    worst = sorted(ops, key=lambda op: ranked(op.local_rho), reverse=True)
    return figure(
        title,
        svg.picture(f"{report.name}: accumulated and local error of {len(ops)} ops in execution order", height, *parts),
        "Bands are modules, numbered as in the table. Dashed: one rounding, which is healthy. Crosses: not finite. An op without any "
        "error, as a reshape, has no dot.",
        table("Errors by module", ("module", "ops", "largest accumulated", "largest local rho"), rows),
        table(
            f"Ops by local rho{_of(len(ops))}",
            ("op", "index", "accumulated", "local rho", "amplification"),
            [(op.name, str(op.index), number(op.accumulated), number(op.local_rho), number(op.amplification)) for op in worst[:_SHOWN_OPS]],
        ),
    )


def dynamic_range(report: Report) -> Html:
    """The smallest and the largest result of every op, against what fp16 holds."""
    title, ops = "Dynamic range", report.ops
    if not ops:
        return absent(title, f"Dynamic range: {NOT_LOOKED_AT}; no op was compared.")
    height = 400.0
    bounds = svg.log_bounds((value for op in ops for value in (op.largest, op.smallest)), 10 * _FP16_MAX, _FP16_NORMAL)
    on = svg.panel((0.0, float(max(len(ops) - 1, 1))), bounds, height=height)
    within = [(where, op) for where, op in enumerate(ops) if op.largest > 0 and 0 < op.smallest < math.inf]
    parts: list[Child] = [
        _shade(on, bands(ops)),
        svg.axes(on, "op", "|result|, smallest that is not 0 to largest"),
        svg.stems(((on.x.at(where), on.y.at(op.smallest), on.y.at(op.largest)) for where, op in within), "stem"),
        svg.dots((on.point(where, op.largest) for where, op in within), "actual"),
    ]
    for value, text in ((_FP16_MAX, "65504"), (_FP16_NORMAL, "6.1e-5")):
        parts += [svg.line(on.x.start, on.y.at(value), on.x.end, on.y.at(value), "limit")]
        parts += [svg.label(on.x.end, on.y.at(value) - 3, text, "end", "strong halo")]
    parts += [
        svg.crosses((on.point(where, bounds[1]) for where, op in enumerate(ops) if op.overflowed), "cross"),
        svg.crosses((on.point(where, bounds[0]) for where, op in enumerate(ops) if op.underflowed > _MUCH), "cross faint"),
    ]
    edge = sorted(ops, key=lambda op: (op.overflowed == 0, -op.underflowed, -op.largest))
    rows = [
        (op.name, str(op.index), number(op.smallest), number(op.largest), str(op.overflowed), f"{op.underflowed:.1%}")
        for op in edge[:_SHOWN_OPS]
    ]
    return figure(
        title,
        svg.picture(f"{report.name}: range of the results of {len(ops)} ops against what fp16 holds", height, *parts),
        "Dashed: the largest fp16 number and the smallest normal one. Crosses above: overflow; crosses below: more than "
        f"{_MUCH:.0%} of the result is smaller than fp16 holds with full precision.",
        table(f"Ops at the edge of fp16{_of(len(ops))}", ("op", "index", "smallest", "largest", "overflowed", "underflowed"), rows),
    )


def op_table(report: Report, key: str) -> Html:
    """Every op; a few lines of script make it searchable, and without them all of it is there. ``key`` is unique in the page."""
    if not report.ops:
        return tag("p", f"Ops: {NOT_LOOKED_AT}.", class_="absent")
    rows = [
        (
            op.name,
            str(op.index),
            op.type,
            " × ".join(map(str, op.shape)) or "scalar",
            number(op.local_rho),
            f"{number(op.ulps)} of {number(op.ulps_limit)}" + (" ✗" if not op.ulps <= op.ulps_limit else ""),
            number(op.accumulated),
            number(op.amplification),
            number(op.largest),
            number(op.smallest),
            str(op.overflowed),
            f"{op.underflowed:.1%}",
            place(op.origin),
            "; ".join(op.never_exercised),
        )
        for op in report.ops
    ]
    columns = (
        "op",
        "index",
        "type",
        "shape",
        "local rho",
        "ulps of limit",
        "accumulated",
        "amplification",
        "largest",
        "smallest",
        "overflowed",
        "underflowed",
        "torch source",
        "never exercised",
    )
    # Hidden until the script shows it: without scripts a field that does nothing would only mislead.
    search = tag(
        "p",
        tag("label", "Search the ops ", tag("input", type="search", data_table=key, autocomplete="off")),
        " ",
        tag("output", "", aria_live="polite"),
        class_="search",
        hidden=True,
    )
    texts = ("type", "shape", "torch source", "never exercised")
    return tag("div", search, table(f"The {len(rows)} ops of {report.name}", columns, rows, texts=texts, id=key), class_="ops")


def _shade(on: svg.Panel, of: Sequence[Band]) -> Html:
    """Every second band shaded, and its number where there is room."""
    parts: list[Html] = []
    for which, band in enumerate(of, 1):
        # Half a step to either side, so that bands touch.
        left, right = on.x.at(band.first - 0.5), on.x.at(band.last + 0.5)
        if which % 2 == 0:
            parts.append(svg.box(left, on.y.end, right - left, on.y.start - on.y.end, "band"))
        if right - left > 14:
            parts.append(svg.label((left + right) / 2, on.y.end + 11, str(which), "middle", "muted"))
    return join(parts)


def _of(count: int) -> str:
    return f", the {_SHOWN_OPS} worst of {count}; all are in the table of ops" if count > _SHOWN_OPS else ""
