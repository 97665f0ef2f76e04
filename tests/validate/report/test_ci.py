"""What a CI system and a pull request show: JUnit XML and Markdown. What was not judged is never among what passed."""

import re
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from coreflow.validate.report.formats import junit, markdown
from coreflow.validate.report.formats.markdown import code, escape

# GitHub's tables, and no HTML but what is ours.
READER = MarkdownIt("commonmark").enable("table")


def cases(document: str) -> dict[str, ElementTree.Element]:
    return {f"{case.get('classname')} / {case.get('name')}": case for case in ElementTree.fromstring(document).iter("testcase")}


def state(case: ElementTree.Element) -> str:
    return next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")


def test_junit_has_a_case_per_package_and_per_output_and_gate(make: SimpleNamespace) -> None:
    by_name = {name: state(case) for name, case in cases(junit.to_text(make.whole())).items()}
    assert by_name == {
        "encoder / verdict": "failure",
        "encoder / surface: rho_rms": "passed",
        "encoder / surface: contract": "passed",
        "encoder / hidden: finite": "failure",
        "encoder / hidden: rho_rms": "failure",
        "encoder / hidden: reacts": "error",
        "encoder / hidden: rho_max": "passed",
        "encoder / hidden: ceiling": "failure",
    }


def test_junit_failures_have_the_findings_as_text(make: SimpleNamespace) -> None:
    by_name = cases(junit.to_text(make.whole()))
    verdict = by_name["encoder / verdict"].find("failure")
    assert verdict is not None and verdict.text is not None
    assert verdict.text.startswith("said so\nrounding: op_0_linear (linear), 40.00 times what is healthy; layers.3, net.py:30")
    assert "replay: coreflow validate replay 'runs/my replay.safetensors'" in verdict.text
    finite = by_name["encoder / hidden: finite"].find("failure")
    assert finite is not None and finite.get("message") == "FAIL: finite 3, limit 0" and "3 values are NaN" in str(finite.text)
    warned = by_name["encoder / hidden: rho_max"].find("system-out")
    assert warned is not None and str(warned.text).startswith("WARN")


def test_junit_counts_its_cases(make: SimpleNamespace) -> None:
    report = make.bundle(make.whole(), make.stage(make.output(), name="other"), make.stage(name="none", verdict="incomplete"))
    root = ElementTree.fromstring(junit.to_text(report))
    assert [suite.get("name") for suite in root] == ["demo", "demo.encoder", "demo.other", "demo.none", "demo.cascade"]
    for holder in (*root, root):
        states = [state(case) for case in holder.iter("testcase")]
        assert {kind: holder.get(kind) for kind in ("tests", "failures", "errors", "skipped")} == {
            "tests": str(len(states)),
            "failures": str(states.count("failure")),
            "errors": str(states.count("error")),
            "skipped": "0",
        }


def test_junit_never_passes_a_part_without_a_verdict(make: SimpleNamespace) -> None:
    no_gates = make.stage(make.output(gates=()), name="no gates")
    report = make.bundle(no_gates, make.stage(name="none", verdict="incomplete"), problems=("no reference for none",))
    by_name = {name: state(case) for name, case in cases(junit.to_text(report)).items()}
    assert {name for name, item in by_name.items() if item == "error"} == {
        "demo / verdict",
        "demo.no gates / verdict",
        "demo.no gates / surface: gates",
        "demo.none / verdict",
    }
    assert "not judged: no reference for none" in junit.to_text(report)


def test_strict_makes_a_warning_a_failure(make: SimpleNamespace) -> None:
    report = make.whole()
    assert state(cases(junit.to_text(report, strict=True))["encoder / hidden: rho_max"]) == "failure"


def test_junit_of_a_real_failure(real: Any) -> None:
    by_name = {name: state(case) for name, case in cases(junit.to_text(real)).items()}
    assert by_name["network / y: rho_rms"] == "failure" and by_name["network / y: finite"] == "passed"
    assert "layers.1.contract" in junit.to_text(real)


def test_hostile_names_are_text_in_xml(make: SimpleNamespace) -> None:
    by_name = cases(junit.to_text(make.bundle(make.hostile(), name=make.HOSTILE)))
    kept = "<script>alert(1)</script>\"'&|`[bold]\ufffd[31m\ufffd\ufffd\ufffd"
    assert f"{kept}.{kept} / {kept}: rho_slice" in by_name


def test_markdown_has_the_verdict_first_then_failing_outputs_then_culprits(make: SimpleNamespace) -> None:
    text = markdown.to_text(make.whole())
    assert text.startswith("### ✗ **FAIL** (fp16): coreflow validate `encoder`\n\nsaid so\n\n|")
    order = [
        "`hidden`",
        "Culprits in `encoder`",
        "1. **rounding** `op_0_linear`",
        "5. ",
        "Replay: `coreflow",
        "1 of 2 outputs pass",
        "`surface`",
    ]
    places = [text.index(item) for item in order]
    assert places == sorted(places)
    assert "6. " not in text and "\n\n\n" not in text
    assert len(text.splitlines()) < 30


def test_markdown_lists_packages_that_were_not_compared(make: SimpleNamespace) -> None:
    report = make.bundle(
        make.stage(make.output()),
        make.stage(name="none", verdict="incomplete", problems=("other golden samples",)),
        problems=("no reference",),
        warnings=("weight.bin was changed",),
    )
    text = markdown.to_text(report)
    assert text.startswith("### ? **INCOMPLETE**: coreflow validate `demo`")
    assert "| `none` | nothing compared | ? **INCOMPLETE** |" in text
    for said in ("- `none` not judged: other golden samples", "- `demo` not judged: no reference", "- warning: weight.bin was changed"):
        assert said in text
    assert "8 of 9 equal" in text and "NOT compared: none" in text


def test_markdown_of_a_pass_is_short(make: SimpleNamespace) -> None:
    text = markdown.to_text(make.stage(make.output()))
    assert text.startswith("### ✓ **PASS**") and "Culprits" not in text and text.index("<details>") < text.index("`surface`")


def test_hostile_names_are_text_in_markdown(make: SimpleNamespace) -> None:
    text = markdown.to_text(make.bundle(make.hostile(), name=make.HOSTILE, warnings=(make.HOSTILE,)))
    page = READER.render(text)
    assert "<script" not in page
    assert not {"\x1b", "\x00", "\u202e", "\ud800"} & set(text)
    rows = [row.count("<td") for row in re.findall("<tr>(.*?)</tr>", page, re.DOTALL) if "<td" in row]
    assert rows == [9, 9], "no name opens a cell of its own"


@pytest.mark.parametrize(
    "text",
    ["a_b", "_a_", "*b*", "`c`", "a|b", "<i>", "&amp;", "[x](y)", "![x](y)", "# no", "1. no", "- no", "> no", "\\*", "~~x~~", "a\nb"],
)
def test_escaped_text_reads_as_it_was(text: str) -> None:
    tokens = READER.parse(escape(text))
    assert [item.type for item in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    children = tokens[1].children or []
    assert "".join(item.content for item in children) == text.replace("\n", " ")
    assert {item.type for item in children} <= {"text", "text_special"}


@pytest.mark.parametrize("text", ["a", "`", "a`b", "``a``", "", "a\nb", "<i>", "*a*"])
def test_a_code_span_holds_any_text(text: str) -> None:
    children = READER.parse(code(text))[1].children or []
    assert [item.type for item in children] == ["code_inline"]
    assert children[0].content.strip() == text.replace("\n", " ")
