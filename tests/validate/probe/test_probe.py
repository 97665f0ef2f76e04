"""Probes: real checks by the simulated engine, children that hang, crash and fail, reports that are read, refused and compared."""

import getpass
import json
import os
import platform
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coreflow.export.engine.placement import place
from coreflow.export.engine.targets import find_targets
from coreflow.export.package.mlpackage import read_program
from coreflow.models.errors import BundleError, ConfigError
from coreflow.validate.probe import child
from coreflow.validate.probe.check import Check, Reading, all_checks, check_named, plain_number
from coreflow.validate.probe.checks import arithmetic
from coreflow.validate.probe.child import run_check
from coreflow.validate.probe.compare import compare_reports
from coreflow.validate.probe.device import Device, numerics_of
from coreflow.validate.probe.machine import describe_machine, without_personal
from coreflow.validate.probe.programs import SHAPE, Applied, package_of
from coreflow.validate.probe.report import ProbeReport, Result, read_report

M4 = Device("engine-m4")


def report(*results: Result, simulated: str = "") -> ProbeReport:
    return ProbeReport(day="2026-12-01", machine={"chip": "Apple M4"}, versions={"torch": "2.13.0"}, simulated=simulated, results=results)


def done(*readings: Reading, name: str = "arithmetic") -> Result:
    return Result(name=name, title="t", status="done", seconds=1.0, readings=readings)


@pytest.mark.skipif(platform.system() == "Darwin", reason="there the checks run")
@pytest.mark.parametrize("name", ["backend", "latency", "placement", "training"])
def test_what_needs_a_mac_says_so_elsewhere(name: str) -> None:
    result = run_check(check_named(name), Device())
    assert (result.status, result.readings) == ("cannot run here", ())
    assert (
        "it needs MPS" in result.reason if name == "training" else "it needs the Core ML framework of macOS, and this is" in result.reason
    )


@pytest.mark.coreml
@pytest.mark.parametrize("name", ["backend", "placement"])
def test_what_needs_a_mac_runs_there(name: str) -> None:
    result = run_check(check_named(name), Device())
    assert result.status == "done" and result.readings, result.reason


def test_the_published_probes_are_met_by_the_simulated_engine(tmp_path: Path) -> None:
    (reading,) = arithmetic._products(M4, tmp_path)
    assert (reading.value, reading.expected, reading.agrees) == (317.0, 317.0, True)


def test_another_arithmetic_is_seen_to_differ(tmp_path: Path) -> None:
    """The engine's numerics of an M1 scale what a slice along the last axis gives, and those of an M4 do not."""
    functions = {function.name: function for function in arithmetic._functions()}
    unlike, _ = arithmetic._compare(functions["slice behind the first column"], Device("engine-m1"), "engine-m4", tmp_path)
    assert unlike.agrees is False and unlike.value == 16 * 32 * 24, "in 24 columns of 32 stands 4095 or more, which becomes infinite"
    same, worst = arithmetic._compare(functions["sigmoid"], M4, "engine-m4", tmp_path)
    assert same.agrees is True and worst.value == pytest.approx(3.355e-3, rel=1e-3), "751K, M6"


def test_a_probe_program_is_worth_a_launch_of_the_engine(tmp_path: Path) -> None:
    package = package_of("sums", Applied(lambda x: x[:, :16].sum(-1, keepdim=True)), SHAPE, ("y", "z"), tmp_path)
    for key in ("M1/macOS27", "M4/macOS27", "M5/macOS27"):
        placement = place(read_program(package).function()[0], find_targets(key)[0])
        assert placement.count("cpu") == 0 and min(op.margin_ms for op in placement.ops) > 0.1


@pytest.mark.slow
def test_the_whole_check_of_the_arithmetic_agrees_with_itself() -> None:
    result = run_check(check_named("arithmetic"), M4)
    assert (result.status, result.disagreements) == ("done", ()), result.reason
    assert len(result.readings) > 25


def sleep(device: Device, folder: Path) -> list[Reading]:
    time.sleep(60)
    return []


def crash(device: Device, folder: Path) -> list[Reading]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return []


def fail(device: Device, folder: Path) -> list[Reading]:
    raise ValueError(f"no {folder}/x in {Path.home()}")


def leave(device: Device, folder: Path) -> list[Reading]:
    os._exit(3)


@pytest.mark.parametrize(
    ("run", "status", "reason"),
    [
        (sleep, "timed out", "ended after 3 s"),
        (crash, "killed", "ended by SIGSEGV"),
        (fail, "failed", "ValueError: no TEMPORARY/"),
        (leave, "failed", "exit code 3"),
    ],
)
def test_a_child_costs_its_own_readings_alone(
    run: Callable[[Device, Path], list[Reading]], status: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real child: a module beside it registers the check under the name of a real one."""
    module = "import sys\nfrom coreflow.validate.probe import check, child\nfrom tests.validate.probe import test_probe\n"
    module += f"made = check.Check(name='x', title='t', seconds=3, obstacle=lambda d: '', run=test_probe.{run.__name__})\n"
    module += "child.check_named = lambda name: made\nchild.main(*sys.argv[1:])\n"
    (tmp_path / "stand_in.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(child, "__name__", "stand_in")
    began = time.monotonic()
    # Importing takes seconds on a busy machine, and only the one that sleeps is to meet its limit.
    limit = 3.0 if run is sleep else 120.0
    result = run_check(Check(name="x", title="t", seconds=3, obstacle=lambda device: "", run=run), Device(), limit)
    assert result.status == status and reason in result.reason, result
    assert time.monotonic() - began < 120
    assert str(Path.home()) not in result.reason or len(str(Path.home())) <= 3


def test_nothing_personal_is_in_a_report(tmp_path: Path) -> None:
    text = without_personal(f"{Path.cwd()}/a {tmp_path} on {socket.gethostname()}: {getpass.getuser()}")
    assert (
        text == f"FOLDER/a TEMPORARY{str(tmp_path).removeprefix(tempfile.gettempdir()).replace(getpass.getuser(), 'USER')} on MACHINE: USER"
    )
    plain = json.dumps(replace(report(), machine=describe_machine()).to_json())
    assert socket.gethostname() not in plain and str(Path.home()) + "/" not in plain
    assert set(describe_machine()) == {"chip", "system", "architecture", "memory_gib"}


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    whole = report(
        done(Reading(name="softplus at 12", value="inf", expected=12.0, agrees=False, source="numerics engine-m4")),
        Result(name="latency", title="t", status="timed out", reason="ended after 3 s", seconds=3.0),
    )
    whole.write(tmp_path / "probe.json")
    assert read_report(tmp_path / "probe.json") == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plain: plain.update(schema=2), "is a report of version 2; this release reads version 1"),
        (lambda plain: plain.update(kind="other"), 'a file with "kind": "coreflow probe" is right'),
        (lambda plain: plain.pop("day"), "is a damaged report of coreflow probe: KeyError"),
        (lambda plain: plain["results"][0].update(status="well"), "is a damaged report of coreflow probe: ValueError"),
        (lambda plain: plain["results"][0]["readings"][0].pop("value"), "is a damaged report of coreflow probe: TypeError"),
    ],
    ids=["version", "kind", "day", "status", "reading"],
)
def test_a_report_of_another_form_is_refused(change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path) -> None:
    plain = json.loads(json.dumps(report(done(Reading(name="a", value=1.0))).to_json()))
    change(plain)
    (tmp_path / "probe.json").write_text(json.dumps(plain))
    with pytest.raises(BundleError, match=message):
        read_report(tmp_path / "probe.json")


@pytest.mark.parametrize("text", [None, "", "[1]", "no json"])
def test_a_file_that_is_no_report_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "probe.json").write_text(text)
    with pytest.raises(BundleError, match="is no report of coreflow probe"):
        read_report(tmp_path / "probe.json")


def test_two_reports_differ_where_a_value_does_that_is_the_same_in_every_run() -> None:
    one = report(
        done(Reading(name="round of 1024", value=1025.0, expected=1025.0, agrees=True), Reading(name="median", value=0.4, unit="ms")),
        done(name="placement"),
    )
    other = report(
        done(
            Reading(name="round of 1024", value=1024.0, expected=1025.0, agrees=False),
            Reading(name="median", value=0.5, unit="ms"),
            Reading(name="new", value=1.0),
        ),
        Result(name="placement", title="t", status="failed", reason="x"),
    )
    assert [(pair.name, pair.differs) for pair in compare_reports(one, other)] == [
        ("round of 1024", True),
        ("median", False),
        ("new", True),
    ]
    assert not any(pair.differs for pair in compare_reports(one, one))


def test_names_that_are_not_there_are_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="no check 'speed'; there are arithmetic, backend, latency, placement, training"):
        check_named("speed")
    with pytest.raises(ConfigError, match="no numerics 'm4' to simulate with; engine-m1, engine-m2"):
        Device("m4")
    assert set(all_checks()) == {"arithmetic", "backend", "latency", "placement", "training"}


def test_a_chip_has_the_numerics_that_are_published_of_it() -> None:
    names = {
        "Apple M1 Max": "engine-m1",
        "Apple M4": "engine-m4",
        "Apple M3 Pro": "engine-m4",
        "Apple M6": "engine-m6",
        "x86_64": "engine-m4",
    }
    assert {chip: numerics_of(chip) for chip in names} == names


def test_numbers_that_json_lacks_are_words() -> None:
    assert [plain_number(value) for value in (1, float("inf"), -float("inf"), float("nan"))] == [1.0, "inf", "-inf", "nan"]
