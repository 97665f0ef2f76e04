"""Validation by paths and names, as on a command line: the package or bundle, its reference, more samples."""

from collections.abc import Iterator
from pathlib import Path

from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe
from coreflow.export.user_files import is_recipe_source, load_recipes
from coreflow.models.errors import ConfigError
from coreflow.runtime.backend import Backend, ComputeUnits
from coreflow.runtime.interface import input_specs
from coreflow.validate.bundle import PartDone, judge_bundle
from coreflow.validate.gates.tolerance import Tolerance
from coreflow.validate.inputs.sample_files import read_samples
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.options import Evidence
from coreflow.validate.package import validate
from coreflow.validate.report.model import BundleReport, Report


def validate_files(
    path: Path,
    reference: str | None = None,
    *,
    inputs: Path | None = None,
    backend: Backend = "auto",
    compute_units: ComputeUnits = "all",
    tolerance: Tolerance | None = None,
    verify: bool = True,
    sweep: bool = False,
    evidence: Path | None = None,
) -> Iterator[PartDone | BundleReport | Report]:
    """Events of a validation of ``path``, a package or a bundle; the last one is its report.

    ``reference`` is FILE.py:NAME of recipes, or the path of a package or ONNX file for one package; a family's bundle brings its own.
    ``inputs`` is a file of samples, or of texts for a bundle; ``evidence`` is the folder for replays.
    """
    from_recipes = reference is not None and is_recipe_source(reference)
    recipes = load_recipes(reference) if reference is not None and from_recipes else None
    if path.suffix == ".mlpackage":
        against = Path(reference) if reference is not None and not from_recipes else _only_recipe(path, recipes)
        yield validate(
            path,
            against,
            None if inputs is None else _read_samples(inputs, path),
            backend=backend,
            compute_units=compute_units,
            tolerance=tolerance,
            sweep=sweep,
            evidence=None if evidence is None else Evidence(folder=evidence, reference=reference),
        )
    elif reference is not None and not from_recipes:
        raise ConfigError(f"{path} is a bundle; a package is compared with {reference}, as in {path}/packages/.../NAME.mlpackage")
    else:
        yield from judge_bundle(
            path,
            recipes=recipes,
            backend=backend,
            compute_units=compute_units,
            tolerance=tolerance,
            verify=verify,
            texts=inputs,
            sweep=sweep,
            evidence=evidence,
        )


def _only_recipe(package: Path, recipes: tuple[Recipe, ...] | None) -> Recipe:
    """The recipe named like ``package``, or the only one."""
    if not recipes:
        raise ConfigError(
            f"{package.name}: what is it to be compared with? Give another package or an ONNX file after it, "
            "or --reference FILE.py:NAME of its recipe"
        )
    matching = [recipe for recipe in recipes if recipe.name == package.stem] or list(recipes)
    if len(matching) > 1:
        raise ConfigError(f"no recipe is named {package.stem!r}; there are {', '.join(recipe.name for recipe in matching)}")
    return matching[0]


def _read_samples(file: Path, package: Path) -> list[Sample]:
    program = read_program(package)
    graph, interface = program.function()
    return read_samples(file, input_specs(program, graph, interface), interface=interface)
