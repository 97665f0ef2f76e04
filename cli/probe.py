"""``coreflow probe``: the first command for whoever has a Mac; what nobody has run yet, in one report with nothing personal in it."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coreflow.cli.console import err, out, print_json, progress_bar, warn
from coreflow.cli.options import json_option
from coreflow.models.errors import ConfigError

if TYPE_CHECKING:
    from coreflow.validate.probe.check import Check, Reading
    from coreflow.validate.probe.device import Device
    from coreflow.validate.probe.report import ProbeReport, Result

DEFAULT_FILE = Path("coreflow-probe.json")


def probe(
    only: Annotated[list[str] | None, typer.Option(help="One check of --list; repeatable [default: all].")] = None,
    file: Annotated[Path, typer.Option("--out", help="The report.")] = DEFAULT_FILE,
    seconds: Annotated[float | None, typer.Option(min=1, help="Time limit of a check [default: its own, of --list].")] = None,
    simulate: Annotated[
        str, typer.Option(help="Numerics, as engine-m4, that stand for the Neural Engine, to try the command anywhere.")
    ] = "",
    compare: Annotated[
        list[Path] | None, typer.Option(help="Show a report, or compare two; nothing runs. Repeat it for the second.")
    ] = None,
    list_checks: Annotated[bool, typer.Option("--list", help="List the checks, and whether they run here.")] = False,
    as_json: Annotated[bool, json_option("the report", "or of --list or --compare")] = False,
) -> int:
    """Run what only a Mac can tell, each check in a process of its own; elsewhere say what cannot run. Exit code 1: something disagrees."""
    from coreflow.validate.probe.check import all_checks, check_named
    from coreflow.validate.probe.device import Device

    if compare:
        return _compare(compare, as_json)
    device = Device(simulate)
    checks = [check_named(name) for name in dict.fromkeys(only)] if only else list(all_checks().values())
    if list_checks:
        _list(checks, device, as_json)
        return 0
    if file.exists() and not file.is_file():
        raise ConfigError(f"--out {file} is no file; as in --out {DEFAULT_FILE}")
    report = _run(checks, device, seconds)
    try:
        report.write(file)
    except OSError as error:
        warn(f"{file} cannot be written ({error.strerror or error}); the readings are these")
    if as_json:
        print_json(report.to_json())
    else:
        show_report(report)
        out().print(f"report: {file}; nothing in it names you, your files or your machine", markup=False, soft_wrap=True)
    return 1 if any(result.disagreements for result in report.results) else 0


def _run(checks: list["Check"], device: "Device", seconds: float | None) -> "ProbeReport":
    from coreflow.validate.probe.child import run_check
    from coreflow.validate.probe.machine import describe_machine, describe_versions
    from coreflow.validate.probe.report import ProbeReport

    results = []
    with progress_bar("probing", total=len(checks)) as (bar, task):
        for number, check in enumerate(checks):
            bar.update(task, completed=number, detail=check.title)
            results.append(run_check(check, device, seconds))
            if bar.disable and results[-1].status != "cannot run here":
                err().print(f"{check.name}: {results[-1].status} in {results[-1].seconds:.0f} s", markup=False)
    return ProbeReport(
        day=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=describe_machine(),
        versions=describe_versions(),
        simulated=device.simulated,
        results=tuple(results),
    )


def show_report(report: "ProbeReport") -> None:
    """The results of every check: a line each, and its readings."""
    from rich.table import Table

    machine = f"{report.machine.get('chip', '?')}, {report.machine.get('system', '?')}"
    has_run = any(result.status == "done" for result in report.results)
    label = f"{'measured on' if has_run else 'on'} {machine}"
    if report.simulated:
        label = f"simulated by {report.simulated}, a published model, not measured"
    out().print(f"{report.day}: {label}", markup=False, soft_wrap=True)
    for result in report.results:
        out().print(f"{result.name}: {result.title}: {_status(result)}", style="bold", markup=False, soft_wrap=True)
        if not result.readings:
            continue
        table = Table("reading", "value", "expected", "", "of", box=None, header_style="bold", padding=(0, 2, 0, 2))
        for reading in result.readings:
            value = f"{_in_words(reading.value)} {reading.unit}".rstrip()
            table.add_row(reading.name, value, _in_words(reading.expected), _agreement(reading), reading.source)
        out().print(table)


def _status(result: "Result") -> str:
    if result.status != "done":
        return f"{result.status}: {result.reason}"
    compared = [reading for reading in result.readings if reading.agrees is not None]
    return f"{len(compared) - len(result.disagreements)} of {len(compared)} as expected, {result.seconds:.0f} s"


def _in_words(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.6g}"


def _agreement(reading: "Reading") -> str:
    return "" if reading.agrees is None else "as expected" if reading.agrees else "DIFFERS"


def _list(checks: list["Check"], device: "Device", as_json: bool) -> None:
    from rich.table import Table

    rows = [{"name": check.name, "title": check.title, "seconds": check.seconds, "obstacle": check.obstacle(device)} for check in checks]
    if as_json:
        print_json({"checks": rows})
        return
    table = Table("check", "what it finds out", "ends after", "here", box=None, header_style="bold")
    for row in rows:
        table.add_row(str(row["name"]), str(row["title"]), f"{row['seconds']} s", str(row["obstacle"]) or "runs")
    out().print(table)


def _compare(files: list[Path], as_json: bool) -> int:
    from coreflow.validate.probe.compare import compare_reports
    from coreflow.validate.probe.report import read_report

    if len(files) > 2:
        raise ConfigError(f"--compare takes one report or two, and {len(files)} were given")
    reports = [read_report(file) for file in files]
    if len(reports) == 1:
        (report,) = reports
        if as_json:
            print_json(report.to_json())
        else:
            show_report(report)
        return 1 if any(result.disagreements for result in report.results) else 0
    pairs = list(compare_reports(*reports))
    if as_json:
        print_json({"pairs": [_pair_json(pair) for pair in pairs]})
    else:
        _show_pairs(reports, pairs)
    return 1 if any(pair.differs for pair in pairs) else 0


def _pair_json(pair: Any) -> dict[str, Any]:
    values = [None if reading is None else reading.value for reading in (pair.one, pair.other)]
    return {"check": pair.check, "name": pair.name, "values": values, "differs": pair.differs}


def _show_pairs(reports: list["ProbeReport"], pairs: list[Any]) -> None:
    from rich.table import Table

    machines = [report.simulated or f"{report.machine.get('chip', '?')}, {report.machine.get('system', '?')}" for report in reports]
    table = Table("check", "reading", *machines, "expected", "", box=None, header_style="bold")
    for pair in pairs:
        values = [
            "missing" if reading is None else f"{_in_words(reading.value)} {reading.unit}".rstrip() for reading in (pair.one, pair.other)
        ]
        expected = next((_in_words(reading.expected) for reading in (pair.one, pair.other) if reading is not None), "")
        table.add_row(pair.check, pair.name, *values, expected, "DIFFERS" if pair.differs else "")
    out().print(table)
    if not pairs:
        out().print("no check was done on both", markup=False)
