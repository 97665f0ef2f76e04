"""Output of the commands: results on standard output; progress, warnings and errors on standard error."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

WIDTH = 160  # where the output is no terminal: a pipe or a file has no width of its own, and a table is not to be cut to 80


def out() -> Console:
    """A console for results, made on each call, so that a redirected ``sys.stdout`` is followed."""
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def err() -> Console:
    """A console for progress, warnings and errors."""
    return Console(file=sys.stderr, highlight=False)


def warn(text: str) -> None:
    """Print one warning line."""
    err().print(f"[yellow]warning:[/] {_plain(text)}", soft_wrap=True)


def fail(text: str) -> None:
    """Print one error line."""
    err().print(f"[bold red]error:[/] {_plain(text)}", soft_wrap=True)


def hint(text: str) -> None:
    """Print one line below an error: where to read what would be right."""
    err().print(f"[dim]hint:[/] {_plain(text)}", soft_wrap=True)


def print_json(plain: Any) -> None:
    """Print the one result of a command as JSON."""
    sys.stdout.write(json.dumps(plain, indent=1, allow_nan=False) + "\n")


@contextmanager
def progress_bar(title: str, total: float | None = None, *, counts: bool = True) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on standard error while the block runs; nothing is drawn where that is not a terminal.

    It counts up to ``total``, as far as that is known, or shows the share of it.
    """
    console = err()
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn() if counts else TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress, progress.add_task(title, total=total, detail="")


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
