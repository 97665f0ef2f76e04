"""What can be made again, kept between runs: whole or not at all, and checked before it is used."""

import hashlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from coreflow.models.storage import write_folder_atomically

logger = logging.getLogger(__name__)

_NOTE = "sha256"  # of every other file of an entry: its digest and its name, a line each; its time is that of the last use
KEPT_S = 30 * 24 * 3600.0  # after the last use; an entry of an older release of anything is never used again


def cache_folder() -> Path:
    """``coreflow`` in XDG_CACHE_HOME, or where this system keeps the caches of applications."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen) / "coreflow"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "coreflow"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "coreflow"


def cached_entry(path: Path, make: Callable[[Path], object]) -> Path:
    """The folder ``path`` as ``make`` filled it, now or before; what does not have the digests that were noted is made again.

    Entries beside it that nobody used for ``KEPT_S``, and files as old, go when a new one is made. Where it cannot be written, the error is
    the system's (``OSError``).
    """
    if path.exists():
        if _is_whole(path):
            with suppress(OSError):  # a cache that can only be read
                os.utime(path / _NOTE)
            return path
        logger.info("%s is damaged or incomplete; it is made again", path.name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def fill(folder: Path) -> None:
        make(folder)
        (folder / _NOTE).write_text(_digests(folder), encoding="utf-8")

    try:
        write_folder_atomically(path, fill)
    except OSError:
        if not _is_whole(path):  # it is, when another process was first
            raise
    _forget_unused(path.parent)
    return path


def _forget_unused(folder: Path) -> None:
    limit = time.time() - KEPT_S
    for path in folder.iterdir():
        with suppress(OSError):  # what is being made has no note yet, and what another process forgets is gone
            if path.is_dir() and (path / _NOTE).stat().st_mtime < limit:
                shutil.rmtree(path)
            elif path.is_file() and path.stat().st_mtime < limit:
                path.unlink()


def _is_whole(path: Path) -> bool:
    try:
        return (path / _NOTE).read_text(encoding="utf-8") == _digests(path)
    except (OSError, UnicodeDecodeError):
        return False


def _digests(folder: Path) -> str:
    return "".join(f"{_digest(file)} {file.name}\n" for file in sorted(folder.iterdir()) if file.name != _NOTE)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
