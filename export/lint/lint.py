"""Looks for what is known to go wrong: in recipes, by what their modules call, and in saved packages, there on the engine too.

Packages are read without torch.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coreflow.export.engine.finding import Finding
from coreflow.export.engine.lint import lint_program
from coreflow.export.engine.rule import Context
from coreflow.export.lint.rule import Rule, all_rules
from coreflow.export.package.graph import Program
from coreflow.export.package.manifest import read_manifest
from coreflow.export.package.mlpackage import read_program

if TYPE_CHECKING:
    from coreflow.export.recipe import Recipe


def lint_recipe(recipe: "Recipe", rules: Sequence[Rule] | None = None) -> list[Finding]:
    """What plain coremltools would convert wrongly of a module, and coreflow does not; ``ExportError`` when it cannot be traced."""
    from coreflow.export.capture.capture import capture
    from coreflow.export.lint.calls import calls

    program = capture(recipe).program
    hits = dict.fromkeys((rule, call.place) for rule in rules or list(all_rules()) for call in calls(program) if rule.finds(call))
    return [_finding(recipe.name, rule, place) for rule, place in hits]


def lint_package(package: Path, chips: Sequence[str] = ()) -> list[Finding]:
    """Results of known wrong conversions in a saved program, and what goes wrong on the engine of ``chips``, all where there are none.

    ``BundleError`` for a package that cannot be read, ``ConfigError`` for an unknown chip.
    """
    program = read_program(package)
    return [*lint_conversion(program), *lint_program(program, chips)]


def lint_conversion(program: Program, rules: Sequence[Rule] | None = None) -> list[Finding]:
    """Results of known wrong conversions in a saved program."""
    contexts = [Context(program, function) for function in program.functions]
    return [
        _finding(program.path.name, rule, f"{context.function}/{op.name}", context.function, op.name, op.type)
        for rule in rules or list(all_rules())
        for context in contexts
        for op in context.ops
        if rule.finds_in_program(op, context)
    ]


def lint_bundle(bundle: Path, chips: Sequence[str] = ()) -> list[Finding]:
    """The same for every package of a bundle; ``BundleError`` where its files are not as its manifest says."""
    return [finding for package in packages_of(bundle) for finding in lint_package(package, chips)]


def packages_of(bundle: Path) -> list[Path]:
    """The packages of a bundle, each once; ``BundleError`` where its files are not as its manifest says."""
    return [bundle / package for package in dict.fromkeys(stage.package for stage in read_manifest(bundle).stages.values())]


def _finding(name: str, rule: Rule, place: str, function: str = "", op: str = "", op_type: str = "") -> Finding:
    in_source = None if function else re.fullmatch(r"(.+):(\d+)", place)
    return Finding(
        name=name,
        rule=rule.id,
        place=place,
        title=rule.title,
        remedy=rule.remedy,
        severity="error",
        function=function,
        op=op,
        op_type=op_type,
        file=in_source[1] if in_source else "",
        line=int(in_source[2]) if in_source else 0,
        known=rule.known,
    )
