"""Formats of a report: a file in the folder is a format, and its suffix chooses it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from coreflow.models.errors import ConfigError
from coreflow.validate.report import formats
from coreflow.validate.report.files import check_formats, describe_formats, known_formats, write


def test_the_folder_lists_the_formats() -> None:
    assert {suffix: module.TITLE for suffix, module in known_formats().items()} == {
        ".html": "HTML", ".json": "JSON", ".xml": "JUnit XML", ".md": "Markdown",
    }  # fmt: skip
    assert describe_formats() == ".html (HTML), .json (JSON), .xml (JUnit XML), .md (Markdown)"


@pytest.mark.parametrize(
    ("suffix", "start"), [(".html", "<!DOCTYPE html>"), (".json", "{"), (".xml", "<?xml"), (".md", "### "), (".JSON", "{")], ids=str
)
def test_the_suffix_chooses_the_format(make: SimpleNamespace, tmp_path: Path, suffix: str, start: str) -> None:
    file = tmp_path / "deep" / f"report{suffix}"
    write(file, make.whole())
    assert file.read_text(encoding="utf-8").startswith(start)
    assert [other.name for other in file.parent.iterdir()] == [file.name], "nothing is left behind"


def test_a_new_format_is_one_file(make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "verdict_line.py").write_text(
        'SUFFIX, TITLE = ".txt", "Text"\n\ndef to_text(report, *, strict=False):\n    return f"{report.name} {report.verdict} {strict}"\n'
    )
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    assert ".txt (Text)" in describe_formats()
    write(tmp_path / "report.txt", make.stage(make.output()), strict=True)
    assert (tmp_path / "report.txt").read_text() == "encoder pass True"


def test_strict_makes_a_warning_a_failure_only_where_a_format_knows_no_warnings(make: SimpleNamespace) -> None:
    warning = make.stage(make.output(), verdict="warn")
    differing = [suffix for suffix, module in known_formats().items() if module.to_text(warning, strict=True) != module.to_text(warning)]
    assert differing == [".xml"]


@pytest.mark.parametrize("name", ["report.pdf", "report", "report.json.gz"])
def test_an_unknown_suffix_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(ConfigError, match=r"the suffix chooses the format; \.html \(HTML\), .* are known"):
        check_formats([Path("report.json"), Path(name)])


def test_json_is_written_as_it_always_was(make: SimpleNamespace, tmp_path: Path) -> None:
    from coreflow.validate.report.json import to_json, write_report

    report = make.whole()
    write(tmp_path / "one.json", report)
    write_report(tmp_path / "other.json", report)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "other.json").read_bytes()
    assert json.loads((tmp_path / "one.json").read_text()) == json.loads(json.dumps(to_json(report)))
