"""Runs saved programs on inputs of their recipe: in float64, as the Neural Engine computes, or observed op by op."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coreflow.export.engine.repair.facts import Magnitude
from coreflow.export.package.graph import Op, Program
from coreflow.export.package.mlpackage import read_program
from coreflow.export.package.summary import count_multiply_adds
from coreflow.export.recipe import Recipe
from coreflow.export.targets.declarations import PROBABILITIES
from coreflow.models.arrays import Array, Arrays
from coreflow.runtime.backend import LoadOptions, NumericsName
from coreflow.runtime.lift.numerics.named import NUMERICS
from coreflow.runtime.lifted import LiftedModel

_EXACT = 2e9  # multiply-adds of a prediction that are computed product by product, which takes some ten seconds
_STAND_IN = "M4"  # stands for chips whose arithmetic nobody has published


def run_program(
    recipe: Recipe, package: Path, samples: Sequence[Arrays], function: str | None = None, numerics: NumericsName = "fp64"
) -> dict[str, Array]:
    """By output, the values of all samples in one row; states go on from one to the next."""
    results = _predict(package, samples, function, numerics)
    if recipe.labels:
        by_class = [result[PROBABILITIES] for result in results]
        results = [
            {**result, recipe.outputs[0]: [values[label] for label in recipe.labels]}
            for result, values in zip(results, by_class, strict=True)
        ]
    return {name: np.concatenate([np.ravel(result[name]) for result in results]) for name in recipe.outputs}


def run_arrays(package: Path, samples: Sequence[Arrays], numerics: NumericsName = "fp64") -> dict[str, Array]:
    """The same of the default function of any package, for the outputs that are arrays of numbers."""
    results = _predict(package, samples, None, numerics)
    names = [name for name, value in results[0].items() if isinstance(value, np.ndarray) and value.dtype.kind in "fiu"]
    return {name: np.concatenate([np.ravel(result[name]) for result in results]) for name in names}


def _predict(package: Path, samples: Sequence[Arrays], function: str | None, numerics: NumericsName) -> list[dict[str, Any]]:
    model = LiftedModel(read_program(package), LoadOptions(numerics=numerics, engine="interpreter", function_name=function))
    state = model.make_state() if model.states else None
    return [model.predict(sample, state) for sample in samples]


def observe_magnitudes(package: Path, samples: Sequence[Arrays], function: str | None = None) -> dict[str, Magnitude]:
    """By value, how large the floats of a function are in float64 on ``samples``; a value that is not finite is infinitely large."""
    program = read_program(package)
    model = LiftedModel(program, LoadOptions(numerics="fp64", engine="interpreter", function_name=function))
    seen: dict[str, Magnitude] = {}

    def note(name: str, array: Array) -> None:
        if array.dtype.kind == "f" and array.size:
            seen[name] = _magnitude(array) if name not in seen else _larger(seen[name], _magnitude(array))

    def observe(op: Op, results: tuple[Any, ...]) -> None:
        for value, result in zip(op.outputs, results, strict=True):
            if value.kind == "tensor" and hasattr(result, "numpy"):
                note(value.name, result.detach().numpy())

    state = model.make_state() if model.states else None
    for sample in samples:
        for name, array in sample.items():
            note(name, np.asarray(array, np.float64) if np.asarray(array).dtype.kind == "f" else np.asarray(array))
        model.predict(sample, state, observe=observe)
    return seen


def engine_numerics(chip: str, program: Program, function: str | None = None) -> NumericsName:
    """The arithmetic of a chip, as ``M4``, for a function: exact, or for a large one with errors drawn by their size."""
    how = "-fast" if count_multiply_adds(program.function(function)[0]).total > _EXACT else ""
    names = [f"engine-{family.lower()}{how}" for family in (chip, _STAND_IN)]
    return min((name for name in NUMERICS if name in names), key=names.index)


def _magnitude(array: Array) -> Magnitude:
    squares = np.square(array, dtype=np.float64)
    if not np.isfinite(squares).all():
        return Magnitude(np.inf, np.inf, (np.inf,) * array.ndim)
    norms = tuple(float(np.sqrt(squares.sum(axis).max())) for axis in range(array.ndim))
    return Magnitude(float(np.sqrt(squares.max())), float(np.sqrt(squares.mean())), norms)


def _larger(one: Magnitude, other: Magnitude) -> Magnitude:
    """The larger of both; of mean squares the smaller, as small values are what precision is lost on."""
    if len(one.norms) != len(other.norms):
        return Magnitude(np.inf, np.inf, one.norms)
    norms = tuple(map(max, one.norms, other.norms))
    return Magnitude(max(one.largest, other.largest), min(one.rms, other.rms), norms)
