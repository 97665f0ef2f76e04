"""The registry of families, and that nothing outside a family's folder knows its names."""

import ast
from pathlib import Path

import pytest

from coreflow.models.energy.chain.trial import OUTPUTS
from coreflow.models.energy.family import ENERGY
from coreflow.models.errors import ConfigError
from coreflow.models.family import FAMILIES, families, family_of_preset, find_family, options_from, register

ROOT = Path(__file__).parents[2]
ROOMS = ("coreflow", "models", "export", "runtime", "validate", "cli")
NAMES = {ENERGY.kind, *(stage for output in OUTPUTS for stage in output.stages), *(output.name for output in OUTPUTS)}


def constants(path: Path) -> set[str]:
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_names_of_a_family_stand_in_its_folder_alone() -> None:
    own = ROOT / "models/energy"
    assert set().union(*(constants(path) for path in own.rglob("*.py"))) >= NAMES
    named_by_others = (own, ROOT / "export/sources/adapters")  # an encoder is one of transformers' there
    others = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if not any(map(path.is_relative_to, named_by_others))]
    assert {path.relative_to(ROOT).as_posix(): names for path in others if (names := constants(path) & NAMES)} == {}


def test_a_family_is_found_by_kind_by_preset_and_by_default() -> None:
    assert find_family(ENERGY.kind) is ENERGY
    assert find_family("recipes") is None
    assert family_of_preset(preset="debug") is ENERGY
    assert family_of_preset() is families()[0] is ENERGY
    with pytest.raises(ConfigError, match="family 'other' does not exist; choose one of energy-flow"):
        family_of_preset("other")


def test_registering_twice_is_registering_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreflow.models.family.FAMILIES", list(FAMILIES))
    register(FAMILIES[0])
    assert families() == [ENERGY]


def test_flags_that_a_family_does_not_know_are_named() -> None:
    from coreflow.models.energy.training.options import TrainingOptions

    assert options_from(TrainingOptions, {"steps": 3}, "energy-flow") == TrainingOptions(steps=3)
    with pytest.raises(ConfigError, match="--colour, --line-width: means nothing to the family energy-flow, which has preset, corpus"):
        options_from(TrainingOptions, {"colour": "red", "line_width": 3, "steps": 1}, "energy-flow")
