"""Repairs a converted package for the Neural Engine, and measures what that changes under the engine's arithmetic."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coreflow.export.engine.chips import find_chip
from coreflow.export.engine.repair.repair import repair_program
from coreflow.export.package.mlpackage import read_program
from coreflow.export.package.write import write_program
from coreflow.export.proof.execution import engine_numerics, observe_magnitudes, run_arrays, run_program
from coreflow.export.proof.proof import output_errors, samples_of
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Array, Arrays
from coreflow.models.errors import ExportError

REPAIRS_KEY = "coreflow.repairs"  # user-defined metadata of a package that was repaired by itself
SAME = 1e-4  # error in float64 against the program as it was; 1e-12 is usual, and only the scale of fused attention leaves more


def repair_package(recipe: Recipe, package: Path, staging: Path, *, check: bool) -> dict[str, Any]:
    """Replace ``package`` by its repaired form; returns, by function or name of the recipe, the entry of the manifest.

    An entry has the target, the changes (``Change.to_json``) and, with ``check``, the largest errors of every output under the engine's
    arithmetic, before and after; None stands for an output that is not finite. Scales are chosen from the recipe's inputs.
    ``ExportError`` where the repaired program is not the same function in float64.
    """
    program = read_program(package)
    names = {part.name: part.name if recipe.functions else None for part in recipe.parts}
    samples = {part.name: samples_of(part) for part in recipe.parts}
    magnitudes = {
        program.function(function)[0].name: observe_magnitudes(package, samples[name], function) for name, function in names.items()
    }
    repaired = repair_program(program, recipe.engine_safe, magnitudes)
    after = package
    if repaired.changes:
        after = write_program(repaired.program, staging / f"repaired-{package.name}")
    entries: dict[str, Any] = {}
    for part in recipe.parts:
        function = names[part.name]
        graph, _ = program.function(function)
        changes = [change.to_json() for change in repaired.changes if change.function == graph.name]
        entries[part.name] = {"target": repaired.target, "changes": changes}
        if check and changes:
            numerics = engine_numerics(find_chip(repaired.target).family, program, function)
            entries[part.name] |= {"numerics": numerics, "errors": _errors(part, (package, after), samples[part.name], function, numerics)}
    if after is not package:
        shutil.rmtree(package)
        after.rename(package)
    return entries


def repair_file(
    package: Path,
    out: Path,
    target: str,
    samples: Sequence[Arrays],
    *,
    has_data: bool,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Any]:
    """Write the package ``package``, repaired for ``target``, to ``out``; returns an entry as ``repair_package`` does.

    ``samples`` are inputs of its default function, on which both are compared; with ``has_data`` they are such as the model is used
    with, and scales are chosen from them. ``bounds`` are those that the package does not record. Nothing is left at ``out`` where the
    repaired program is not the same function in float64 (``ExportError``).
    """
    program = read_program(package)
    graph, _ = program.function()
    magnitudes = {graph.name: observe_magnitudes(package, samples)} if has_data else {}
    repaired = repair_program(program, target, magnitudes, bounds=bounds)
    changes = [change.to_json() for change in repaired.changes]
    numerics = engine_numerics(find_chip(repaired.target).family, program)
    with tempfile.TemporaryDirectory() as folder:
        after = write_program(repaired.program, Path(folder) / out.name)
        reference, same = (run_arrays(path, samples) for path in (package, after))
        _check_same(package.name, output_errors(reference, same))
        errors = {when: _plain(reference, run_arrays(path, samples, numerics)) for when, path in (("before", package), ("after", after))}
    entry = {"target": repaired.target, "changes": changes, "numerics": numerics, "errors": errors}
    write_program(repaired.program, out, {REPAIRS_KEY: json.dumps(entry)})
    return entry


def _check_same(name: str, errors: Mapping[str, float]) -> None:
    if (error := max(errors.values(), default=0.0)) > SAME:
        raise ExportError(f"{name}: the repaired program is {error:.1e} off the program as it was, in float64; nothing was written")


def _errors(
    recipe: Recipe, packages: tuple[Path, Path], samples: Sequence[Arrays], function: str | None, numerics: Any
) -> dict[str, dict[str, float | None]]:
    """Errors of both programs as the engine computes, against the first one in float64."""
    reference, repaired = (run_program(recipe, package, samples, function) for package in packages)
    _check_same(recipe.name, output_errors(reference, repaired))
    before, after = (run_program(recipe, package, samples, function, numerics) for package in packages)
    return {"before": _plain(reference, before), "after": _plain(reference, after)}


def _plain(reference: Mapping[str, Array], actual: Mapping[str, Array]) -> dict[str, float | None]:
    return {name: error if np.isfinite(error) else None for name, error in output_errors(reference, actual).items()}
