"""Looks for what is known to go wrong: in recipes, by what their modules call, and in saved packages, there on the engine too.

Packages are read without torch.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from coreflow.export.engine.bounds.hazards import Proofs, proofs_of
from coreflow.export.engine.finding import Finding
from coreflow.export.engine.lint import Data, contexts_of, lint_contexts, lint_program
from coreflow.export.engine.rule import Context
from coreflow.export.lint.rule import Rule, all_rules
from coreflow.export.package.graph import Program
from coreflow.export.package.manifest import read_manifest
from coreflow.export.package.mlpackage import read_program

if TYPE_CHECKING:
    from coreflow.export.recipe import Recipe
    from coreflow.export.targets.origins import Origins


def lint_recipe(recipe: "Recipe", rules: Sequence[Rule] | None = None) -> list[Finding]:
    """What plain coremltools would convert wrongly of a module, and coreflow does not; ``ExportError`` when it cannot be traced."""
    from coreflow.export.capture.capture import capture
    from coreflow.export.lint.calls import calls

    program = capture(recipe).program
    hits = dict.fromkeys((rule, call.place) for rule in rules or list(all_rules()) for call in calls(program) if rule.finds(call))
    return [_finding(recipe.name, rule, place) for rule, place in hits]


def lint_conversion_of(recipe: "Recipe", chips: Sequence[str] = ()) -> list[Finding]:
    """What goes wrong on the engine of ``chips`` in the program of a recipe, which is converted for it, with the lines of its module.

    ``ExportError`` for a module that cannot be converted, ``ConfigError`` for an unknown chip.
    """
    from coreflow.export.bundle import conversion_of
    from coreflow.export.capture.front_ends import capture_best
    from coreflow.export.targets.mlprogram import convert_with_origins

    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / f"{recipe.name}.mlpackage"
        places = convert_with_origins(conversion_of(capture_best(recipe)), package)
        findings = lint_program(read_program(package), chips)
    return [_with_line(replace(finding, name=recipe.name), places) for finding in findings]


def _with_line(finding: Finding, places: "Mapping[str, Origins]") -> Finding:
    place = places.get(finding.function, {}).get(finding.op)
    return finding if place is None else replace(finding, place=f"{place.file}:{place.line}", file=place.file, line=place.line)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """The findings of one package, and how many ops of each function are proved safe, by its name.

    >>> examine_package(Path("encoder.mlpackage")).proofs["main"].share
    """

    findings: Sequence[Finding]
    proofs: Mapping[str, Proofs]


def examine_package(package: Path, chips: Sequence[str] = (), data: Data | None = None) -> Examination:
    """Results of known wrong conversions in a saved program, and what goes wrong on the engine of ``chips``, all where there are none.

    ``BundleError`` for a package that cannot be read, ``ConfigError`` for an unknown chip.
    """
    program = read_program(package)
    contexts = contexts_of(program, chips, data)
    findings = [*lint_conversion(program), *lint_contexts(contexts)]
    return Examination(findings=findings, proofs={context.function: proofs_of(context.hazards) for context in contexts})


def lint_package(package: Path, chips: Sequence[str] = ()) -> list[Finding]:
    """The findings of ``examine_package``."""
    return list(examine_package(package, chips).findings)


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
