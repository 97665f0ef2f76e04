"""Places in the source of a module: the user's file and line, and the path of the submodule that was at work."""

import functools
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import nn

_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parents[2])  # the parent of ``export``, whose frames stand between a module and whoever calls it
_ROOMS = tuple(f"{_OURS}/{room}/" for room in ("export", "runtime", "validate", "cli"))
_STANDARD = sysconfig.get_path("stdlib")
_LIBRARIES = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True)
class Place:
    """A line of source, and the submodule that executed it.

    >>> str(Place("model.py", 12, "encoder.layers.3"))
    'model.py:12 (encoder.layers.3)'
    """

    file: str
    line: int
    module: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f" ({self.module})" if self.module else "")


def place_on_stack(frame: FrameType | None, module: nn.Module) -> Place | None:
    """The place at which ``module`` was when the code of ``frame`` was called; None outside of any source but torch's."""
    return _place(_outwards(frame), module)


def place_of_error(error: BaseException, module: nn.Module) -> Place | None:
    """The place in the source of ``module`` from which ``error`` came."""
    steps: list[tuple[FrameType, int]] = []
    trace = error.__traceback__
    while trace is not None:
        steps.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return _place(reversed(steps), module)


def short_name(file: str) -> str:
    """The part after site-packages, else relative to the working folder, else the last part."""
    return _short_name(file, Path.cwd())


@functools.cache
def _short_name(file: str, folder: Path) -> str:
    path = Path(file).absolute()
    for place, part in enumerate(path.parts):
        if part in _LIBRARIES:
            return Path(*path.parts[place + 1 :]).as_posix()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def place_in(lines: Iterable[tuple[str, int]], module: str) -> Place | None:
    """The first of ``lines``, innermost first, that is the user's own code, else that of the library that the model is from."""
    library: Place | None = None
    for file, line in lines:
        if file.startswith((_TORCH, *_ROOMS, "<")) or (file.startswith(_STANDARD) and not _is_library(file)):
            continue
        if not _is_library(file):
            return Place(short_name(file), line, module)
        library = library or Place(short_name(file), line, module)
    return library


def _place(steps: Iterable[tuple[FrameType, int]], module: nn.Module) -> Place | None:
    """Innermost first: the line as in ``place_in``, and the first submodule at work.

    Not from hooks, which see calls of ``forward`` only: models call other methods of their parts as well.
    """
    paths = {id(part): path for path, part in module.named_modules()}
    path: str | None = None
    lines = []
    for frame, line in steps:
        code = frame.f_code
        lines.append((code.co_filename, line))
        if path is None and code.co_argcount:
            path = paths.get(id(frame.f_locals.get(code.co_varnames[0])))
    return None if path is None else place_in(lines, path)


def _is_library(file: str) -> bool:
    return any(f"/{library}/" in file for library in _LIBRARIES)


def _outwards(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    while frame is not None:
        yield frame, frame.f_lineno
        frame = frame.f_back
