"""Validates a recorded sample again.

A file that came from elsewhere can neither run code nor reach out of its own folder and the working folder.
"""

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from torch import nn

from coreflow.export.package.manifest import MANIFEST, damaged_files, read_manifest
from coreflow.export.package.mlpackage import package_digest, read_program
from coreflow.export.recipe import Recipe
from coreflow.export.user_files import is_recipe_source, load_recipes
from coreflow.models.errors import BundleError, ConfigError, InputError
from coreflow.runtime.backend import Backend, ComputeUnits, NumericsName
from coreflow.validate.case import make_case
from coreflow.validate.gates.tolerance import Tolerance
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.ladder.opening import OpenPackage, open_package
from coreflow.validate.options import Options
from coreflow.validate.package import judge_package
from coreflow.validate.references.golden import ReplayReference
from coreflow.validate.replay.recording import Replay, is_reachable, read_replay
from coreflow.validate.report.model import Report


def replay(
    path: str | Path,
    *,
    reference: nn.Module | Recipe | str | Path | None = None,
    package: str | Path | None = None,
    backend: Backend | None = None,
    tolerance: Tolerance | None = None,
) -> Report:
    """The verdict on the recorded sample alone, on the backend and in the numerics of then unless ``backend`` says otherwise.

    It is compared with what ``reference`` gives now: a module, a recipe, ``FILE.py:NAME``, a bundle, a package or an ONNX file. Without
    one it is compared with a bundle's own reference if that is what was recorded and still lies there, and otherwise with the recorded
    outputs. A recipe's file is executed only if it is given here. ``package`` says where the package is now; it must be given
    when it lies neither below the folder of the file nor below the working folder. ``BundleError`` when it is not the one that was
    recorded.
    """
    source = Path(path)
    record = read_replay(source)
    place = _find_package(record, source, None if package is None else Path(package))
    # Backend, numerics and compute units of the file are checked where they are opened.
    options = Options(
        backend=cast(Backend, backend or record.backend),
        numerics=cast(NumericsName, "fp16" if record.numerics == "device" else record.numerics),
        compute_units=cast(ComputeUnits, record.compute_units),
        tolerance=tolerance,
    )
    program = read_program(place)
    opened = open_package(program.at(record.name if record.name in program.functions else None), options)
    _check_outputs(record, opened, source)
    is_finite = all(np.isfinite(array).all() for array in record.outputs.values())
    sample = Sample(label=record.label, inputs=record.inputs, seed=record.seed, expected=record.outputs if is_finite else None)
    compared_with = _find_reference(record, source, place, reference)
    recorded = ReplayReference(record.outputs, record.simulated, list(opened.model.outputs))
    name = None if isinstance(compared_with, Path) else record.name
    case = make_case(opened, recorded if compared_with is None else compared_with, [sample], name=name)
    report = judge_package(replace(case, draw=None, shapes=()), options)  # the sample alone
    replay_package = None if is_reachable(place, source) else str(place)
    return replace(report, replay=str(source), replay_package=replay_package, notes=(*report.notes, _then_and_now(record, report)))


def _find_package(record: Replay, source: Path, override: Path | None) -> Path:
    """Path of the recorded package: the caller's, or the file's if that is inside its folder."""
    place = override if override is not None else source.parent / record.package
    if override is None and not is_reachable(place, source):
        raise InputError(
            f"{source}: its package {record.package} lies outside its folder and the working folder; say where it is (package=, --package)"
        )
    if not place.exists():
        raise BundleError(f"{source}: its package {place} is not there; say where it is (package=, --package)")
    digest = package_digest(place)
    if digest != record.digest:
        raise BundleError(
            f"{place} is not the package that was recorded: its digest is {digest[:16]}, it was {record.digest[:16]}. Validate it again"
        )
    return place


def _find_reference(
    record: Replay, source: Path, package: Path, reference: nn.Module | Recipe | str | Path | None
) -> nn.Module | Recipe | Path | None:
    """The reference to compare with; None for the recorded outputs."""
    if isinstance(reference, nn.Module | Recipe):
        return reference
    if reference is None:
        folder = source.parent / record.reference
        is_bundle = record.reference_kind == "bundle" and is_reachable(folder, source) and (folder / MANIFEST).is_file()
        return _bundle_recipe(folder, package) if is_bundle else None
    if is_recipe_source(str(reference)):
        recipes = load_recipes(str(reference))
        parts = [part for recipe in recipes for part in recipe.parts]
        matching = [recipe for recipe in parts if recipe.name == record.name] or parts
        if len(matching) > 1:
            raise ConfigError(f"no recipe is named {record.name!r}; there are {', '.join(recipe.name for recipe in matching)}")
        return matching[0]
    path = Path(reference)
    if not (path / MANIFEST).is_file():
        return path
    recipe = _bundle_recipe(path, package)
    if recipe is None:
        raise ConfigError(f"{path} brings no reference for {package.name}; give FILE.py:NAME of its recipe, or nothing")
    return recipe


def _bundle_recipe(folder: Path, package: Path) -> Recipe | None:
    """The reference that a bundle brings for one of its packages; None where it brings none."""
    from coreflow.export.run import stage_recipes
    from coreflow.models.family import find_family

    manifest = read_manifest(folder, verify=False)
    stages = [name for name, stage in manifest.stages.items() if (folder / stage.package).resolve() == package.resolve()]
    family = find_family(manifest.kind)
    if family is None or manifest.companions is None or not stages:
        return None
    if problems := [problem for problem in damaged_files(folder, manifest) if problem.is_in(manifest.companions)]:
        text = f"{folder}: {'; '.join(problem.text for problem in problems)}; the reference in it is another one"
        raise BundleError(text, path=folder, problems=problems)
    reference = family.open_companions(folder / manifest.companions).stages()
    return next((recipe for recipe in stage_recipes(reference) if recipe.name == stages[0]), None)


def _check_outputs(record: Replay, opened: OpenPackage, source: Path) -> None:
    """Raise ``InputError`` unless R0 and the simulation hold numbers for every output."""
    expected = list(opened.model.outputs)
    for outputs in (record.outputs, record.simulated):
        if outputs is not None and sorted(outputs) != sorted(expected):
            raise InputError(f"{source} records {', '.join(outputs)}; the outputs of its package are {', '.join(expected)}")
    for name, output in record.outputs.items():
        simulated = output if record.simulated is None else record.simulated[name]
        if output.shape != simulated.shape or output.dtype.kind not in "fi" or simulated.dtype.kind not in "fi":
            arrays = f"{output.dtype} {list(output.shape)} and simulated {simulated.dtype} {list(simulated.shape)}"
            raise InputError(f"{source} records {name!r} as {arrays}; two arrays of numbers of one shape are right")


def _then_and_now(record: Replay, report: Report) -> str:
    """The verdict of then beside that of now, in words."""
    then, now = (f"{verdict.verdict} ({verdict.cause})" if verdict.cause else verdict.verdict for verdict in (record, report))
    text = f"recorded as {then}" + (f" with {', '.join(record.culprits[:3])} to blame" if record.culprits else "")
    text += "; it is so again" if then == now else f"; now it is {now}"
    if record.reference_kind == "recipe":
        text += f"; the reference was {record.reference}, which is executed only when it is given"
    return text
