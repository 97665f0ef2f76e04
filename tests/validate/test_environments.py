"""Twenty environments, each a process of its own: verdicts and exit codes are those of a healthy machine."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from coreflow.export.bundle import build
from coreflow.export.user_files import load_recipes

SOURCE = """
import torch
from torch import nn

from coreflow.export.recipe import Recipe
from coreflow.models.spec import TensorSpec

torch.manual_seed(0)
RECIPE = Recipe(name="network", module=nn.Sequential({layers}).eval(), inputs={{"x": TensorSpec((4, 16))}}, outputs=("y",))
"""
# Of the package, and of the reference: another epsilon of a norm is hidden by fp16 from all rungs but those without rounding.
LAYERS = {
    "wrong": tuple(f"nn.Linear(16, 16, bias=False), nn.LayerNorm(16, eps={eps}), nn.Linear(16, 16)" for eps in (1e-3, 1e-5)),
    "right": ("nn.Linear(16, 16)", "nn.Linear(16, 16)"),
}
# Both commands in one process: a child that imports torch twice would take twice as long.
CHILD = """
import os, resource, sys
{prepare}
from coreflow.cli.main import main
for command in sys.argv[1:]:
    print("exit", main(command.split("|")), flush=True)
"""
# As for a user whom the system does not know, in a container for instance.
NO_HOME = "import pwd; pwd.getpwuid = lambda uid: {}[uid]"
WRONG, RIGHT = 4, 0  # exit codes: translation, pass
REPORT_LOST = 2


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What is unusual about a process, and the exit codes that it has all the same."""

    unset: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    folder: Path | None = None
    prepare: str = ""  # statement that the child executes first
    codes: tuple[int, int] = (WRONG, RIGHT)


def unwritable(tmp_path: Path) -> Path:
    """A folder in which nobody can write, not even root."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    return Path("/proc") if os.access(folder, os.W_OK) else folder


def a_file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("")
    return path


def no_network(tmp_path: Path) -> Environment:
    (tmp_path / "site").mkdir()
    refuse = (
        "import socket\ndef refuse(*_): raise OSError(101, 'Network is unreachable')\nsocket.socket.connect = socket.getaddrinfo = refuse\n"
    )
    (tmp_path / "site" / "sitecustomize.py").write_text(refuse)
    return Environment(variables={"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])})


def killed_converter(tmp_path: Path) -> Environment:
    """What a conversion leaves that was killed while it wrote: half an entry beside its place, and one without its digests."""
    for entry in ("wide", "onnx"):
        half = tmp_path / "cache" / "coreflow" / entry / ".0123-abcd" / "0123" / "wide.mlpackage"
        half.mkdir(parents=True)
        (half / "Manifest.json").write_text("{")
    return Environment(variables={"XDG_CACHE_HOME": str(tmp_path / "cache")})


def limit(kind: str, number: int) -> str:
    return f"resource.setrlimit(resource.{kind}, ({number}, {number}))"


ENVIRONMENTS: dict[str, Callable[[Path], Environment]] = {
    "healthy": lambda _: Environment(),
    "read-only home": lambda path: Environment(unset=("XDG_CACHE_HOME",), variables={"HOME": str(unwritable(path))}),
    "home is missing": lambda path: Environment(unset=("XDG_CACHE_HOME",), variables={"HOME": str(path / "nowhere" / "home")}),
    "home is a file": lambda path: Environment(unset=("XDG_CACHE_HOME",), variables={"HOME": str(a_file(path))}),
    "home is empty": lambda _: Environment(unset=("XDG_CACHE_HOME",), variables={"HOME": ""}),
    "no home": lambda _: Environment(unset=("HOME", "XDG_CACHE_HOME"), prepare=NO_HOME),
    "read-only cache": lambda path: Environment(variables={"XDG_CACHE_HOME": str(unwritable(path))}),
    "cache below a file": lambda path: Environment(variables={"XDG_CACHE_HOME": str(a_file(path) / "cache")}),
    "read-only working folder": lambda path: Environment(folder=unwritable(path), arguments=("--evidence", str(path / "evidence"))),
    "read-only working folder, evidence in it": lambda path: Environment(folder=unwritable(path)),
    "read-only report folder": lambda path: Environment(
        arguments=("--report", str(unwritable(path) / "report.html")), codes=(WRONG, REPORT_LOST)
    ),
    "report below a file": lambda path: Environment(arguments=("--report", str(a_file(path) / "a.xml")), codes=(WRONG, REPORT_LOST)),
    "evidence below a file": lambda path: Environment(arguments=("--evidence", str(a_file(path) / "replays"))),
    "a disk that is full for reports": lambda path: Environment(
        arguments=("--report", str(path / "report.html")), prepare=limit("RLIMIT_FSIZE", 32 << 10), codes=(WRONG, REPORT_LOST)
    ),
    "temporary folder is missing": lambda path: Environment(variables={"TMPDIR": str(path / "nowhere")}),
    "no temporary folder is named": lambda _: Environment(unset=("TMPDIR", "TEMP", "TMP")),
    "no network": no_network,
    "a killed converter": killed_converter,
    "plain C locale, ASCII output": lambda _: Environment(
        variables={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    ),
    "Turkish locale": lambda _: Environment(variables={"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "LANGUAGE": "tr"}),
    "a terminal of one column": lambda _: Environment(variables={"COLUMNS": "1", "TERM": "dumb"}),
    "few open files": lambda _: Environment(prepare=limit("RLIMIT_NOFILE", 64)),
    "an umask that takes all rights": lambda _: Environment(prepare="os.umask(0o077)"),
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """``coreflow validate`` of a package that is wrong and of one that is right."""
    folder = tmp_path_factory.mktemp("packages")
    commands = []
    for name, (converted, reference) in LAYERS.items():
        source = folder / f"{name}.py"
        source.write_text(SOURCE.format(layers=converted))
        (recipe,) = load_recipes(f"{source}:RECIPE")
        package = str(build(recipe, folder / name))
        source.write_text(SOURCE.format(layers=reference))
        commands.append(["validate", package, "--reference", f"{source}:RECIPE"])
    return commands


def start(commands: list[list[str]], environment: Environment, tmp_path: Path) -> subprocess.Popen[str]:
    variables = {name: value for name, value in os.environ.items() if name not in environment.unset}
    if "XDG_CACHE_HOME" not in environment.unset:
        variables["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    folder = environment.folder or tmp_path / "work"
    if environment.folder is None:
        folder.mkdir()
    whole = ("|".join([*command, *environment.arguments]) for command in commands)
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.format(prepare=environment.prepare), *whole],
        env={**variables, **environment.variables}, cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
    )  # fmt: skip


def is_as_on_a_healthy_machine(printed: str, errors: str, codes: tuple[int, int]) -> bool:
    words = [line.split("  ")[0] for line in printed.splitlines() if line.startswith(("PASS", "FAIL", "WARN", "INCOMPLETE", "exit"))]
    assert words == ["FAIL (translation)", f"exit {codes[0]}", "PASS", f"exit {codes[1]}"], f"{printed}\n{errors}"
    return "Traceback" not in errors


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_verdict_and_exit_code_are_those_of_a_healthy_machine(name: str, commands: list[list[str]], tmp_path: Path) -> None:
    environment = ENVIRONMENTS[name](tmp_path)
    process = start(commands, environment, tmp_path)
    printed, errors = process.communicate()
    assert is_as_on_a_healthy_machine(printed, errors, environment.codes), errors


def test_a_validation_after_one_that_was_killed(commands: list[list[str]], tmp_path: Path) -> None:
    """Killed as soon as the cache holds anything, while the fresh conversion is being written."""
    first = start(commands, Environment(), tmp_path)
    began = time.monotonic()
    while first.poll() is None and not any((tmp_path / "cache").rglob("*")) and time.monotonic() - began < 300:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    (tmp_path / "work").rmdir() if not any((tmp_path / "work").iterdir()) else None
    again = start(commands, Environment(folder=tmp_path), tmp_path)
    printed, errors = again.communicate()
    assert is_as_on_a_healthy_machine(printed, errors, (WRONG, RIGHT)), errors
