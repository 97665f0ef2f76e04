"""``coreflow probe``: what it prints and writes where it can run nothing, of what it reads, and its errors."""

import json
import platform
from pathlib import Path

import pytest

from coreflow.cli.main import main
from coreflow.validate.probe.check import Reading
from coreflow.validate.probe.report import ProbeReport, Result, read_report


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    files = []
    for name, value in (("one", 1025.0), ("two", 1024.0)):
        reading = Reading(name="round of 1024", value=value, expected=1025.0, agrees=value == 1025.0, source="numerics engine-m4")
        result = Result(name="arithmetic", title="the arithmetic", status="done", seconds=2.0, readings=(reading,))
        path = tmp_path / f"{name}.json"
        ProbeReport(day="2026-12-01", machine={"chip": f"Apple {name}"}, versions={}, simulated="", results=(result,)).write(path)
        files.append(str(path))
    return files


@pytest.mark.skipif(platform.system() == "Darwin", reason="there the checks run")
def test_elsewhere_a_report_says_of_every_check_why_it_cannot_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "probe.json"
    assert main(["probe", "--out", str(file)]) == 0
    text = capsys.readouterr().out
    assert text.count("cannot run here: it needs") == 5 and "nothing in it names you" in text
    assert [result.status for result in read_report(file).results] == ["cannot run here"] * 5


def test_checks_are_listed_with_their_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["checks"]
    assert [row["name"] for row in rows] == ["arithmetic", "backend", "latency", "placement", "training"]
    assert all(row["seconds"] >= 60 for row in rows)


def test_a_report_is_shown(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--compare", two[0]]) == 0
    text = capsys.readouterr().out
    assert "2026-12-01: measured on Apple one" in text and "1 of 1 as expected, 2 s" in text
    assert main(["probe", "--compare", two[1]]) == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_two_reports_are_compared(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--compare", two[0], "--compare", two[1]]) == 1
    text = capsys.readouterr().out
    assert "1025" in text and "1024" in text and "DIFFERS" in text
    assert main(["probe", "--compare", two[0], "--compare", two[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"][0]["differs"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "speed"], "no check 'speed'; there are arithmetic, backend"),
        (["--simulate", "m4"], "no numerics 'm4' to simulate with; engine-m1"),
        (["--compare", "missing.json"], "missing.json is no report of coreflow probe: No such file"),
        (["--compare", "a", "--compare", "b", "--compare", "c"], "--compare takes one report or two, and 3 were given"),
        (["--seconds", "0"], "should be greater than or equal to 1"),
    ],
)
def test_wrong_uses_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", *arguments]) not in (0, 1)
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_folder_is_no_place_for_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--out", str(tmp_path)]) not in (0, 1)
    assert "is no file; as in --out coreflow-probe.json" in " ".join(capsys.readouterr().err.split())
