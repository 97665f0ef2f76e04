"""Writes a report to a file, in the format of its suffix; every format is a module of ``formats``."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Protocol, cast

from coreflow.models.errors import ConfigError
from coreflow.models.storage import write_atomically
from coreflow.validate.report import formats
from coreflow.validate.report.model import BundleReport, Report


class Format(Protocol):
    """A module of ``formats``. A new file there is a new format; nothing lists it.

    >>> SUFFIX, TITLE = ".csv", "CSV"
    >>> def to_text(report: Report | BundleReport, *, strict: bool = False) -> str: ...
    """

    SUFFIX: str
    TITLE: str

    def to_text(self, report: Report | BundleReport, *, strict: bool = False) -> str:
        """The whole file; ``strict`` makes a warning a failure where a format knows only these two."""
        ...


def known_formats() -> Mapping[str, Format]:
    """Formats by suffix, as the folder lists them."""
    modules = (cast(Format, import_module(f"{formats.__name__}.{module.name}")) for module in iter_modules(formats.__path__))
    return {module.SUFFIX: module for module in modules}


def describe_formats() -> str:
    """``.html (HTML), .json (JSON), ...``, for messages and help."""
    return ", ".join(f"{suffix} ({module.TITLE})" for suffix, module in known_formats().items())


def check_formats(paths: Sequence[Path]) -> None:
    """Refuse a suffix that names no format; to be called before the work whose result is to be written."""
    for path in paths:
        if path.suffix.lower() not in known_formats():
            raise ConfigError(f"--report {path}: the suffix chooses the format; {describe_formats()} are known")


def write(path: Path, report: Report | BundleReport, *, strict: bool = False) -> None:
    """Write ``report`` atomically; ``strict`` makes a warning a failure where a format knows only these two."""
    check_formats([path])
    text = known_formats()[path.suffix.lower()].to_text(report, strict=strict)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
