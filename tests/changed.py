"""Runs the tests of what changed since main, for at most the seconds given: ``python tests/changed.py 40``.

A changed test file stands for itself; a changed module for the test file of its name, and where there is none for the test folder that
mirrors its own. The first failure ends the run.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("models", "export", "runtime", "validate", "cli")


def main() -> int:
    """The exit code of pytest; 0 when the time ran out before a test failed."""
    seconds = float(sys.argv[1])
    chosen = sorted({test for path in changed_files() for test in tests_of(path)} | {Path("tests/test_layout.py")})
    print("tests of what changed:", *chosen)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "2", "-m", "not slow", *map(str, chosen)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
            print(f"{seconds:.0f} seconds are over and nothing failed; make test runs the rest")
            return 0
    return 0 if code == 5 else code  # 5: every chosen test is a slow one


def changed_files() -> Iterator[Path]:
    """Files that differ from where this branch left main, or from the last commit on main itself; new ones included."""
    base = _git("merge-base", "HEAD", "main") or ["HEAD"]
    names = _git("diff", "--name-only", base[0]) + _git("ls-files", "--others", "--exclude-standard")
    yield from (Path(name) for name in names if (ROOT / name).exists())


def tests_of(path: Path) -> Iterator[Path]:
    """The test files or folders that stand for a changed file; none for what is neither a module nor a test."""
    if path.suffix != ".py":
        return
    if path.parts[0] == "tests":
        if path.name.startswith("test_"):
            yield path
        elif path.parent != Path("tests"):
            yield path.parent  # a conftest, or what tests share
    elif path.parts[0] in ROOMS:
        mirrored = "tests" / path.parent
        own = mirrored / f"test_{path.name}"
        yield own if (ROOT / own).exists() else next(folder for folder in (mirrored, *mirrored.parents) if (ROOT / folder).is_dir())


def _git(*arguments: str) -> list[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()


if __name__ == "__main__":
    raise SystemExit(main())
