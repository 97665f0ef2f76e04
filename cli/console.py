"""What the commands share: where they print, how they draw progress, how an error looks."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

WIDTH = 160  # where the output is no terminal: a pipe or a file has no width of its own, and a table is not to be cut to 80


def out() -> Console:
    """Results. Made on each call, so that a redirected ``sys.stdout`` is followed."""
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def err() -> Console:
    """Progress, warnings and errors."""
    return Console(file=sys.stderr, highlight=False)


def warn(text: str) -> None:
    """One warning line."""
    err().print(f"[yellow]warning:[/] {_plain(text)}", soft_wrap=True)


def fail(text: str) -> None:
    """One error line."""
    err().print(f"[bold red]error:[/] {_plain(text)}", soft_wrap=True)


def print_json(plain: Any) -> None:
    """The one result of a command, for programs."""
    sys.stdout.write(json.dumps(plain, indent=1, allow_nan=False) + "\n")


@contextmanager
def progress_bar(what: str, total: int | None = None) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on standard error while the block runs; nothing is drawn where that is not a terminal."""
    console = err()
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress, progress.add_task(what, total=total, detail="")


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
