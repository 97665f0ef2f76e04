"""A cache on disk of folders that can be made again: written atomically, and checked by digest before use."""

import hashlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from coreflow.models.storage import TemporaryFolder, write_atomically, write_folder_atomically

logger = logging.getLogger(__name__)

_NOTE = "sha256"  # of every other file of an entry: its digest and its name, a line each; its time is that of the last use
KEPT_S = 30 * 24 * 3600.0  # after the last use; an entry of an older release of anything is never used again


def cache_folder() -> Path:
    """``coreflow`` in XDG_CACHE_HOME, or where this system keeps the caches of applications; ``OSError`` where there is no home."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen) / "coreflow"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local") / "coreflow"
    return _home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "coreflow"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise FileNotFoundError("there is no home folder to keep a cache in; XDG_CACHE_HOME names another") from error


@dataclass(frozen=True, slots=True)
class Cache:
    """All entries of one kind. An entry is a folder; its key names everything that decides its bytes.

    >>> cache = Cache("onnx")
    >>> folder = cache.entry(key, make=lambda folder: write_onnx(program, folder / "model.onnx"))

    Where it takes long to find out that there can be no entry, a key may hold the reason instead.
    """

    kind: str

    def entry(self, key: str, make: Callable[[Path], object]) -> Path:
        """The folder of ``key``, filled by ``make`` now or earlier; made again where its files do not match their recorded digests.

        Making an entry deletes those of this kind, and reasons, that were not used for ``KEPT_S``. ``OSError`` where the cache cannot be
        written.
        """
        path = self._folder() / key
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

    def entry_or_temporary(self, key: str, make: Callable[[Path], object]) -> tuple[Path, TemporaryFolder | None]:
        """``entry``; where it cannot be written, a temporary folder that ``make`` filled and that lasts as long as the second value."""
        try:
            return self.entry(key, make), None
        except OSError as error:
            logger.info("%s cannot be cached: %s", self.kind, error)
        temporary = TemporaryFolder()
        make(temporary.path)
        return temporary.path, temporary

    def knows(self, key: str) -> bool:
        """Whether ``key`` has an entry, or a reason why it has none; a cache that cannot be read knows nothing."""
        try:
            return (self._folder() / key).exists() or self._refusal(key).exists()
        except OSError:
            return False

    def refusal(self, key: str) -> str | None:
        """The reason why ``key`` has no entry; None where none was given, or none can be read."""
        try:
            return self._refusal(key).read_text(encoding="utf-8")
        except OSError:
            return None

    def refuse(self, key: str, reason: str) -> None:
        """Keeps the reason why ``key`` has no entry, where the cache can be written."""
        with suppress(OSError):
            write_atomically(self._refusal(key), lambda temporary: temporary.write_text(reason, encoding="utf-8"))

    def _folder(self) -> Path:
        return cache_folder() / self.kind

    def _refusal(self, key: str) -> Path:
        return self._folder() / f"{key}.refused.txt"


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
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return "".join(f"{_digest(folder / name)} {name}\n" for name in names if name != _NOTE)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
