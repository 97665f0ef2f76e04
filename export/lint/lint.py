"""Looks for known wrong conversions in recipes, whose modules call what is concerned, and in saved packages that hold the result."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coreflow.export.capture.capture import capture
from coreflow.export.lint.calls import calls
from coreflow.export.lint.rule import Rule, all_rules
from coreflow.export.package.manifest import read_manifest
from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Finding:
    """A known wrong conversion, in a module that plain coremltools would convert so, or in a package that was.

    >>> [finding.rule for finding in lint_recipe(recipe)]
    ['rms-norm']
    """

    name: str  # of the recipe or package
    rule: str
    place: str  # FILE:LINE of a module, FUNCTION/OP of a package
    title: str
    remedy: str


def lint_recipe(recipe: Recipe, rules: Sequence[Rule] | None = None) -> list[Finding]:
    """What plain coremltools would convert wrongly of a module, and coreflow does not; ``ExportError`` when it cannot be traced."""
    program = capture(recipe).program
    return _findings(
        recipe.name, ((rule, call.place) for rule in rules or list(all_rules()) for call in calls(program) if rule.finds(call))
    )


def lint_package(package: Path, rules: Sequence[Rule] | None = None) -> list[Finding]:
    """Results of known wrong conversions in a saved program; ``BundleError`` when it cannot be read."""
    program = read_program(package)
    graphs = {name: program.function(name)[0] for name in program.functions}
    return _findings(
        package.name,
        (
            (rule, f"{name}/{op.name}")
            for rule in rules or list(all_rules())
            for name, graph in graphs.items()
            for op in graph.walk()
            if rule.finds_in_program(op, graph)
        ),
    )


def lint_bundle(bundle: Path) -> list[Finding]:
    """The same for every package of a bundle; ``BundleError`` where its files are not as its manifest says."""
    packages = dict.fromkeys(stage.package for stage in read_manifest(bundle).stages.values())
    return [finding for package in packages for finding in lint_package(bundle / package)]


def _findings(name: str, places: Iterator[tuple[Rule, str]]) -> list[Finding]:
    unique = dict.fromkeys((rule.id, place, rule.title, rule.remedy) for rule, place in places)
    return [Finding(name, *parts) for parts in unique]
