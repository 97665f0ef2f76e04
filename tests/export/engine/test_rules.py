"""Every rule of the engine finds its planted instance at the right op, on the right chips only, and not the healthy twin."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coreflow.export.engine.chips import CHIPS, find_chip
from coreflow.export.engine.lint import lint_program
from coreflow.export.engine.rule import engine_rules
from coreflow.export.engine.targets import labels
from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.graph import Program
from coreflow.export.package.mlpackage import read_program
from coreflow.models.errors import ConfigError

RULES = {rule.id: rule for rule in engine_rules()}
Build = Callable[[Any, Any], Any]  # the builder and the input


def saved(shape: tuple[int, ...], build: Build, folder: Path) -> Program:
    """The program with one fp16 input that ``build`` makes, saved by coremltools for iOS18 and read again."""
    ct = quiet_coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    @mb.program(input_specs=[mb.TensorSpec(shape, types.fp16)], opset_version=ct.target.iOS18)  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        return build(mb, x)

    package = folder / "planted.mlpackage"
    ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True).save(str(package))
    return read_program(package)


# By rule: the shape of x, the planted instance, the healthy twin, the op at which it is found, and the chips.
Case = tuple[tuple[int, ...], Build, Build, str, tuple[str, ...]]
CASES: dict[str, Case] = {
    "softplus": ((1, 64), lambda mb, x: mb.softplus(x=x, name="here"), lambda mb, x: mb.relu(x=x), "here", ("M4", "M5")),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_finds_its_planted_instance_and_not_the_healthy_twin(rule: str, tmp_path: Path) -> None:
    shape, planted, healthy, op, chips = CASES[rule]
    program = saved(shape, planted, tmp_path)
    findings = lint_program(program, rules=[RULES[rule]])
    assert [(finding.rule, finding.function, finding.op, finding.chips) for finding in findings] == [(rule, "main", op, chips)]
    for chip in CHIPS:
        assert [finding.chips for finding in lint_program(program, [chip], [RULES[rule]])] == ([(chip,)] if chip in chips else [])
    assert not lint_program(saved(shape, healthy, tmp_path), rules=[RULES[rule]])


def test_every_rule_says_how_it_is_known_and_what_to_do() -> None:
    assert len(RULES) == len(engine_rules())
    for rule in RULES.values():
        assert rule.title and rule.known.text and rule.known.evidence.source and rule.remedy
        assert rule.known.evidence.label in labels()
        assert set(rule.chips) <= set(CHIPS)


def test_chips_go_by_name_and_a_foreign_one_is_named() -> None:
    assert [find_chip(name).family for name in ("m4", "M4Pro", "M1/macOS14", "H16G", "M2 Max", "H19")] == [
        "M4",
        "M4",
        "M1",
        "M4",
        "M2",
        "H19",
    ]
    for name in ("banana", "M7", "A17"):
        with pytest.raises(ConfigError, match=f"no chip '{name}'; M1, M2"):
            find_chip(name)
