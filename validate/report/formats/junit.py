"""JUnit XML, which most CI systems show: a case per package, and one per output and gate.

A gate that could not be judged is an error, not a skipped case: several viewers count a skipped one as good.
"""

from collections.abc import Iterator, Mapping, Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from coreflow.validate.report.model import BundleReport, ChainReport, Gate, Outcome, OutputReport, Report
from coreflow.validate.report.wording import (
    SHOWN_CULPRITS,
    coverage,
    culprit_title,
    execution,
    gate_number,
    jump,
    printable,
    replay_command,
    source_line,
    unstated,
)

SUFFIX = ".xml"
TITLE = "JUnit XML"


def to_text(report: Report | BundleReport, *, strict: bool = False) -> str:
    """The document; ``strict`` makes a warning a failure."""
    root = Element("testsuites", name=printable(f"coreflow validate {report.name}"))
    if isinstance(report, BundleReport):
        whole = _suite(root, report.name, report.seconds, {})
        lines = [report.text, *report.warnings, *(f"not judged: {problem}" for problem in report.problems)]
        _case(whole, report.name, "verdict", report.verdict, lines, strict)
        for stage in report.stages.values():
            _package(root, f"{report.name}.{stage.name}", stage, strict)
        if report.cascade is not None:
            _chain(root, f"{report.name}.cascade", report.cascade, strict)
    else:
        _package(root, report.name, report, strict)
    for suite in (*root, root):
        cases = list(suite.iter("testcase"))
        suite.set("tests", str(len(cases)))
        for kind in ("failure", "error"):
            suite.set(f"{kind}s", str(sum(case.find(kind) is not None for case in cases)))
        suite.set("skipped", "0")
    root.set("time", f"{report.seconds:.3f}")
    indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{tostring(root, encoding="unicode")}\n'


def _package(root: Element, name: str, report: Report, strict: bool) -> None:
    facts = {"package": report.package, "sha256": report.digest, "execution": execution(report), "coverage": coverage([report], None)}
    suite = _suite(root, name, report.seconds, facts)
    _case(suite, name, "verdict", report.verdict, list(_package_lines(report)), strict)
    for output in report.outputs.values():
        _gates(suite, name, output, strict)


def _chain(root: Element, name: str, chain: ChainReport, strict: bool) -> None:
    suite = _suite(root, name, chain.seconds, {})
    differences = (f"token differs: {sentence}" for sentence in chain.tokens.unexplained)
    lines = [chain.text, *differences, *(f"not judged: {problem}" for problem in chain.problems)]
    _case(suite, name, "verdict", chain.verdict, lines, strict)
    for output in chain.outputs.values():
        _gates(suite, name, output, strict)


def _package_lines(report: Report) -> Iterator[str]:
    yield report.text
    yield from (f"not judged: {problem}" for problem in unstated(report.problems, report.text))
    yield from (f"{culprit_title(culprit)}; {source_line(culprit.origin)}" for culprit in report.culprits[:SHOWN_CULPRITS])
    if command := replay_command(report):
        yield f"replay: {command}"


def _gates(suite: Element, name: str, output: OutputReport, strict: bool) -> None:
    for gate in output.gates:
        _case(suite, name, f"{output.name}: {gate.name}", gate.outcome, _gate_lines(output, gate), strict)
    if not output.gates:
        _case(suite, name, f"{output.name}: gates", "incomplete", ["no gate was judged"], strict)


def _gate_lines(output: OutputReport, gate: Gate) -> list[str]:
    numbers = f"{gate.name} {gate_number(gate.value)}, limit {gate_number(gate.limit)}"
    return [numbers, *([gate.text] if gate.text else []), f"largest jump of the ladder: {jump(output)}"]


def _suite(root: Element, name: str, seconds: float, facts: Mapping[str, str]) -> Element:
    suite = SubElement(root, "testsuite", name=printable(name), time=f"{seconds:.3f}")
    if facts:
        properties = SubElement(suite, "properties")
        for key, value in facts.items():
            SubElement(properties, "property", name=key, value=printable(value))
    return suite


def _case(suite: Element, classname: str, name: str, outcome: Outcome, lines: Sequence[str], strict: bool) -> None:
    """One case; the first of ``lines`` is its message."""
    case = SubElement(suite, "testcase", classname=printable(classname), name=printable(name), time="0")
    text = printable("\n".join(lines))
    if outcome == "pass":
        return
    if outcome == "warn" and not strict:
        SubElement(case, "system-out").text = f"WARN\n{text}"
        return
    kind = "error" if outcome == "incomplete" else "failure"
    SubElement(case, kind, type=outcome, message=f"{outcome.upper()}: {printable(lines[0].partition(chr(10))[0])}").text = text
