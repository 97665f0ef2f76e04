"""Reports to and from JSON: stable keys, no NaN literals."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from coreflow.models.errors import InputError
from coreflow.models.storage import write_json
from coreflow.validate.report.model import BundleReport, OutputReport, Plots, Report
from coreflow.validate.report.older import VERSIONS, in_todays_form
from coreflow.validate.report.schema import COMPUTED, KINDS, SCHEMA_VERSION, misfit, schema


def to_json(report: Report | BundleReport) -> dict[str, Any]:
    """Plain data; numbers that are not finite become null."""
    return {"schema_version": SCHEMA_VERSION, "report": KINDS[type(report)], **_plain(report)}


def write_report(path: Path, report: Report | BundleReport) -> None:
    """``to_json`` into a file, atomically."""
    write_json(path, to_json(report))


def read_report(path: Path) -> dict[str, Any]:
    """A report as ``to_json`` wrote it, those of older schema versions in today's form.

    Any other file is an ``InputError`` that says what is wrong with it.

    >>> read_report(Path("report.json"))["verdict"]
    'pass'
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if isinstance(plain, dict) and plain.get("schema_version") in VERSIONS:
        plain = in_todays_form(plain)
    if not isinstance(plain, dict) or plain.get("report") not in KINDS.values():
        raise InputError(f"{path} is not a report; `coreflow validate ... --report FILE.json` writes one")
    if plain.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} is a report of schema version {plain.get('schema_version')}, and this coreflow reads 1 to {SCHEMA_VERSION}; "
            "validate again to write a new one"
        )
    rules = schema()
    kind = next(kind for kind, title in KINDS.items() if title == plain["report"])
    if wrong := misfit(plain, rules["$defs"][f"{kind.__name__}File"], rules["$defs"]):
        raise InputError(f"{path} is not a whole report: {wrong}")
    return plain


def without_pictures(report: Report | BundleReport) -> Report | BundleReport:
    """The report without plots and op table, small enough to commit as a baseline."""
    if isinstance(report, Report):
        return replace(report, ops=(), outputs=_bare(report.outputs))
    chain = report.cascade
    stages = {name: replace(stage, ops=(), outputs=_bare(stage.outputs)) for name, stage in report.stages.items()}
    bare_chain = None if chain is None else replace(chain, outputs=_bare(chain.outputs))
    return replace(report, stages=stages, cascade=bare_chain)


def _bare(outputs: Mapping[str, OutputReport]) -> dict[str, OutputReport]:
    return {name: replace(output, plots=Plots()) for name, output in outputs.items()}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)] + list(COMPUTED.get(type(value), ()))
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
