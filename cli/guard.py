"""Runs a command in a child process, so that what kills it, a crash in a library or a lack of memory, is an error message."""

import faulthandler
import os
import re
import signal
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from coreflow.models.errors import ExportError

_PACKAGE = str(Path(__file__).resolve().parents[1])
_LIBRARIES = (_PACKAGE, *{sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}, "<")
_HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # an interrupt reaches the child by itself
_ASKED_FOR = {signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP}


def run_guarded(command: Callable[[], int]) -> int:
    """The exit code of ``command``, which runs in a fork of this process; ``ExportError`` where that was killed.

    >>> run_guarded(lambda: main(["export", "models.py:ENCODER", "--out", "artifacts/encoder"]))
    0

    To be called before torch is loaded, whose threads a fork would not have. Where a process cannot fork, ``command`` runs in this one.
    The child ends with its parent; an interrupt reaches both, and the child decides what becomes of it.
    """
    if not hasattr(os, "fork"):
        return command()
    alive, lifeline = os.pipe()
    with tempfile.TemporaryFile() as crash:
        sys.stdout.flush()
        sys.stderr.flush()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDED_ON)  # until this process hands them on
        child = os.fork()
        if child == 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(lifeline)
            _run_and_exit(command, alive, crash.fileno())
        os.close(alive)
        status = _wait(child, before)
        os.close(lifeline)
        if not os.WIFSIGNALED(status):
            return os.waitstatus_to_exitcode(status)
        number = os.WTERMSIG(status)
        if number in _ASKED_FOR:
            return 128 + number
        crash.seek(0)
        raise ExportError(_message(number, crash.read().decode(errors="replace")))


def _run_and_exit(command: Callable[[], int], alive: int, crash: int) -> None:
    faulthandler.enable(crash, all_threads=False)
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    code = 1
    try:
        code = command()
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 1
        os._exit(code)


def _end_with_parent(alive: int) -> None:
    """The other end of the pipe is open as long as the parent lives."""
    os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _wait(child: int, mask: set[signal.Signals | int]) -> int:
    """Its status, while signals that ask this process to end are handed on."""

    def hand_on(number: int, frame: object) -> None:
        os.kill(child, number)

    before = {number: signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else hand_on) for number in _HANDED_ON}
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        return os.waitpid(child, 0)[1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _message(number: int, stack: str) -> str:
    """What killed the child, and the line of the user's own file that was executed."""
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        return f"the process was killed by {name}; was there enough memory?"
    places = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', stack)  # the innermost comes first
    own = [f"{Path(file).name}:{line}, in {function}" for file, line, function in places if not file.startswith(_LIBRARIES)]
    return f"a library crashed by {name}{f' at {own[0]}' if own else ''}; nothing was put in place"
