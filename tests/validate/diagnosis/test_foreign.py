"""Packages that were made of other weights than the reference has: told by the digest that the export wrote."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coreflow.export.package.mlpackage import read_program
from coreflow.models.spec import RECIPE_KEY
from coreflow.validate import validate
from coreflow.validate.diagnosis.foreign import find_foreign_weights

SAID = "the module has other weights than those that were exported"


@pytest.mark.slow
def test_an_unseeded_recipe_is_told_from_wrong_weights(converted: Any) -> None:
    report = validate(converted.package, converted.recipe(seed=1), backend="lifted", quick=True)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "weights", 1)
    assert report.text.startswith(SAID) and report.problems[0].startswith(SAID)


@pytest.mark.slow
def test_a_package_whose_weights_changed_after_the_export_is_not(converted: Any, tmp_path: Path) -> None:
    def fault(weights: dict[str, Any]) -> None:
        weights["layers.1.contract.weight"][:, :16] = 0

    report = validate(converted.with_fault(tmp_path / "network.mlpackage", fault), converted.recipe(), backend="lifted", quick=True)
    assert (report.verdict, report.cause) == ("fail", "weights") and SAID not in report.text and not report.problems


@pytest.mark.parametrize("written", [None, "", "{", "[]", "{}", "7"], ids=repr)
def test_nothing_is_said_of_a_package_from_elsewhere(converted: Any, written: str | None) -> None:
    program = read_program(converted.package)
    other = converted.recipe(seed=1).module
    assert find_foreign_weights(program, other).startswith(SAID)
    metadata = replace(program.metadata, user={} if written is None else {RECIPE_KEY: written})
    assert find_foreign_weights(replace(program, metadata=metadata), other) == "" == find_foreign_weights(program, None)
    assert find_foreign_weights(program, converted.recipe().module) == ""
