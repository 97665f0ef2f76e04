"""A report as JSON: stable keys, no NaN literals."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from coreflow.models.storage import write_json
from coreflow.validate.report.model import BundleReport, Report

SCHEMA_VERSION = 1
# Values that a dataclass computes and a reader of the file wants.
_COMPUTED = {
    "OutputReport": ("outcome", "headroom", "largest_jump"),
    "Report": ("exit_code",),
    "BundleReport": ("exit_code", "failing_stages"),
    "Samples": ("total", "left_out"),
    "TokenAgreement": ("share",),
}


def to_json(report: Report | BundleReport) -> dict[str, Any]:
    """Plain data; numbers that are not finite become null."""
    of = "bundle" if isinstance(report, BundleReport) else "package"
    return {"schema_version": SCHEMA_VERSION, "report": f"coreflow validation of a {of}", **_plain(report)}


def write_report(path: Path, report: Report | BundleReport) -> None:
    """``to_json`` into a file, atomically."""
    write_json(path, to_json(report))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)] + list(_COMPUTED.get(type(value).__name__, ()))
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
