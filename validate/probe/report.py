"""The report of a probe: readings by check, as a JSON file that another release reads or refuses with a reason."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from coreflow.models.errors import BundleError
from coreflow.models.storage import write_json
from coreflow.validate.probe.check import Reading, Status

KIND, SCHEMA = "coreflow probe", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one check.

    >>> Result(name="latency", title="...", status="cannot run here", reason="it needs the Core ML framework of macOS", seconds=0.0)
    """

    name: str
    title: str
    status: Status
    reason: str = ""  # of every status but done
    seconds: float = 0.0
    readings: tuple[Reading, ...] = ()

    @property
    def disagreements(self) -> tuple[Reading, ...]:
        """The readings that are not as expected."""
        return tuple(reading for reading in self.readings if reading.agrees is False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """All results of one machine.

    >>> report = read_report(Path("probe.json"))
    >>> report.machine["chip"], [result.name for result in report.results if result.disagreements]
    """

    day: str  # 2026-12-01
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    simulated: str  # the numerics that stood for the Neural Engine; empty on a Mac
    results: tuple[Result, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"kind": KIND, "schema": SCHEMA, **asdict(self)}

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, self.to_json())


def read_report(path: Path) -> ProbeReport:
    """The report in a file; ``BundleError`` where it is none, or one of another version."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is no report of coreflow probe: {_reason(error)}", path=path) from error
    if not isinstance(plain, dict) or plain.get("kind") != KIND:
        raise BundleError(f'{path} is no report of coreflow probe; a file with "kind": "{KIND}" is right', path=path)
    if plain.get("schema") != SCHEMA:
        raise BundleError(f"{path} is a report of version {plain.get('schema')}; this release reads version {SCHEMA}", path=path)
    try:
        results = tuple(_result(result) for result in plain["results"])
        return ProbeReport(
            day=str(plain["day"]),
            machine=_words(plain["machine"]),
            versions=_words(plain["versions"]),
            simulated=str(plain["simulated"]),
            results=results,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} is a damaged report of coreflow probe: {error!r}", path=path) from error


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _words(plain: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): str(word) for name, word in plain.items()}


def _result(plain: Mapping[str, Any]) -> Result:
    if plain["status"] not in get_args(Status):
        raise ValueError(f"status {plain['status']!r}")
    return Result(**{**plain, "readings": tuple(Reading(**reading) for reading in plain["readings"])})
