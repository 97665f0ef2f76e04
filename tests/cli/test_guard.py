"""What kills a command is an error line; signals, exit codes and the end of the parent reach the child."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

MODULE = """
import {imports}
from torch import nn
from coreflow.export import Recipe, TensorSpec

class Net(nn.Module):
    def forward(self, x):
        {statement}
        return x + 1

NET = Recipe(name="net", module=Net(), inputs={{"x": TensorSpec((1, 4))}}, outputs=("y",))
"""


def run(code: str) -> "subprocess.CompletedProcess[str]":
    program = f"import os, signal, sys, time\nfrom coreflow.cli.guard import run_guarded\n{code}"
    return subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("code", [0, 5])
def test_an_exit_code_is_handed_on(code: int) -> None:
    assert run(f"sys.exit(run_guarded(lambda: print('out') or {code}))").returncode == code


def test_an_exception_is_printed_and_is_an_exit_code() -> None:
    result = run("sys.exit(run_guarded(lambda: 1 / 0))")
    assert result.returncode == 1 and "ZeroDivisionError" in result.stderr


def test_what_was_printed_before_a_crash_is_there_once() -> None:
    result = run("print('before'); sys.exit(run_guarded(lambda: print('inside') or 0))")
    assert result.stdout.split() == ["before", "inside"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 130)])
def test_signals_reach_the_child(number: int, code: int) -> None:
    program = "import signal, sys, time\nfrom coreflow.cli.guard import run_guarded\n"
    program += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests run in the background
    program += "def sleep():\n print('ready', flush=True); time.sleep(60)\nsys.exit(run_guarded(sleep))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        # An interrupt of the terminal goes to all its processes, a request to end to one.
        os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)
        assert process.wait(30) == code


def test_the_child_ends_with_a_parent_that_is_killed() -> None:
    program = "import os, sys, time\nfrom coreflow.cli.guard import run_guarded\n"
    program += "def sleep():\n print(os.getpid(), flush=True); time.sleep(60)\nsys.exit(run_guarded(sleep))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) != process.pid
        process.kill()
        ready, _, _ = select.select([process.stdout], [], [], 30)  # its end, once nobody can write any more
        assert ready and process.stdout.read() == ""


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("ctypes.string_at(0)", "a library crashed by SIGSEGV at net.py:8, in forward; nothing was put in place"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the process was killed by SIGKILL; was there enough memory?"),
    ],
)
def test_a_module_that_kills_the_process_is_one_line(tmp_path: Path, statement: str, message: str) -> None:
    file = tmp_path / "net.py"
    file.write_text(MODULE.format(imports="ctypes, os, signal", statement=statement))
    command = [sys.executable, "-m", "coreflow.cli.main", "export", f"{file}:NET", "--out", str(tmp_path / "bundle")]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr.strip()) == (2, "", f"error: {message}")
    assert not (tmp_path / "bundle" / "manifest.json").exists()
