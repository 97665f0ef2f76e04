"""A report into a file, in the format that the file's suffix names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from coreflow.models.errors import ConfigError
from coreflow.models.storage import write_atomically
from coreflow.validate.report.model import BundleReport, Report

FORMATS: Mapping[str, str] = {".json": "JSON", ".html": "HTML", ".xml": "JUnit XML", ".md": "Markdown"}


def check_formats(paths: Sequence[Path]) -> None:
    """Refuse a suffix that names no format; to be called before the work whose result is to be written."""
    for path in paths:
        if path.suffix.lower() not in FORMATS:
            known = ", ".join(f"{suffix} ({name})" for suffix, name in FORMATS.items())
            raise ConfigError(f"--report {path}: the suffix chooses the format; {known} are known")


def write(path: Path, report: Report | BundleReport, *, strict: bool = False) -> None:
    """Write ``report`` atomically; ``strict`` makes a warning a failure where a format knows only these two."""
    check_formats([path])
    if path.suffix.lower() == ".json":
        from coreflow.validate.report.json import write_report

        write_report(path, report)
        return
    text = _text(path.suffix.lower(), report, strict)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _text(suffix: str, report: Report | BundleReport, strict: bool) -> str:
    if suffix == ".html":
        from coreflow.validate.report.html.page import to_html

        return to_html(report)
    if suffix == ".xml":
        from coreflow.validate.report.junit import to_junit

        return to_junit(report, strict=strict)
    from coreflow.validate.report.markdown import to_markdown

    return to_markdown(report)
