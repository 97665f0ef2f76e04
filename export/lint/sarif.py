"""Findings as SARIF 2.1.0, the form in which code hosts and editors show results of analyses."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from coreflow.export.engine.finding import Finding
from coreflow.export.lint.catalogue import Entry
from coreflow.models.versions import version

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif(
    findings: Sequence[Finding], suppressed: Sequence[tuple[Finding, str]], rules: Sequence[Entry], files: Mapping[str, str]
) -> dict[str, Any]:
    """One run with every rule and every finding; those that are suppressed say so with their reason.

    ``files`` holds the path of every recipe and package, by name; an op of a package is a logical location in it.
    """
    places = {rule.id: place for place, rule in enumerate(rules)}
    results = [_result(finding, places[finding.rule], files) for finding in findings]
    results += [
        _result(finding, places[finding.rule], files) | {"suppressions": [{"kind": "external", "justification": reason}]}
        for finding, reason in suppressed
    ]
    driver = {"name": "coreflow", "version": version("coreflow"), "rules": [_rule(rule) for rule in rules]}
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _rule(rule: Entry) -> dict[str, Any]:
    evidence = rule.known.evidence
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": f"{rule.known.text} ({evidence.label}: {evidence.source})"},
        "help": {"text": rule.remedy},
        "defaultConfiguration": {"level": rule.severity},
        "properties": {"chips": list(rule.chips), "strength": rule.strength},
    }


def _result(finding: Finding, rule: int, files: Mapping[str, str]) -> dict[str, Any]:
    evidence = finding.known.evidence
    file = files[finding.name]
    if not file.endswith(finding.file):  # a line of another file than that of the recipe
        file = finding.file
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": quote(file)}}}
    if finding.line:
        location["physicalLocation"]["region"] = {"startLine": finding.line}
    if finding.function:
        location["logicalLocations"] = [{"fullyQualifiedName": finding.place, "name": finding.op or finding.function}]
    text = f"{finding.title}{f' ({finding.detail})' if finding.detail else ''}. {finding.known.text}. Instead: {finding.remedy}"
    return {
        "ruleId": finding.rule,
        "ruleIndex": rule,
        "level": finding.severity,
        "message": {"text": text},
        "locations": [location],
        "properties": {
            "strength": finding.strength,
            "chips": list(finding.chips),
            "opType": finding.op_type,
            "label": evidence.label,
            "source": evidence.source,
        },
    }
