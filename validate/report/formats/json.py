"""JSON: every figure, for programs and later comparisons; ``report.json`` reads it back."""

import json

from coreflow.validate.report.model import BundleReport, Report

SUFFIX = ".json"
TITLE = "JSON"


def to_text(report: Report | BundleReport, *, strict: bool = False) -> str:
    """The report by its schema; it holds every outcome, so ``strict`` changes nothing."""
    from coreflow.validate.report.json import to_json

    return json.dumps(to_json(report), indent=1, allow_nan=False) + "\n"
