"""A report as JUnit XML, which most CI systems show: a case per package, and one per output and gate.

A gate that could not be judged is an error, not a skipped case: several viewers count a skipped one as good.
"""

from collections.abc import Iterator, Mapping
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from coreflow.validate.report.model import BundleReport, CascadeReport, Gate, Outcome, OutputReport, Report
from coreflow.validate.report.wording import SHOWN_CULPRITS, coverage, described, execution, gate_number, jump, printable, replay_command


def to_junit(report: Report | BundleReport, *, strict: bool = False) -> str:
    """The document; ``strict`` makes a warning a failure."""
    root = Element("testsuites", name=printable(f"coreflow validate {report.name}"))
    if isinstance(report, BundleReport):
        whole = _suite(root, report.name, report.seconds, {})
        problems = [*report.warnings, *(f"not judged: {each}" for each in report.problems)]
        _case(whole, report.name, "verdict", report.verdict, "\n".join([report.text, *problems]), strict)
        for stage in report.stages.values():
            _package(root, f"{report.name}.{stage.name}", stage, strict)
        if report.cascade is not None:
            _cascade(root, f"{report.name}.cascade", report.cascade, strict)
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
    _case(suite, name, "verdict", report.verdict, "\n".join(_said(report)), strict)
    for output in report.outputs.values():
        _gates(suite, name, output, strict)


def _cascade(root: Element, name: str, cascade: CascadeReport, strict: bool) -> None:
    suite = _suite(root, name, cascade.seconds, {})
    problems = [*(f"token differs: {each}" for each in cascade.tokens.unexplained), *(f"not judged: {each}" for each in cascade.problems)]
    _case(suite, name, "verdict", cascade.verdict, "\n".join([cascade.text, *problems]), strict)
    for output in cascade.outputs.values():
        _gates(suite, name, output, strict)


def _said(report: Report) -> Iterator[str]:
    yield report.text
    yield from (f"not judged: {each}" for each in report.problems if each not in report.text)
    yield from (described(each) for each in report.culprits[:SHOWN_CULPRITS])
    if command := replay_command(report):
        yield f"replay: {command}"


def _gates(suite: Element, name: str, output: OutputReport, strict: bool) -> None:
    for gate in output.gates:
        _case(suite, name, f"{output.name}: {gate.name}", gate.outcome, _found(output, gate), strict)
    if not output.gates:
        _case(suite, name, f"{output.name}: gates", "incomplete", "no gate was judged", strict)


def _found(output: OutputReport, gate: Gate) -> str:
    numbers = f"{gate.name} {gate_number(gate.value)}, limit {gate_number(gate.limit)}"
    return "\n".join(filter(None, (numbers, gate.text, f"largest jump of the ladder: {jump(output)}")))


def _suite(root: Element, name: str, seconds: float, facts: Mapping[str, str]) -> Element:
    suite = SubElement(root, "testsuite", name=printable(name), time=f"{seconds:.3f}")
    if facts:
        properties = SubElement(suite, "properties")
        for key, value in facts.items():
            SubElement(properties, "property", name=key, value=printable(value))
    return suite


def _case(suite: Element, classname: str, name: str, outcome: Outcome, text: str, strict: bool) -> None:
    case = SubElement(suite, "testcase", classname=printable(classname), name=printable(name), time="0")
    said = printable(text)
    if outcome == "pass":
        return
    if outcome == "warn" and not strict:
        SubElement(case, "system-out").text = f"WARN\n{said}"
        return
    kind = "error" if outcome == "incomplete" else "failure"
    SubElement(case, kind, type=outcome, message=f"{outcome.upper()}: {said.partition(chr(10))[0]}").text = said
