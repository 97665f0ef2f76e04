"""HTML: one page with pictures, for people."""

from coreflow.validate.report.model import BundleReport, Report

SUFFIX = ".html"
TITLE = "HTML"


def to_text(report: Report | BundleReport, *, strict: bool = False) -> str:
    """The page; it shows every outcome, so ``strict`` changes nothing."""
    from coreflow.validate.report.html.page import to_html

    return to_html(report)
