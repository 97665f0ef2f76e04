"""Runs one check in a child process with a time limit: what crashes, hangs or eats memory there costs its own readings alone."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coreflow.validate.probe.check import Check, Reading, check_named
from coreflow.validate.probe.device import Device
from coreflow.validate.probe.machine import without_personal
from coreflow.validate.probe.report import Result

_LAST_LINES = 3


def run_check(check: Check, device: Device, seconds: float | None = None) -> Result:
    """The result of ``check``; ``seconds`` is another time limit than its own."""
    obstacle = check.obstacle(device)
    if obstacle:
        return Result(name=check.name, title=check.title, status="cannot run here", reason=obstacle)
    limit = float(check.seconds if seconds is None else seconds)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="coreflow-probe-") as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", __name__, check.name, device.simulated, folder]
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        try:
            _, problem = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the compiler of Core ML is a child of the child
            process.communicate()
            return Result(name=check.name, title=check.title, status="timed out", reason=f"ended after {limit:g} s", seconds=limit)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        spent = time.monotonic() - began
        plain = _read(answer)
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return Result(name=check.name, title=check.title, status="killed", reason=f"ended by {name}", seconds=spent)
    if plain is None or process.returncode:
        reason = without_personal(" / ".join(problem.strip().splitlines()[-_LAST_LINES:])) or f"exit code {process.returncode}"
        return Result(name=check.name, title=check.title, status="failed", reason=reason, seconds=spent)
    if "problem" in plain:
        reason = without_personal(plain["problem"])
        return Result(name=check.name, title=check.title, status="failed", reason=reason, seconds=spent)
    readings = tuple(Reading(**reading) for reading in plain["readings"])
    return Result(name=check.name, title=check.title, status="done", seconds=spent, readings=readings)


def _read(answer: Path) -> Mapping[str, Any] | None:
    try:
        plain: Mapping[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return plain


def main(name: str, simulated: str, folder: str) -> None:
    """The child: run the check and write its readings, or what went wrong, into the folder."""
    place = Path(folder)
    try:
        readings = check_named(name).run(Device(simulated), place)
        plain: dict[str, Any] = {"readings": [asdict(reading) for reading in readings]}
    except Exception as error:  # whatever it is, it belongs in the report
        last = traceback.extract_tb(error.__traceback__)[-1]
        plain = {"problem": f"{type(error).__name__}: {error} (at {Path(last.filename).name}:{last.lineno})"}
    (place / "answer.json").write_text(json.dumps(plain, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
