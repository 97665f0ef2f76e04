"""Atomic writes of files and folders, and folders that are deleted again. Standard library only."""

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class TemporaryFolder:
    """A folder that is deleted when this value is, at the latest when the process ends.

    >>> holder = TemporaryFolder()
    >>> (holder.path / "a.txt").write_text("a")
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="coreflow-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it, and rename it into place.

    If it is interrupted, ``path`` holds either its old content or all of the new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes it the owner's alone
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary folder beside ``path``, sync its files, and rename it into place; ``path`` must not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as holder:
        folder = Path(holder) / path.name
        folder.mkdir()
        write(folder)
        for file in (entry for entry in folder.rglob("*") if entry.is_file()):
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        sync_folder(folder)
        folder.rename(path)
        sync_folder(path.parent)


def write_json(path: Path, plain: Mapping[str, Any]) -> None:
    """``plain`` as indented JSON, atomically; NaN and infinity are refused, since JSON has none."""
    text = json.dumps(plain, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
