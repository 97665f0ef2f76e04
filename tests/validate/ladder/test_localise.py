"""What the walk says of single ops, against their definitions."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.package.graph import Program
from coreflow.export.package.mlpackage import read_program
from coreflow.export.package.op_facts import facts_of
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Array
from coreflow.models.spec import TensorSpec
from coreflow.runtime.backend import LoadOptions
from coreflow.runtime.lifted import LiftedModel
from coreflow.validate.ladder.localise import Localiser
from coreflow.validate.ladder.tally import ROUNDING, smallest_of
from coreflow.validate.report.model import OpReport


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def converted(function: Callable[[Tensor], Tensor], shape: tuple[int, ...], folder: Path) -> Program:
    """A program that computes ``function``."""
    return read_program(build(Recipe(name="apply", module=Apply(function), inputs={"x": TensorSpec(shape)}, outputs=("y",)), folder))


def look_at(program: Program, *samples: Array) -> tuple[Localiser, dict[str, OpReport]]:
    """The op reports by type of a program."""
    localiser = Localiser(*(LiftedModel(program, LoadOptions(numerics=numerics, engine="interpreter")) for numerics in ("fp16", "fp64")))
    assert len(list(localiser.run([{"x": sample} for sample in samples]))) == len(samples)
    return localiser, {report.type: report for report in localiser.reports({})}


def looked_at(function: Callable[[Tensor], Tensor], folder: Path, *samples: Array) -> tuple[Localiser, dict[str, OpReport]]:
    """The op reports by type of a program that computes ``function``."""
    return look_at(converted(function, samples[0].shape, folder), *samples)


def draw(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float16)


def test_the_rounding_of_normal_numbers_is_the_constant() -> None:
    values = np.random.default_rng(0).standard_normal(1_000_000)
    relative = math.sqrt(np.mean((values.astype(np.float16) - values) ** 2) / np.mean(values**2))
    assert relative == pytest.approx(ROUNDING, rel=0.05)


def test_local_and_accumulated_errors_are_those_of_the_definition(tmp_path: Path) -> None:
    samples = draw(2, 64), draw(2, 64) * np.float16(0.5)
    _, ops = looked_at(lambda x: torch.sigmoid(torch.tanh(x)), tmp_path, *samples)
    rounded = [np.tanh(sample.astype(np.float32)).astype(np.float16) for sample in samples]
    references = [1 / (1 + np.exp(-x.astype(np.float64))) for x in rounded]
    local = [reference.astype(np.float16) - reference for reference in references]
    rms = math.sqrt(sum(float((values**2).sum()) for values in local) / sum(float((values**2).sum()) for values in references))
    assert ops["sigmoid"].local_rho == pytest.approx(rms / ROUNDING, rel=1e-3)
    exact = [1 / (1 + np.exp(-np.tanh(sample.astype(np.float64)))) for sample in samples]
    error = sum(float(((near.astype(np.float16) - true) ** 2).sum()) for near, true in zip(references, exact, strict=True))
    assert ops["sigmoid"].accumulated == pytest.approx(math.sqrt(error / sum(float((values**2).sum()) for values in exact)), rel=1e-3)
    assert 0.3 < ops["tanh"].ulps <= 0.5 and ops["tanh"].ulps_limit == 2
    assert ops["tanh"].largest == pytest.approx(float(np.abs(rounded[0]).max()))


def test_predictions_are_those_of_the_two_models(tmp_path: Path) -> None:
    localiser, _ = looked_at(lambda x: torch.exp(x) * 3, tmp_path, draw(1, 8))
    inputs = {"x": draw(1, 8)}
    (sides,) = localiser.run([inputs])
    for actual, model in zip(sides, (localiser.model_fp16, localiser.model_fp64), strict=True):
        reference = model.predict(inputs)
        assert list(actual) == list(reference) and all(np.array_equal(actual[name], reference[name]) for name in reference)


def test_a_difference_of_large_numbers_amplifies_and_loses_nothing_itself(tmp_path: Path) -> None:
    _, ops = looked_at(lambda x: torch.relu(torch.tanh(x) + 500.0) - 500.0, tmp_path, draw(1, 64))
    assert ops["sub"].amplification > 100 and ops["sub"].local_rho < 0.1
    assert ops["add"].amplification < 3 and ops["add"].local_rho > 0.5


def test_overflow_and_underflow_are_counted_where_they_happen(tmp_path: Path) -> None:
    x = np.array([[1.0, 2.0, 300.0, 400.0]], np.float16)
    _, ops = looked_at(torch.square, tmp_path / "large", x)
    assert next(iter(ops.values())).overflowed == 2
    _, ops = looked_at(torch.square, tmp_path / "small", np.array([[1e-4, 2e-4, 1.0, 0.0]], np.float16))
    assert next(iter(ops.values())).underflowed == 0.5


@pytest.mark.parametrize(("scale", "reached"), [(1.0, False), (40.0, True)])
def test_unreached_ranges_are_reported(tmp_path: Path, scale: float, reached: bool) -> None:
    _, ops = looked_at(torch.exp, tmp_path, np.clip(draw(1, 64), -1, 1) * np.float16(scale))
    (report,) = [report for name, report in ops.items() if name.startswith("exp")]
    assert bool(report.never_exercised) is not reached
    assert reached or "11.09" in report.never_exercised[0]


def test_terms_are_those_that_are_added_up(tmp_path: Path) -> None:
    linear, conv = nn.Linear(48, 5).requires_grad_(False), nn.Conv1d(6, 4, 3).requires_grad_(False)

    def function(x: Tensor) -> Tensor:
        return linear(x).sum(-1) + conv(x.reshape(1, 6, 8)).mean((1, 2))

    localiser, _ = looked_at(function, tmp_path, draw(1, 48))
    terms: dict[str, Any] = {op.type: facts_of(op.type).terms(op) for op in localiser.ops}
    assert (terms["linear"], terms["conv"], terms["reduce_sum"], terms["reduce_mean"]) == (48, 18, 5, 24)
    assert terms["add"] == 1


@settings(max_examples=200, deadline=None, derandomize=True)
@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9), double=st.booleans())
def test_the_smallest_magnitude_is_that_of_a_search(values: list[float], double: bool) -> None:
    tensor = torch.tensor(values, dtype=torch.float64 if double else torch.float32)
    assert smallest_of(tensor) == min((abs(value) for value in values if value), default=math.inf)


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Program]:
    """Programs that multiply by a number, by that number."""
    return {factor: converted(lambda x: x * factor, (1, 4), tmp_path_factory.mktemp("product")) for factor in (0.033, 33.0)}  # noqa: B023


@settings(max_examples=30, deadline=None, derandomize=True)
@given(exponents=st.lists(st.integers(-24, 14), min_size=4, max_size=4), zero=st.booleans(), factor=st.sampled_from([0.033, 33.0]))
def test_ranges_are_those_of_the_rounded_results(products: dict[float, Program], exponents: list[int], zero: bool, factor: float) -> None:
    """Also where some results fall to zero, all do, or one is too large."""
    x = np.array([[1.1 * 2.0**exponent for exponent in exponents[:3]] + [0.0 if zero else -1.3 * 2.0 ** exponents[3]]], np.float16)
    _, ops = look_at(products[factor], x)
    (report,) = (op for name, op in ops.items() if name == "mul")
    with np.errstate(over="ignore"):
        results = (x.astype(np.float32) * np.float32(np.float16(factor))).astype(np.float16)
    finite = np.abs(results[np.isfinite(results)]).astype(np.float64)
    assert report.largest == finite.max(initial=0.0)
    assert report.smallest == min(finite[finite > 0], default=0.0)
    assert report.overflowed == np.isinf(results).sum()


class Rows(nn.Module):
    """Linear layers of one row and of many, and something beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.few, self.many = nn.Linear(48, 32), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.few(x)) + self.many(x.reshape(1, 6, 8).repeat(1, 4, 1)).sum((1, 2), keepdim=True).reshape(1, 1)


def test_samples_walked_together_give_the_results_of_samples_walked_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    recipe = Recipe(name="rows", module=Rows().eval(), inputs={"x": TensorSpec((1, 48))}, outputs=("y",))
    program = read_program(build(recipe, tmp_path))
    samples = [{"x": recipe.inputs_for(seed)["x"]} for seed in range(5)]
    runs = []
    for room in (0.0, 256e6, 3 * 12.0 * 1000):
        monkeypatch.setattr("coreflow.validate.ladder.localise._ROOM", room)
        localiser = Localiser(
            *(LiftedModel(program, LoadOptions(numerics=numerics, engine="interpreter")) for numerics in ("fp16", "fp64"))
        )
        assert room or localiser._together() == 1
        runs.append((list(localiser.run(samples)), localiser.reports({})))
    (alone, ops), *others = runs
    for together, again in others:
        for (in_fp16, in_fp64), (in_fp16_again, in_fp64_again) in zip(alone, together, strict=True):
            np.testing.assert_array_equal(in_fp16["y"], in_fp16_again["y"])
            np.testing.assert_allclose(in_fp64["y"], in_fp64_again["y"], rtol=1e-12)
        for op, op_again in zip(ops, again, strict=True):
            assert op.accumulated == pytest.approx(op_again.accumulated, rel=1e-6) and op.local_rho == op_again.local_rho


def test_the_number_of_samples_walked_together_follows_from_live_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    localiser, _ = looked_at(lambda x: torch.exp(torch.tanh(x)), tmp_path, draw(1, 1000))
    for room, together in ((24_000, 1), (48_000, 2), (72_000, 3)):  # one value read and one made, 12 bytes an element
        monkeypatch.setattr("coreflow.validate.ladder.localise._ROOM", room)
        assert localiser._together() == together
