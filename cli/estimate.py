"""``coreflow estimate``: latency and energy of the Neural Engine per chip, as ranges between published figures, and calls per sentence."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coreflow.cli.console import out, print_json
from coreflow.cli.options import FunctionOption, json_option
from coreflow.cli.place import functions_at
from coreflow.models.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from coreflow.export.engine.latency import Chip, Figure, Latency
    from coreflow.export.package.graph import Program

_KIND = "a range between published figures, not measured"
_TITLES = {
    "floor": "calls",
    "matmul": "matmul, linear, attention",
    "conv": "convolutions",
    "stream": "weights",
    "elementwise": "inputs and outputs, unless fused",
    "norm": "norms, softmax, reductions",
}


def estimate(
    path: Annotated[Path | None, typer.Argument(help="An .mlpackage, or a bundle of `coreflow export`.")] = None,
    chip: Annotated[list[str] | None, typer.Option(help="A chip, as M5Pro; repeatable [default: all with published figures].")] = None,
    function: FunctionOption = None,
    text: Annotated[
        str | None, typer.Option(help="A sentence to run through a bundle's chain, which counts the calls of each stage.")
    ] = None,
    chips: Annotated[bool, typer.Option("--chips", help="List the chips and their published figures.")] = False,
    as_json: Annotated[bool, json_option("the ranges", "or the figures of --chips")] = False,
) -> int:
    """Say how long the Neural Engine takes for a call, and what energy: a range, with the published figures that set both ends."""
    from coreflow.export.engine.latency import all_chips, chip_named

    chosen = [chip_named(name) for name in chip] if chip else list(all_chips().values())
    if chips:
        _list_chips(chosen, as_json)
        return 0
    if path is None:
        raise typer.BadParameter("a package is missing; as in coreflow estimate FILE.mlpackage, or coreflow estimate artifacts/NAME")
    if text is not None and path.suffix == ".mlpackage":
        raise ConfigError(f"--text counts the calls of a chain, and {path.name} is one package; give a bundle")
    calls = {} if text is None else _count_calls(path, text)
    rows = [_row(label, program, name, chosen, calls.get(label)) for label, program, name in functions_at(path, function)]
    if as_json:
        print_json([_json(row) for row in rows])
        return 0
    for row in rows:
        _show(row)
    if calls:
        _show_chain(rows, chosen)
    _show_sources()
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    label: str
    function: str
    latencies: tuple["Latency", ...]  # by chip
    calls: int | None  # for one sentence; None where nothing was run
    is_compressed: bool


def _row(label: str, program: "Program", function: str, chips: Sequence["Chip"], calls: int | None) -> _Row:
    from coreflow.export.engine.latency import estimate as estimate_latency
    from coreflow.export.engine.placement import place
    from coreflow.export.engine.targets import find_targets

    graph, _ = program.function(function)
    placements = {target: place(graph, find_targets(target)[0]) for target in dict.fromkeys(chip.target for chip in chips)}
    return _Row(
        label=label,
        function=function,
        latencies=tuple(estimate_latency(placements[chip.target], chip) for chip in chips),
        calls=calls,
        is_compressed=any(op.type.startswith("constexpr_") for op in graph.ops),
    )


def _count_calls(bundle: Path, text: str) -> dict[str, int]:
    """Calls of each stage for one sentence, as the lifted chain makes them."""
    from coreflow.runtime.chain import Chain

    return {name: time.calls for name, time in Chain.load(bundle, "lifted").run(text).times.items()}


# --- text ----------------------------------------------------------------------------------------------------------------------------


def _show(row: _Row) -> None:
    from rich.table import Table

    table = Table(title=f"{row.label}: function {row.function}, a call", title_justify="left", box=None, header_style="bold")
    for column in ("chip", "engine ops", "segments", "ms", "mJ", "the fast end", "the slow end"):
        table.add_column(column, justify="right" if column in ("engine ops", "segments", "ms", "mJ") else "left")
    for latency in row.latencies:
        _add(table, latency)
    out().print(table)
    if not any(latency.engine_ops for latency in row.latencies):
        out().print(
            "  no op is placed on the Neural Engine, and nothing is published of the CPU's time; see coreflow place", soft_wrap=True
        )
    elif any(latency.cpu_ops for latency in row.latencies):
        most = max(latency.cpu_ops for latency in row.latencies)
        out().print(f"  up to {most} ops on the CPU are not counted: nothing is published of its time", soft_wrap=True)
    if row.is_compressed:
        out().print("  compressed weights are counted as the fp16 that they stand for; the fast end may be lower", soft_wrap=True)


def _add(table: "Table", latency: "Latency") -> None:
    total = f"{latency.engine_ops} of {latency.engine_ops + latency.cpu_ops}"
    if not latency.parts:
        table.add_row(latency.chip.name, total, "0", "-", "-", "", "")
        return
    fastest = max((part for part in latency.parts), key=lambda part: part.low_ms)
    slowest = max((part for part in latency.parts), key=lambda part: part.high_ms)
    table.add_row(
        latency.chip.name,
        total,
        str(latency.segments),
        _range(latency.low_ms, latency.high_ms),
        _range(latency.low_mj, latency.high_mj),
        f"{_TITLES[fastest.quantity]}: {_in_words(fastest.quantity, fastest.fastest)}",
        f"{_TITLES[slowest.quantity]}: {_in_words(slowest.quantity, slowest.slowest)}",
    )


def _show_chain(rows: Sequence[_Row], chips: Sequence["Chip"]) -> None:
    from rich.table import Table

    table = Table(title="the sentence, through the chain", title_justify="left", box=None, header_style="bold")
    for column in ("stage", "calls", *(f"{chip.name} ms" for chip in chips)):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for row in rows:
        calls = row.calls or 0
        cells = [_range(calls * latency.low_ms, calls * latency.high_ms) if latency.parts else "-" for latency in row.latencies]
        table.add_row(row.label, str(calls), *cells)
    out().print(table)


def _range(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}"


def _in_words(quantity: Any, figure: "Figure") -> str:
    from coreflow.export.engine.latency import UNITS

    owner = f", of {figure.borrowed_from}" if figure.borrowed_from else ""
    return f"{figure.value:g} {UNITS[quantity]}, {figure.what} ({figure.label}, {figure.source}{owner})"


def _show_sources() -> None:
    from coreflow.export.engine.latency import rate_labels, rate_sources

    lines = [f"This is {_KIND}: of the Neural Engine alone, without Core ML's own overhead, of which nothing is published."]
    lines += [f"{label}: {meaning}" for label, meaning in rate_labels().items()]
    lines += [f"{letter}: {source}" for letter, source in rate_sources().items()]
    for line in lines:
        out().print(line, markup=False, soft_wrap=True)


def _list_chips(chips: Sequence["Chip"], as_json: bool) -> None:
    from rich.table import Table

    from coreflow.export.engine.latency import UNITS, rate_labels, rate_sources

    if as_json:
        listed = [asdict(chip) for chip in chips]
        print_json({"chips": listed, "units": dict(UNITS), "labels": dict(rate_labels()), "sources": dict(rate_sources())})
        return
    table = Table("chip", "of", "figure", "what", "label", "source", "borrowed from", box=None, header_style="bold")
    for chip in chips:
        for quantity, figures in chip.figures.items():
            for figure in figures:
                value = f"{figure.value:g} {UNITS[quantity]}"
                table.add_row(chip.name, quantity, value, figure.what, figure.label, figure.source, figure.borrowed_from)
    out().print(table)
    for letter, source in rate_sources().items():
        out().print(f"{letter}: {source}", markup=False, soft_wrap=True)


# --- JSON ----------------------------------------------------------------------------------------------------------------------------


def _json(row: _Row) -> dict[str, Any]:
    from coreflow.export.engine.latency import rate_sources

    return {
        "label": row.label,
        "function": row.function,
        "kind": _KIND,
        "calls": row.calls,
        "compressed": row.is_compressed,
        "chips": [_latency_json(latency) for latency in row.latencies],
        "sources": dict(rate_sources()),
    }


def _latency_json(latency: "Latency") -> dict[str, Any]:
    plain = {name: value for name, value in asdict(latency).items() if name != "chip"}
    return {"chip": latency.chip.key, "name": latency.chip.name, **plain}
