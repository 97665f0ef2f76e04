"""A recorded sample, judged again.

A file that came from elsewhere can neither run code nor reach out of its own folder and the working folder.
"""

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from torch import nn

from coreflow.export.package.graph import package_digest
from coreflow.export.package.manifest import MANIFEST, damaged_files, read_manifest
from coreflow.export.recipe import Recipe
from coreflow.export.user_files import is_recipe_source, load_recipes
from coreflow.models.errors import BundleError, ConfigError, InputError
from coreflow.runtime.backend import Backend, ComputeUnits, NumericsName
from coreflow.validate.gates.tolerance import Tolerance
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.ladder.ladder import OpenPackage, open_package
from coreflow.validate.package import judge_package, validate
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
    recorded = read_replay(source)
    place = _package(recorded, source, None if package is None else Path(package))
    # What the file says of backend, numerics and compute units is checked where they are opened.
    opened_by = cast(Backend, backend or recorded.backend)
    numerics = cast(NumericsName, "fp16" if recorded.numerics == "device" else recorded.numerics)
    units = cast(ComputeUnits, recorded.compute_units)
    opened = open_package(place, opened_by, numerics=numerics, compute_units=units, tolerance=tolerance)
    _check_outputs(recorded, opened, source)
    finite = all(np.isfinite(array).all() for array in recorded.exact.values())
    sample = Sample(label=recorded.label, inputs=recorded.inputs, seed=recorded.seed, expected=recorded.exact if finite else None)
    against = _reference(recorded, source, place, reference)
    if isinstance(against, Path):
        report = validate(place, against, [sample], backend=opened_by, numerics=numerics, compute_units=units, tolerance=tolerance)
    else:
        found = ReplayReference(recorded.exact, recorded.simulated, list(opened.model.outputs)) if against is None else against
        report = judge_package(opened, found, [sample], None, name=recorded.name)
    told = None if is_reachable(place, source) else str(place)
    return replace(report, replay=str(source), replay_package=told, notes=(*report.notes, _then_and_now(recorded, report)))


def _package(recorded: Replay, source: Path, given: Path | None) -> Path:
    """The recorded package: where the caller says, or where the file says if that is inside its folder."""
    place = given if given is not None else source.parent / recorded.package
    if given is None and not is_reachable(place, source):
        raise InputError(
            f"{source}: its package {recorded.package} lies outside its folder and the working folder; "
            "say where it is (package=, --package)"
        )
    if not place.exists():
        raise BundleError(f"{source}: its package {place} is not there; say where it is (package=, --package)")
    digest = package_digest(place)
    if digest != recorded.digest:
        raise BundleError(
            f"{place} is not the package that was recorded: its digest is {digest[:16]}, it was {recorded.digest[:16]}. Validate it again"
        )
    return place


def _reference(
    recorded: Replay, source: Path, package: Path, given: nn.Module | Recipe | str | Path | None
) -> nn.Module | Recipe | Path | None:
    """What to compare with; None for the recorded outputs."""
    if isinstance(given, nn.Module | Recipe):
        return given
    if given is None:
        folder = source.parent / recorded.reference
        there = recorded.reference_kind == "bundle" and is_reachable(folder, source) and (folder / MANIFEST).is_file()
        return _bundle_recipe(folder, package) if there else None
    if is_recipe_source(str(given)):
        recipes = load_recipes(str(given))
        matching = [recipe for recipe in recipes if recipe.name == recorded.name] or list(recipes)
        if len(matching) > 1:
            raise ConfigError(f"no recipe is named {recorded.name!r}; there are {', '.join(recipe.name for recipe in matching)}")
        return matching[0]
    path = Path(given)
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


def _check_outputs(recorded: Replay, opened: OpenPackage, source: Path) -> None:
    """Numbers for every output, R0 and simulation alike."""
    wanted = list(opened.model.outputs)
    for side in (recorded.exact, recorded.simulated):
        if side is not None and sorted(side) != sorted(wanted):
            raise InputError(f"{source} records {', '.join(side)}; the outputs of its package are {', '.join(wanted)}")
    for name, exact in recorded.exact.items():
        simulated = exact if recorded.simulated is None else recorded.simulated[name]
        if exact.shape != simulated.shape or exact.dtype.kind not in "fi" or simulated.dtype.kind not in "fi":
            found = f"{exact.dtype} {list(exact.shape)} and simulated {simulated.dtype} {list(simulated.shape)}"
            raise InputError(f"{source} records {name!r} as {found}; two arrays of numbers of one shape are right")


def _then_and_now(recorded: Replay, report: Report) -> str:
    """Whether what was recorded showed again."""
    then, now = (f"{each.verdict} ({each.cause})" if each.cause else each.verdict for each in (recorded, report))
    said = f"recorded as {then}" + (f" with {', '.join(recorded.culprits[:3])} to blame" if recorded.culprits else "")
    said += "; it is so again" if then == now else f"; now it is {now}"
    if recorded.reference_kind == "recipe":
        said += f"; the reference was {recorded.reference}, which is executed only when it is given"
    return said
