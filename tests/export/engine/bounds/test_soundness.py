"""No input within its bounds makes a value that exceeds a proved bound: random programs, the lifted backend as the oracle."""

from typing import Any

import numpy as np
import pytest
import torch

from coreflow.export.engine.bounds.analysis import Bounds, bounds_of
from coreflow.export.engine.bounds.bound import Ball, Bound
from coreflow.export.engine.bounds.slack import EXACT, STORED
from coreflow.export.package.graph import Op
from coreflow.runtime.lift.engines.interpreter import Interpreter
from coreflow.runtime.lift.numerics.named import numerics_named
from tests.export.engine.bounds import layers
from tests.export.engine.bounds.programs import FAMILIES, Writer, samples

assert layers.loops in FAMILIES.values()  # its families are registered


# What float64 itself rounds a number by that should be 0; near 0 a root of that is 3e-7.
ZERO = 1e-13


def exceeds(bound: Bound, actual: Any, zero: float = ZERO) -> str:
    """How a result lies outside its bound; empty where it does not."""
    # float64 rounds, too: by 1e-9 of the magnitudes that were added, which a bound has for its own; erf near -1 by 1e-16 of x.
    spare = 1e-9 * np.where(np.isfinite(bound.magnitude), bound.magnitude, 0) + zero
    with np.errstate(invalid="ignore"):
        outside = (actual < bound.low - spare) | (actual > bound.high + spare)
    if outside.any():
        return f"{actual[outside][0]} outside of {bound.lowest} to {bound.highest}"
    if bound.shares is not None and np.isfinite(actual).all():
        total = actual.sum(bound.shares)
        if (np.abs(total - 1) > bound.excess + 1e-9).any() or (actual < 0).any():
            return f"shares of {total}"
    for axis in range(bound.rank):
        ball = bound.known_ball(axis)
        if ball is not None and np.isfinite(actual).all() and (problem := outside_ball(ball, actual)):
            return problem
    return ""


def outside_ball(ball: Ball, actual: Any) -> str:
    """How a result lies outside a ball: what is left of its distance from the centre beyond the error, over the scale."""
    rest = np.maximum(np.abs(actual - ball.centre) - ball.error - 1e-9 * np.abs(ball.centre) - 1e-12, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = np.where(rest == 0, 0, rest / ball.scale)
    blocks = np.stack(np.split(unit, ball.blocks, ball.axis), -1)
    lengths = np.sqrt(np.square(blocks).sum(ball.axis))
    radius = np.moveaxis(ball.radius, ball.axis, -1)
    excess = lengths > np.broadcast_to(radius, lengths.shape) * (1 + 1e-9) + 1e-12
    return f"length {lengths[excess][0]} of a ball along {ball.axis}" if excess.any() else ""


def check(seed: int, numerics: str, count: int, families: list[str] | None = None) -> int:
    """One program on ``count`` inputs; the number of bounds that were compared."""
    random = np.random.default_rng(seed)
    graph, intervals = Writer(random).program(families=families)
    bounds: Bounds = bounds_of(graph, intervals, EXACT if numerics == "fp64" else STORED)
    interpreter = Interpreter(graph, numerics_named(numerics))  # type: ignore[arg-type]
    compared = 0
    for inputs in samples(graph, intervals, random, count):
        problems: list[str] = []
        is_over = False

        def observe(op: Op, results: tuple[Any, ...], problems: list[str] = problems) -> None:
            nonlocal compared, is_over
            for value, result in zip(op.outputs, results, strict=True):
                actual = np.asarray(result.to(torch.float64))
                # What follows a value that left fp16 (or an open division) is not claimed.
                is_over = is_over or not np.isfinite(actual).all() or bool(np.abs(actual).max(initial=0) > 65504)
                if not is_over:
                    compared += 1
                    if problem := exceeds(bounds.of(value), actual, ZERO**0.5 if op.type == "sqrt" else ZERO):
                        problems.append(f"seed {seed}: {op.type} {op.name}: {problem}")

        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        with np.errstate(all="ignore"):
            interpreter.run(tensors, observe)
        assert not problems, problems[0]
    return compared


@pytest.mark.parametrize("numerics", ["fp64", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_input_exceeds_a_bound(family: str, numerics: str) -> None:
    """Every family behind and before others."""
    compared = sum(check(seed, numerics, 4, [family, family, "arithmetic", "linear", "norms"]) for seed in range(6))
    assert compared > 40


@pytest.mark.slow
@pytest.mark.parametrize("numerics", ["fp64", "fp16"])
@pytest.mark.parametrize("part", range(10))
def test_no_input_exceeds_a_bound_in_many_programs(part: int, numerics: str) -> None:
    """Ten thousand programs."""
    first, count = part * 100_000, 500
    assert sum(check(seed, numerics, 4) for seed in range(first, first + count)) > 20 * count
