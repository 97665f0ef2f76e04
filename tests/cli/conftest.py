"""What the tests of commands share: a command in this process, and one that has to refuse its arguments."""

import logging
from collections.abc import Callable

import pytest

from coreflow.cli.main import main

Run = Callable[..., tuple[int, str, str]]
Refuses = Callable[..., str]


@pytest.fixture
def run_command(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: exit code, standard output, standard error, those of C libraries too."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def refuses(run_command: Run, caplog: pytest.LogCaptureFixture) -> Refuses:
    """The error line of a command that has to end with ``code``: one line, perhaps with a hint below it, and nothing else.

    Logs count: their handlers may write to a stream that is not captured.
    """

    def run(code: int, *arguments: object) -> str:
        actual, out, err = run_command(*arguments)
        lines = err.splitlines()
        assert lines and lines[-1].startswith(("error: ", "hint: ")), err
        assert [line.split(": ")[0] for line in lines] in (["error"], ["error", "hint"]), err
        assert "Traceback" not in err and len(lines[0]) < 700, err
        assert not out, out
        assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert actual == code, err
        return err

    return run
