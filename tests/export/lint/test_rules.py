"""Every rule: plain coremltools is wrong on its case, which is found, its twin is right and is not, and our own export is right."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coreflow.cli.main import main
from coreflow.export.bundle import build
from coreflow.export.lint.lint import lint_conversion, lint_recipe
from coreflow.export.lint.rule import Function, Rule, all_rules
from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.mlpackage import read_program
from coreflow.runtime.backend import LoadOptions
from coreflow.runtime.lifted import LiftedModel

RULES = {rule.id: rule for rule in all_rules()}


def plain(rule: Rule, function: Function, folder: Path) -> Path:
    """What a user saves with coremltools alone."""
    ct = quiet_coremltools()
    logging.getLogger("coremltools").setLevel(logging.CRITICAL)
    recipe = rule.recipe(function)
    x = torch.from_numpy(rule.draw(0)["x"]).float()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        whole = not recipe.module(x).is_floating_point()
        program: Any = (
            torch.jit.trace(recipe.module, x, check_trace=False)
            if rule.front_end == "trace"
            else torch.export.export(recipe.module, (x,), strict=False).run_decompositions({})
        )
        dtype = np.float16 if rule.precision == "fp16" else np.float32
        model = ct.convert(
            program,
            inputs=[ct.TensorType(name="x", shape=tuple(x.shape), dtype=dtype)],
            outputs=[ct.TensorType(name="y", dtype=np.int32 if whole else dtype)],
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT16 if rule.precision == "fp16" else ct.precision.FLOAT32,
            skip_model_load=True,
        )
    package = folder / f"{function.__name__}.mlpackage"
    model.save(str(package))
    return package


def is_right(rule: Rule, function: Function, package: Path) -> bool:
    """Whether a package gives what torch gives, on every one of three draws; rounded after every op where its precision is fp16."""
    options = LoadOptions(numerics="fp16" if rule.precision == "fp16" else "fp64", engine="interpreter")
    model = LiftedModel(read_program(package), options)
    tolerance = 2e-2 if rule.precision == "fp16" else 1e-6
    for seed in range(3):
        x = rule.draw(seed)["x"]
        expected = rule.recipe(function).module(torch.from_numpy(x).double()).numpy()
        actual = model.predict({"x": x})["y"]
        if actual.shape != expected.shape or not np.allclose(actual, expected, rtol=tolerance, atol=tolerance):
            return False
    return True


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_true_of_coremltools_and_not_of_coreflow(name: str, tmp_path: Path) -> None:
    rule = RULES[name]
    wrong, right = plain(rule, rule.case, tmp_path), plain(rule, rule.healthy, tmp_path)
    assert not is_right(rule, rule.case, wrong), f"coremltools converts {name} rightly now: the rule has had its time"
    assert is_right(rule, rule.healthy, right)
    in_module = [finding.rule for finding in lint_recipe(rule.recipe(rule.case), [rule])]
    in_program = [finding.rule for finding in lint_conversion(read_program(wrong), [rule])]
    assert {*in_module, *in_program} == {name}
    assert not lint_recipe(rule.recipe(rule.healthy)) and not lint_conversion(read_program(right))
    ours = build(rule.recipe(rule.case), tmp_path / "ours")
    assert is_right(rule, rule.case, ours)
    assert not lint_conversion(read_program(ours))


def test_every_rule_says_what_to_do() -> None:
    assert len(RULES) == len(list(all_rules())) >= 10
    assert all(rule.title and rule.source and rule.remedy for rule in RULES.values())


def test_a_batch_norm_that_was_never_trained_is_no_scale_and_shift(tmp_path: Path) -> None:
    def untrained(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.batch_norm(x, torch.zeros(3), torch.ones(3), torch.ones(3), torch.zeros(3))

    program = read_program(plain(RULES["scale-and-shift"], untrained, tmp_path))
    assert any(op.type == "batch_norm" for op in program.function()[0].ops)
    assert not lint_conversion(program)


USER = """
from torch import nn
from coreflow.export import Recipe, TensorSpec

class Normal(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm
    def forward(self, x):
        return self.norm(x)

WRONG = Recipe(name="wrong", module=Normal(nn.RMSNorm(4)), inputs={"x": TensorSpec((2, 4))}, outputs=("y",))
RIGHT = Recipe(name="right", module=Normal(nn.LayerNorm(4)), inputs={"x": TensorSpec((2, 4))}, outputs=("y",))
"""


def test_the_command_names_rule_and_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "user.py"
    file.write_text(USER)
    assert main(["lint", f"{file}:WRONG", "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert (finding["name"], finding["rule"]) == ("wrong", "rms-norm") and "layer norm" in finding["remedy"]
    assert main(["lint", f"{file}:RIGHT"]) == 0
    assert "nothing known to go wrong" in capsys.readouterr().out
    assert main(["lint", "--rules", "--json"]) == 0
    assert {rule["id"] for rule in json.loads(capsys.readouterr().out) if rule["about"] == "converter"} == RULES.keys()
    assert main(["lint"]) == 2
    assert main(["lint", str(tmp_path / "none.mlpackage")]) == 3
