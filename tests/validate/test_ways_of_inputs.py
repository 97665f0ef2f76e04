"""Wrong conversions, with inputs given in every way there is: the cause is the same, or it is said which inputs are missing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Draw
from coreflow.models.errors import ConfigError
from coreflow.models.spec import Dtype, TensorSpec
from coreflow.validate import validate
from coreflow.validate.report.model import Cause, Outcome, Report
from tests.validate.conversions import FLOAT16, WHOLE, Shapes, convert, padded, rows
from tests.validate.test_wrong_conversions import Masked, Normed, Padded, PaddedWords, Residual, Scaled, padded_words, some_zero_rows
from tests.validate.test_wrong_interfaces import Twice, Words, pruned_by_half, words_up_to
from tests.validate.test_wrong_traces import Branching, Buffered, Cached, Positioned, at_positions, large, looked_up, new_keys

Ending = tuple[Outcome, Cause | None]
TRANSLATION: Ending = ("fail", "translation")
NOT_REACHED: Ending = ("pass", None)


class TanhGelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.linear(x), approximate="tanh")


@dataclass(frozen=True)
class Case:
    module: Callable[[], nn.Module]
    shapes: Shapes
    draw: Draw
    ending: Ending = TRANSLATION
    front_end: Literal["trace", "export"] = "trace"
    outputs: tuple[str, ...] = ("y",)
    bounds: Mapping[str, tuple[float, float]] | None = None  # a recipe's
    by_itself: Ending | None = None  # with inputs that the package's own specs give, if that is another one
    change: Callable[[Path, Path], Path] | None = None  # of the package, after its conversion


X, MASK = ((4, 16), FLOAT16), ((1, 8), FLOAT16)
ENCODED: Shapes = {"x": ((1, 8, 16), FLOAT16), "mask": MASK}
IS_MASK, IS_WORD, IS_POSITION = {"mask": (0.0, 1.0)}, {"ids": (0.0, 49.0), "mask": (0.0, 1.0)}, {"position": (0.0, 5.0)}
CASES: dict[str, Case] = {
    "a padding mask inverted by torch.export": Case(Padded, ENCODED, padded, front_end="export", bounds=IS_MASK),
    "the same over token ids": Case(PaddedWords, {"ids": ((1, 8), WHOLE), "mask": MASK}, padded_words, front_end="export", bounds=IS_WORD),
    "an alpha lost by torch.export": Case(Scaled, {"x": X}, rows, front_end="export"),
    "a tanh GELU lost by torch.export": Case(TanhGelu, {"x": X}, rows, front_end="export"),
    "a mask of the smallest float": Case(Masked, ENCODED, padded, ending=("fail", "non-finite"), bounds=IS_MASK),
    "zero rows in an RMS norm": Case(Normed, {"x": X}, some_zero_rows, ending=("fail", "non-finite"), by_itself=NOT_REACHED),
    "residuals above 256 in a T5 norm": Case(Residual, {"x": X}, rows, ending=("fp16-unsafe", None)),
    "a write at a tensor index": Case(
        Cached, {"x": ((1, 8), FLOAT16), "cache": ((1, 8, 6), FLOAT16), "position": ((1,), WHOLE)}, at_positions, bounds=IS_POSITION
    ),
    "a buffer that is not written": Case(Buffered, {"x": ((1, 8), FLOAT16), "position": ((1,), WHOLE)}, new_keys, bounds=IS_POSITION),
    "a position read by item()": Case(
        Positioned, {"table": ((4, 6, 8), FLOAT16), "position": ((1,), WHOLE)}, looked_up, bounds=IS_POSITION
    ),
    "a branch": Case(Branching, {"x": ((4, 8), FLOAT16)}, large, by_itself=("warn", None)),
    "one tensor as two outputs": Case(Twice, {"x": X}, rows, outputs=("surface", "copy")),
    "token ids that became floats": Case(Words, {"ids": ((1, 16), None)}, words_up_to(3000), bounds={"ids": (0.0, 2999.0)}),
    "pruning that prunes nothing": Case(
        lambda: nn.Sequential(nn.Linear(256, 260)),
        {"x": ((1, 256), FLOAT16)},
        lambda seed: {"x": np.random.default_rng(seed).standard_normal((1, 256)).astype(FLOAT16)},
        change=pruned_by_half,
    ),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, nn.Module]]:
    made: dict[str, tuple[Path, nn.Module]] = {}

    def convert_once(name: str) -> tuple[Path, nn.Module]:
        if name not in made:
            case, folder = CASES[name], tmp_path_factory.mktemp("wrong")
            torch.manual_seed(1)
            module = case.module().eval()
            package = convert(module, folder, case.shapes, case.outputs, front_end=case.front_end)
            made[name] = (package if case.change is None else case.change(package, folder / "changed.mlpackage")), module
        return made[name]

    return convert_once


def recipe_with_bounds(case: Case, module: nn.Module) -> Recipe:
    def spec(name: str) -> TensorSpec:
        array = case.draw(0)[name]
        dtype: Dtype = "int32" if array.dtype.kind == "i" else "float16"
        return TensorSpec(array.shape, dtype, (case.bounds or {}).get(name))

    return Recipe(name="user", module=module, inputs={name: spec(name) for name in case.shapes}, outputs=case.outputs)


WAYS: dict[str, Callable[[Path, nn.Module, Case], Report]] = {
    "nothing": lambda package, module, case: validate(package, module),
    "draws": lambda package, module, case: validate(package, module, draw=case.draw),
    "samples": lambda package, module, case: validate(package, module, [case.draw(seed) for seed in range(4)]),
    "bounds": lambda package, module, case: validate(package, recipe_with_bounds(case, module)),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("way", [pytest.param(way, marks=pytest.mark.slow) if way in ("draws", "bounds") else way for way in WAYS])
@pytest.mark.parametrize("name", CASES)
def test_a_wrong_conversion_has_its_cause_however_inputs_are_given(
    name: str, way: str, converted: Callable[[str], tuple[Path, nn.Module]]
) -> None:
    case, (package, module) = CASES[name], converted(name)
    has_integers = any(dtype is WHOLE for _, dtype in case.shapes.values())
    if way == "nothing" and has_integers:
        with pytest.raises(ConfigError, match="without bounds; give"):
            WAYS[way](package, module, case)
        return
    report = WAYS[way](package, module, case)
    ending = case.ending if case.by_itself is None or way in ("draws", "samples") else case.by_itself
    assert (report.verdict, report.cause) == ending, report.text
