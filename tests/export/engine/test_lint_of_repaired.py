"""What a remedy says that ``coreflow export --engine-safe`` does, it does: the repaired program has no such finding any more."""

from pathlib import Path

import pytest

from coreflow.export.engine.lint import lint_program
from coreflow.export.engine.repair.repair import repair_program
from coreflow.export.engine.rule import engine_rules
from tests.export.engine.planted import PLANTED, Planted, saved

ALL = {rule.id: rule for rule in engine_rules()}
RULES = {name: rule for name, rule in ALL.items() if "--engine-safe" in rule.remedy}
CASES = [pytest.param(rule, planted, id=f"{rule}-{place}") for rule in RULES for place, planted in enumerate(PLANTED[rule])]


@pytest.mark.parametrize(("rule", "planted"), CASES)
def test_a_repaired_program_has_no_such_finding(rule: str, planted: Planted, tmp_path: Path) -> None:
    program = saved(planted.inputs, planted.fault, tmp_path / "planted.mlpackage")
    repaired = repair_program(program).program
    assert lint_program(program, rules=[RULES[rule]])
    assert not lint_program(repaired, rules=[RULES[rule]])


def test_a_prefix_sum_is_repaired_as_its_remedy_says(tmp_path: Path) -> None:
    planted = PLANTED["never-on-engine"][0]
    program = saved(planted.inputs, planted.fault, tmp_path / "planted.mlpackage")
    (finding,) = lint_program(program, ["M4"], [ALL["never-on-engine"]])
    assert finding.op_type == "cumsum" and "--engine-safe" in finding.remedy
    assert not lint_program(repair_program(program).program, ["M4"], [ALL["never-on-engine"]])


def test_remedies_name_the_repairs() -> None:
    assert RULES.keys() == {"softplus", "log-sum-exp", "fused-attention", "mask-of-infinity", "plain-rms-norm", "small-epsilon"}
