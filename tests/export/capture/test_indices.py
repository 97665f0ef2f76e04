"""Negative indices: the converter's guard stays where they may come, and a package without it is found out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Draw
from coreflow.models.spec import TensorSpec
from coreflow.validate import validate


class Picks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.layer(x)[ids.long()]


class Last(Picks):
    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.layer(x)[torch.tensor([-1, 0])] + ids


class Before(Picks):
    """One place before: -1 where an id is 0."""

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.layer(x)[(ids - 1).long()]


class Embeds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(5, 16)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return x[:2] + self.table(ids)


def recipe(module: nn.Module, low: int | None = 0, draw: Draw | None = None) -> Recipe:
    ids = TensorSpec((2, 1) if isinstance(module, Last) else (2,), "int32", bounds=None if low is None else (low, 4))
    return Recipe(name="picks", module=module.eval(), inputs={"x": TensorSpec((5, 16)), "ids": ids}, outputs=("y",), draw=draw)


def by_hand(low: int) -> Draw:
    def draw(seed: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        ids = random.integers(low, 5, (2,)).astype(np.int32)
        return {"x": random.standard_normal((5, 16)).astype(np.float16), "ids": ids}

    return draw


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("make", "guarded"),
    [
        (lambda: recipe(Picks()), False),
        (lambda: recipe(Picks(), -5), True),
        (lambda: recipe(Picks(), None, by_hand(0)), True),
        (lambda: recipe(Before()), True),
        (lambda: recipe(Last()), False),  # folded: no index is computed
        (lambda: recipe(Embeds()), False),
        (lambda: recipe(Embeds(), None, by_hand(0)), False),
    ],
    ids=["bounds from 0", "bounds from -5", "no bounds", "computed", "constant", "embedding", "embedding without bounds"],
)
def test_the_guard_stays_where_indices_may_be_negative(make: Callable[[], Recipe], guarded: bool, tmp_path: Path) -> None:
    picks = make()
    package = build(picks, tmp_path)
    graph, _ = read_program(package).function()
    assert ("select" in {op.type for op in graph.walk()}) == guarded
    assert validate(package, picks).verdict == "pass"


def shifted(low: int) -> Draw:
    """As ``by_hand``, with the ids as floats, which no bounds tell of."""

    def draw(seed: int) -> dict[str, np.ndarray]:
        arrays = by_hand(low)(seed)
        return {"x": arrays["x"], "ids": arrays["ids"].astype(np.float16)}

    return draw


def test_a_package_without_the_guard_is_found_out(tmp_path: Path) -> None:
    """Exported on ids from 0 on and used with others: whatever is right here would be undefined on a device."""
    inputs = {"x": TensorSpec((5, 16)), "ids": TensorSpec((2,))}
    picks = Recipe(name="picks", module=Picks().eval(), inputs=inputs, outputs=("y",), draw=shifted(0))
    package = build(picks, tmp_path)
    assert validate(package, picks).verdict == "pass"
    report = validate(package, picks, draw=shifted(-5))
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "translation", 4)
    assert "gather" in report.text and "is negative, and since iOS17 none counts from the end" in report.text


def test_an_index_that_the_reference_refuses_too_is_no_fault_of_the_package(tmp_path: Path) -> None:
    package = build(recipe(Embeds(), None, by_hand(0)), tmp_path)
    report = validate(package, recipe(Embeds(), None, by_hand(-5)))
    assert (report.verdict, report.cause) == ("warn", None), "the other samples are judged"
    assert "the reference Embeds does not run" in report.problems[0]
