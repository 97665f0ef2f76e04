"""``coreflow lint`` of packages and bundles: what it prints, as text, JSON and SARIF, what is accepted with a reason, and its errors."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from coreflow.cli.main import main
from coreflow.export.engine.chips import CHIPS
from coreflow.export.lint.catalogue import catalogue
from tests.export.engine.planted import ROW, saved

Lint = Callable[..., tuple[int, str, str]]
RULES = {entry.id for entry in catalogue()}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An error on M5 (a lost factor), and a warning on M4 and M5 (softplus)."""
    folder = tmp_path_factory.mktemp("lint")

    def build(mb: Any, x: Any) -> Any:
        return mb.mul(x=mb.floor(x=mb.softplus(x=x, name="soft")), y=np.float16(3), name="scaled")

    saved(ROW, build, folder / "two faults.mlpackage")
    return folder / "two faults.mlpackage"


@pytest.fixture
def lint(package: Path, capsys: pytest.CaptureFixture[str]) -> Lint:
    def run(*arguments: object, source: Path = package) -> tuple[int, str, str]:
        code = main(["lint", str(source), *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_text_groups_by_severity_and_has_a_column_a_chip(lint: Lint) -> None:
    code, text, _ = lint()
    assert code == 1
    assert text.index("errors:") < text.index("warnings:") < text.index("notes:")
    header = next(line for line in text.splitlines() if line.startswith("rule"))
    assert header.split()[1:7] == list(CHIPS)
    (row,) = (line.split()[:8] for line in text.splitlines() if line.startswith("lost-factor"))
    assert row == ["lost-factor", "-", "-", "-", "-", "1", "-", "static"]
    (row,) = (line.split()[:8] for line in text.splitlines() if line.startswith("softplus"))
    assert row == ["softplus", "-", "-", "-", "1", "1", "-", "open"]
    for part in ("two faults.mlpackage: main/soft", "coremltools issues 2687", "instead: write relu(x)", "measured:", "1 error, "):
        assert part in " ".join(text.split())


def test_places_of_one_rule_are_folded_with_a_count(lint: Lint, tmp_path: Path) -> None:
    def build(mb: Any, x: Any) -> Any:
        for place in range(9):
            x = mb.softplus(x=x, name=f"soft_{place}")
        return x

    saved(ROW, build, tmp_path / "nine.mlpackage")
    _, text, _ = lint(source=tmp_path / "nine.mlpackage")
    assert "main/soft_2" in text and "main/soft_3" not in text and "and 6 more" in text


def test_chips_choose_the_findings(lint: Lint) -> None:
    assert lint("--chip", "M4")[0] == 0  # the factor is lost on an M5 alone
    assert lint("--chip", "M4", "--chip", "M5")[0] == 1
    assert "softplus" not in lint("--chip", "M2")[1]


@pytest.mark.parametrize(("least", "chip", "code"), [("error", "M4", 0), ("warning", "M4", 1), ("warning", "M2", 0), ("note", "M2", 1)])
def test_the_exit_code_is_by_severity(lint: Lint, least: str, chip: str, code: int) -> None:
    assert lint("--fail-on", least, "--chip", chip)[0] == code


def test_json_keeps_its_keys_and_adds_others(lint: Lint) -> None:
    code, out, _ = lint("--json")
    findings = {finding["rule"]: finding for finding in json.loads(out)}
    soft = findings["softplus"]
    assert code == 1
    assert [soft[key] for key in ("name", "rule", "place")] == ["two faults.mlpackage", "softplus", "main/soft"]
    assert soft["title"] and soft["remedy"] and soft["suppressed"] is None
    assert [soft[key] for key in ("severity", "strength", "op", "op_type", "chips")] == [
        "warning",
        "open",
        "soft",
        "softplus",
        ["M4", "M5"],
    ]
    assert soft["known"]["evidence"]["label"] == "measured" and "2687" in soft["known"]["evidence"]["source"]


def test_a_suppression_names_rule_place_and_reason(lint: Lint, tmp_path: Path) -> None:
    code, text, err = lint("--suppress", "lost-factor@main/sca*: the rounding stays on the CPU")
    assert (code, err) == (0, "")
    assert "1 suppressed" in text and "suppressed: lost-factor, the rounding stays on the CPU" in text and "errors:" not in text
    file = tmp_path / "lint.toml"
    file.write_text('[lint.suppress]\n"lost-factor" = "the rounding stays on the CPU"\n')
    assert lint("--suppressions", file)[0] == 0
    (finding,) = (finding for finding in json.loads(lint("--suppressions", file, "--json")[1]) if finding["rule"] == "lost-factor")
    assert finding["suppressed"] == "the rounding stays on the CPU"
    code, _, err = lint("--suppress", "lost-factor@step/*:another function")
    assert code == 1 and "nothing is suppressed by lost-factor@step/*" in err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--chip", "A17"], "no chip 'A17'; M1, M2, M3, M4, M5, M6 are right"),
        (["--fail-on", "doubt"], "--fail-on doubt: no such severity; error, warning, note are right"),
        (["--suppress", "no-such:reason"], "no rule 'no-such'; coreflow lint --rules lists them"),
        (["--suppress", "softplus"], "the suppression of softplus has no reason; RULE:REASON or RULE@PLACE:REASON is right"),
        (["--suppress", "softplus: "], "the suppression of softplus has no reason"),
        (["--suppressions", "{empty}"], "has no table [lint.suppress]"),
        (["--suppressions", "{torn}"], "cannot be read as TOML"),
        (["--suppressions", "{number}"], "the suppression of softplus has no reason"),
        (["--suppressions", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["--sarif", "nowhere/out.sarif"], "--sarif nowhere/out.sarif cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_error_line(lint: Lint, tmp_path: Path, arguments: list[str], error: str) -> None:
    for name, text in (("empty", ""), ("torn", "[lint"), ("number", "[lint.suppress]\nsoftplus = 3\n")):
        (tmp_path / name).write_text(text)
    code, out, err = lint(
        *(argument.format(empty=tmp_path / "empty", torn=tmp_path / "torn", number=tmp_path / "number") for argument in arguments)
    )
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and error in err and err.count("error:") == 1


TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
LEVELS = {"enum": ["none", "note", "warning", "error"]}
# What SARIF 2.1.0 requires of the parts that are written (sections 3.13, 3.14, 3.18, 3.19, 3.27, 3.28, 3.29, 3.33, 3.35 and 3.49).
SARIF: dict[str, Any] = {
    "type": "object",
    "required": ["version", "runs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tool"],
                "properties": {
                    "tool": {"required": ["driver"], "properties": {"driver": {"$ref": "#/definitions/driver"}}},
                    "results": {"type": "array", "items": {"$ref": "#/definitions/result"}},
                },
            },
        },
    },
    "definitions": {
        "driver": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "rules": {
                    "type": "array",
                    "uniqueItems": True,
                    "items": {
                        "type": "object",
                        "required": ["id"],
                        "properties": {
                            "shortDescription": TEXT,
                            "fullDescription": TEXT,
                            "help": TEXT,
                            "defaultConfiguration": {"properties": {"level": LEVELS}},
                        },
                    },
                }
            },
        },
        "result": {
            "type": "object",
            "required": ["message", "ruleId", "locations"],
            "properties": {
                "message": TEXT,
                "level": LEVELS,
                "ruleIndex": {"type": "integer", "minimum": 0},
                "suppressions": {"items": {"required": ["kind"], "properties": {"kind": {"enum": ["inSource", "external"]}}}},
            },
        },
    },
}


def test_sarif_says_where_in_which_file_and_what_is_suppressed(lint: Lint, package: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.sarif"
    assert lint("--sarif", file, "--suppress", "softplus:inputs are below 4")[0] == 1
    plain = json.loads(file.read_text())
    jsonschema.validate(plain, SARIF)
    (run,) = plain["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert {rule["id"] for rule in rules} == RULES
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    (lost,) = (result for result in run["results"] if result["ruleId"] == "lost-factor")
    (location,) = lost["locations"]
    assert (lost["level"], "suppressions" in lost) == ("error", False)
    assert location["physicalLocation"]["artifactLocation"]["uri"].endswith("/two%20faults.mlpackage")
    assert location["logicalLocations"] == [{"fullyQualifiedName": "main/scaled", "name": "scaled"}]
    (soft,) = (result for result in run["results"] if result["ruleId"] == "softplus")
    assert soft["suppressions"] == [{"kind": "external", "justification": "inputs are below 4"}]


def test_rules_are_listed_with_chips_and_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "--rules"]) == 0
    text = capsys.readouterr().out
    assert all(f"{rule} " in text for rule in RULES)
    assert main(["lint", "--rules", "--json"]) == 0
    listed = {rule["id"]: rule for rule in json.loads(capsys.readouterr().out)}
    assert listed.keys() == RULES
    assert (listed["softplus"]["about"], listed["softplus"]["chips"]) == ("engine", ["M4", "M5"])
    assert (listed["diagonal"]["about"], listed["diagonal"]["source"]) == ("converter", "coremltools issue 2565")


def test_a_package_is_linted_without_torch(package: Path) -> None:
    program = (
        f"import sys; sys.modules['torch'] = None\nfrom coreflow.cli.main import main\nraise SystemExit(main(['lint', {str(package)!r}]))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (1, "")


def test_the_demo_has_no_error(exported: Path, lint: Lint) -> None:
    code, text, _ = lint(source=exported / "bundle")
    assert code == 0 and "errors:" not in text


USER = """
from torch import Tensor, nn
from torch.nn import functional
from coreflow.export import Recipe, TensorSpec

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64)
    def forward(self, x: Tensor) -> Tensor:
        y = functional.gelu(self.linear(x))
        return y.floor() * 3  # line 12

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.cumsum(-1)  # line 21

INPUTS = {"x": TensorSpec((2, 64), bounds=(-8, 8))}
TRACE = Recipe(name="net", module=Net(), inputs=INPUTS, outputs=("y",), front_end="trace")
EXPORT = Recipe(name="net", module=Net(), inputs=INPUTS, outputs=("y",), front_end="export")
"""


@pytest.mark.parametrize("name", ["TRACE", "EXPORT"])
def test_a_recipe_is_converted_for_a_chip_and_findings_have_its_lines(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(USER)
    assert main(["lint", f"{tmp_path}/net.py:{name}", "--chip", "M5", "--json", "--sarif", str(tmp_path / "out.sarif")]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert {finding["name"] for finding in findings} == {"net"}
    lines = [(finding["rule"], finding["place"], finding["line"]) for finding in findings if finding["op"]]
    assert lines == [*2 * [("lost-factor", "net.py:12", 12)], ("never-on-engine", "net.py:21", 21)]
    (run,) = json.loads((tmp_path / "out.sarif").read_text())["runs"]
    (place, *_) = (result["locations"][0]["physicalLocation"] for result in run["results"] if result["ruleId"] == "lost-factor")
    assert place == {"artifactLocation": {"uri": f"{tmp_path}/net.py"}, "region": {"startLine": 12}}
    assert main(["lint", f"{tmp_path}/net.py:{name}"]) == 0  # by what the module calls, without a conversion
