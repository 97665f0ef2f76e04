"""A sample that cannot be compared is named, and the others are judged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Arrays
from coreflow.models.errors import InputError
from coreflow.models.spec import TensorSpec
from coreflow.validate.package import validate

ROWS = 20


class Lookup(nn.Module):
    """Ids (1, 6) -> (1, 6, 8)."""

    def __init__(self, rows: int = ROWS) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(rows, 16), nn.Linear(16, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embedding(ids)))


def samples(*outside: int) -> list[Arrays]:
    """Four samples, and one more for every id of ``outside``."""
    inside = [{"ids": np.random.default_rng(seed).integers(0, ROWS, (1, 6)).astype(np.int32)} for seed in range(4)]
    return [*inside, *({"ids": np.array([[0, 1, value, 3, 4, 5]], np.int32)} for value in outside)]


def package_of(module: nn.Module, tmp_path: Path, bounds: tuple[int, int] | None) -> tuple[Path, Recipe]:
    ids = TensorSpec((1, 6), "int32", bounds)
    draw = None if bounds else lambda seed: samples()[seed % 4]
    recipe = Recipe(name="lookup", module=module.eval(), inputs={"ids": ids}, outputs=("y",), draw=draw)
    return build(recipe, tmp_path), recipe


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ((0, ROWS - 1), "input 4: input 'ids' holds 25 at [0, 2]; 0 to 19 is right"),
        (None, "input 4: input 'ids' holds 25 at [0, 2]; the table 'embedding_weight"),
    ],
    ids=["by its bounds", "by its table"],
)
@pytest.mark.parametrize("draws", [True, False], ids=["beside drawn samples", "among given samples"])
def test_an_id_out_of_range_is_named_beside_a_verdict_on_the_others(
    bounds: tuple[int, int] | None, said: str, draws: bool, tmp_path: Path
) -> None:
    package, recipe = package_of(Lookup(), tmp_path, bounds)
    report = validate(package, recipe if draws else recipe.module, samples(25))
    (problem,) = report.problems
    assert problem.startswith(said) and (bounds is not None or "has 20 rows" in problem)
    assert (report.verdict, report.exit_code, report.samples.given) == ("warn", 0, 4), report.text
    assert report.text == problem


@pytest.mark.slow
def test_a_fault_fails_beside_such_a_sample(tmp_path: Path) -> None:
    package, recipe = package_of(Lookup(), tmp_path, (0, ROWS - 1))
    with torch.no_grad():
        recipe.module.get_parameter("out.weight")[0] += 0.1
    report = validate(package, recipe, samples(25))
    assert report.verdict == "fail" and any("holds 25" in problem for problem in report.problems), report.text


@pytest.mark.slow
def test_an_id_that_the_reference_alone_does_not_take_is_named(tmp_path: Path) -> None:
    """The package has more rows than the reference."""
    larger, smaller = Lookup(30), Lookup(ROWS)
    package, _ = package_of(larger, tmp_path, None)
    smaller.out.load_state_dict(larger.out.state_dict())
    with torch.no_grad():
        smaller.embedding.weight.copy_(larger.embedding.weight[:ROWS])
    report = validate(package, smaller, samples(25, 26))
    assert report.verdict in ("pass", "warn") and report.samples.given == 4
    assert any("input 4 and 1 more: the reference Lookup does not run" in problem for problem in report.problems), report.problems


def test_samples_that_are_all_out_of_range_are_an_error(tmp_path: Path) -> None:
    package, recipe = package_of(Lookup(), tmp_path, (0, ROWS - 1))
    with pytest.raises(InputError, match=r"input 0: input 'ids' holds 25"):
        validate(package, recipe.module, samples(25)[4:])


def test_a_misnamed_sample_is_an_error_beside_good_ones(tmp_path: Path) -> None:
    package, recipe = package_of(Lookup(), tmp_path, (0, ROWS - 1))
    with pytest.raises(InputError, match="missing 'ids'"):
        validate(package, recipe.module, [*samples(), {"tokens": samples()[0]["ids"]}])
