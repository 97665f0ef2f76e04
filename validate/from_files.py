"""Validation by paths and names, as on a command line: the package or bundle, its reference, more samples."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from coreflow.export.package.graph import Program
from coreflow.export.package.manifest import MANIFEST, read_manifest
from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe
from coreflow.export.reference import weights_file
from coreflow.export.sources.classes import is_class
from coreflow.export.sources.source import OPTIONS, SourceOptions, load_source
from coreflow.export.user_files import is_recipe_source
from coreflow.models.errors import ConfigError
from coreflow.runtime.interface import input_specs
from coreflow.validate.bundle import PartDone, judge_parts
from coreflow.validate.inputs.sample_files import read_samples
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.options import Options
from coreflow.validate.package import validate_package
from coreflow.validate.report.model import BundleReport, Report


def validate_files(
    path: Path, options: Options, *, reference: str | None = None, inputs: Path | None = None, verify: bool = True
) -> Iterator[PartDone | BundleReport | Report]:
    """Events of a validation of ``path``, a package or a bundle; the last one is its report.

    ``reference`` is FILE.py:NAME of recipes, or what else was exported, or the path of a package or ONNX file for one package; a
    family's bundle brings its own. ``inputs`` is a file of samples, or of texts for a bundle.
    """
    from_recipes = reference is not None and Path(reference).suffix not in (".mlpackage", ".onnx")
    recipes = _load_recipes(reference, path) if reference is not None and from_recipes else None
    if path.suffix == ".mlpackage":
        program = read_program(path).at(options.function_name)
        against = Path(reference) if reference is not None and not from_recipes else _only_recipe(path, recipes, options.function_name)
        if options.evidence is not None:
            options = replace(options, evidence=replace(options.evidence, reference=reference))
        yield validate_package(program, against, () if inputs is None else _read_samples(inputs, program), options)
    elif reference is not None and not from_recipes:
        raise ConfigError(f"{path} is a bundle; a package is compared with {reference}, as in {path}/packages/NAME.mlpackage")
    else:
        yield from judge_parts(path, options, recipes=recipes, texts=inputs, verify=verify)


def _load_recipes(source: str, path: Path) -> tuple[Recipe, ...]:
    """The recipes of ``source``; those of a folder, class or program by the options of the bundle at or around ``path``.

    A class gets the weights that this bundle carries.
    """
    folder = next((folder for folder in (path, *path.parents[:3]) if (folder / MANIFEST).is_file()), None)
    if is_recipe_source(source) or folder is None:
        return load_source(source).recipes
    manifest = read_manifest(folder, verify=False)
    options = SourceOptions.from_json(manifest.settings.get(OPTIONS, {}))
    if manifest.companions is not None and is_class(source) and manifest.settings.get("source") == source:
        options = replace(options, weights=weights_file(folder / manifest.companions, source.partition(":")[2]))
    return load_source(source, options).recipes


def _only_recipe(package: Path, recipes: tuple[Recipe, ...] | None, function_name: str | None) -> Recipe:
    """The recipe named like the function or like ``package``, or the only one."""
    if not recipes:
        raise ConfigError(
            f"{package.name}: what is it to be compared with? Give another package or an ONNX file after it, "
            "or --reference FILE.py:NAME of its recipe"
        )
    name, parts = function_name or package.stem, [part for recipe in recipes for part in recipe.parts]
    matching = [recipe for recipe in parts if recipe.name == name] or parts
    if len(matching) > 1:
        raise ConfigError(f"no recipe is named {name!r}; there are {', '.join(recipe.name for recipe in matching)}")
    return matching[0]


def _read_samples(file: Path, program: Program) -> list[Sample]:
    graph, interface = program.function()
    return read_samples(file, input_specs(program, graph, interface), interface=interface, check_values=False)
