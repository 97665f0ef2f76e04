"""Reports of older schema versions in today's form. A field that a version adds is listed here once, with what stands for it before."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from coreflow.validate.report.model import BundleReport, Plots, Report
from coreflow.validate.report.schema import KINDS, SCHEMA_VERSION, schema

VERSIONS = range(1, SCHEMA_VERSION + 1)  # that are read
# Schema version -> definition of the schema -> field that the version added -> what stands for it in reports of earlier versions.
ADDED: Mapping[int, Mapping[str, Mapping[str, Any]]] = {
    2: {
        "AmbiguousSample": {"left_out": True},
        "ChainRow": {"alone": "incomplete"},
        "OutputReport": {"worst_elements": [], "plots": {field.name: [] for field in fields(Plots)}, "largest_jump": None},
        "Report": {
            "reference": "torch in float64",
            "budget": "torch's own fp16",
            "notes": [],
            "ops": [],
            "culprits": [],
            "constants": [],
            "compute_unit_rho": {},
            "replay": None,
        },
    },
    3: {"AmbiguousSample": {"elements_left_out": 0}, "Report": {"accepted": [], "replay_package": None}},
}
_PACKAGE_1 = "coreflow.validation.package"  # the "kind" of a package's report in version 1; a bundle's had its own there


def in_todays_form(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A report of any of ``VERSIONS`` as one of the last; where it is damaged, the damage stays for ``misfit`` to name."""
    version = plain["schema_version"]
    if version == 1:
        plain = _with_title(plain)
    kind = next((kind for kind, title in KINDS.items() if title == plain.get("report")), None)
    if kind is not None and version != SCHEMA_VERSION:
        plain = _completed(plain, {"$ref": f"#/$defs/{kind.__name__}"}, schema()["$defs"], version)
    return {**plain, "schema_version": SCHEMA_VERSION}


def _completed(plain: Any, rule: Mapping[str, Any], definitions: Mapping[str, Any], version: int) -> Any:
    """``plain``, of which ``rule`` is the schema, with the fields that were added after ``version``."""
    if "$ref" in rule:
        name = rule["$ref"].rpartition("/")[2]
        return _completed(
            _with_added(name, plain, version) if isinstance(plain, Mapping) else plain, definitions[name], definitions, version
        )
    for choice in rule.get("anyOf", ()):
        plain = _completed(plain, choice, definitions, version)
    if isinstance(plain, Mapping):
        known, others = rule.get("properties", {}), rule.get("additionalProperties") or {}
        return {name: _completed(value, known.get(name, others), definitions, version) for name, value in plain.items()}
    if isinstance(plain, list):
        return [_completed(item, rule.get("items", {}), definitions, version) for item in plain]
    return plain


def _with_added(name: str, plain: Mapping[str, Any], version: int) -> dict[str, Any]:
    """An object of the definition ``name`` with the fields that it got after ``version``."""
    completed = dict(plain)
    if version == 1 and name in _CHANGED_1:
        with suppress(AttributeError, KeyError, TypeError):  # damaged
            completed |= _CHANGED_1[name](plain)
            completed.pop("heuristic", None)
    for later in range(version + 1, SCHEMA_VERSION + 1):
        completed = {**ADDED[later].get(name, {}), **completed}
    return completed


def _with_title(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A report of version 1 under the title that tells a package's from a bundle's."""
    if plain.get("kind") == _PACKAGE_1:
        return {"report": KINDS[Report], **{name: value for name, value in plain.items() if name != "kind"}}
    return {**({"report": KINDS[BundleReport]} if "stages" in plain else {}), **plain}


def _output_1(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 wrote rho alone for a rung."""
    budget, reference = plain["budget"], plain["reference_rms"]

    def rung(rho: float | None) -> dict[str, float | None]:
        return {"rho": rho, "relative_rms": None if None in (rho, budget, reference) or not reference else rho * budget / reference}

    return {"rungs": {name: rung(rho) for name, rho in plain["rungs"].items()}}


def _samples_1(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 drew one sample per seed, and left every ambiguous one out."""
    return {"drawn": len(plain["seeds"]), "left_out": len(plain["ambiguous"])}


def _report_1(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 noted at every output where its budget was a heuristic."""
    return {"budget": "heuristic"} if any(output["heuristic"] for output in plain["outputs"].values()) else {}


# Definition -> fields of an object of version 1 that stand otherwise in later ones.
_CHANGED_1: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "OutputReport": _output_1,
    "Samples": _samples_1,
    "Report": _report_1,
}
