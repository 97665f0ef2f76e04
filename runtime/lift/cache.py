"""Files that can be made again, kept between runs: whole or not at all, and checked before they are used."""

import hashlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from coreflow.models.storage import write_atomically

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """``coreflow`` in XDG_CACHE_HOME, or where this system keeps the caches of applications."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen) / "coreflow"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "coreflow"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "coreflow"


def cached_file(path: Path, make: Callable[[Path], object]) -> Path:
    """``path`` as ``make`` filled it, now or before; what does not have the digest that was noted is made again.

    The digest lies beside the file, and is written after it: an entry that was cut off has none. Where the folder cannot be written, the
    error is the system's (``OSError``).
    """
    note = path.with_suffix(path.suffix + ".sha256")
    if path.exists():
        try:
            if note.read_text(encoding="ascii").strip() == _digest(path):
                return path
        except (OSError, UnicodeDecodeError):
            pass
        logger.info("%s is damaged or incomplete; it is made again", path.name)
    note.unlink(missing_ok=True)
    write_atomically(path, make)
    digest = _digest(path)
    write_atomically(note, lambda temporary: temporary.write_text(digest + "\n", encoding="ascii"))
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
