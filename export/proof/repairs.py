"""Repairs a converted package for the Neural Engine, and measures what that changes under the engine's arithmetic."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coreflow.export.engine.chips import find_chip
from coreflow.export.engine.repair.repair import repair_program
from coreflow.export.package.mlpackage import read_program
from coreflow.export.package.write import write_program
from coreflow.export.proof.execution import engine_numerics, observe_magnitudes, run_program
from coreflow.export.proof.proof import output_errors, samples_of
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Array, Arrays
from coreflow.models.errors import ExportError

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


def _errors(
    recipe: Recipe, packages: tuple[Path, Path], samples: Sequence[Arrays], function: str | None, numerics: Any
) -> dict[str, dict[str, float | None]]:
    """Errors of both programs as the engine computes, against the first one in float64."""
    reference, repaired = (run_program(recipe, package, samples, function) for package in packages)
    off = output_errors(reference, repaired)
    if (error := max(off.values())) > SAME:
        raise ExportError(f"{recipe.name}: the repaired program is {error:.1e} off the converted one in float64; leave out engine_safe")
    before, after = (run_program(recipe, package, samples, function, numerics) for package in packages)
    return {"before": _plain(reference, before), "after": _plain(reference, after)}


def _plain(reference: Mapping[str, Array], actual: Mapping[str, Array]) -> dict[str, float | None]:
    return {name: error if np.isfinite(error) else None for name, error in output_errors(reference, actual).items()}
