"""``coreflow lint``: what is known to go wrong, in the conversion of recipes and on the Neural Engine, found without running anything."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from coreflow.cli.console import print_json, warn
from coreflow.cli.options import json_option
from coreflow.models.errors import ConfigError

if TYPE_CHECKING:
    from coreflow.export.engine.finding import Finding
    from coreflow.export.lint.suppressions import Suppression

_FORMS = "FILE.py:NAME of recipes, an .mlpackage, or a bundle"


def lint(
    source: Annotated[str | None, typer.Argument(help="FILE.py:NAME of recipes, an .mlpackage, or a bundle.")] = None,
    chip: Annotated[list[str] | None, typer.Option(help="Chip, as M4 or M4/macOS27; may be given again [default: M1 to M6].")] = None,
    fail_on: Annotated[str, typer.Option("--fail-on", help="Exit with 1 from this severity on: error, warning or note.")] = "error",
    suppress: Annotated[list[str] | None, typer.Option(help="RULE:REASON or RULE@PLACE:REASON; may be given again.")] = None,
    suppressions: Annotated[Path | None, typer.Option(help="TOML file with a table [lint.suppress].")] = None,
    sarif: Annotated[Path | None, typer.Option(help="Write the findings as SARIF 2.1.0 too.")] = None,
    rules: Annotated[bool, typer.Option("--rules", help="List the rules.")] = False,
    as_json: Annotated[bool, json_option("the findings", "or the rules of --rules")] = False,
) -> int:
    """Find what is converted wrongly, and what goes wrong on the Neural Engine or leaves it. Nothing is executed but a recipe's module."""
    from coreflow.export.engine.finding import Severity, is_at_least
    from coreflow.export.lint.catalogue import catalogue
    from coreflow.export.lint.suppressions import read_suppressions, split

    if rules:
        _list_rules(as_json)
        return 0
    if source is None:
        raise ConfigError(f"a source is missing; {_FORMS} is right, as in coreflow lint my_recipes.py:ENCODER")
    levels: tuple[Severity, ...] = get_args(Severity)
    least = next((level for level in levels if level == fail_on), None)
    if least is None:
        raise ConfigError(f"--fail-on {fail_on}: no such severity; {', '.join(levels)} are right", expected=levels)
    accepted = read_suppressions(suppress or (), suppressions, {entry.id for entry in catalogue()})
    chips = list(dict.fromkeys(chip or ()))
    findings, files = _findings(source, chips)
    kept, suppressed = split(findings, accepted)
    _warn_of_idle(accepted, [finding for finding, _ in suppressed])
    if sarif is not None:
        _write_sarif(sarif, kept, suppressed, files)
    if as_json:
        plain = [asdict(finding) | {"suppressed": None} for finding in kept]
        print_json([*plain, *(asdict(finding) | {"suppressed": reason} for finding, reason in suppressed)])
    else:
        from coreflow.cli.lint_text import show_findings

        show_findings(source, kept, suppressed, chips)
    return int(any(is_at_least(finding.severity, least) for finding in kept))


def _findings(source: str, chips: Sequence[str]) -> "tuple[list[Finding], dict[str, str]]":
    """The findings, and the path of every recipe and package that was looked at, by name."""
    from coreflow.export.engine.chips import find_chip
    from coreflow.export.lint.lint import lint_package, packages_of
    from coreflow.export.package.manifest import MANIFEST

    for chip in chips:
        find_chip(chip)
    path = Path(source)
    if path.suffix != ".mlpackage" and not (path / MANIFEST).is_file():
        return _findings_of_recipes(source, chips)
    packages = [path] if path.suffix == ".mlpackage" else packages_of(path)
    findings = [finding for package in packages for finding in lint_package(package, chips)]
    return findings, {package.name: package.as_posix() for package in packages}


def _findings_of_recipes(source: str, chips: Sequence[str]) -> "tuple[list[Finding], dict[str, str]]":
    """By what the modules call; with ``chips`` by the converted programs too."""
    from coreflow.export.lint.lint import lint_conversion_of, lint_recipe
    from coreflow.export.user_files import is_recipe_source, load_recipes

    if not is_recipe_source(source):
        raise ConfigError(f"{source} cannot be linted; {_FORMS} is right")
    recipes, file = load_recipes(source), source.partition(".py")[0] + ".py"
    findings = [finding for recipe in recipes for finding in lint_recipe(recipe)]
    if chips:
        findings += [finding for recipe in recipes for finding in lint_conversion_of(recipe, chips)]
    return findings, {recipe.name: file for recipe in recipes}


def _warn_of_idle(suppressions: "Sequence[Suppression]", suppressed: "Sequence[Finding]") -> None:
    for suppression in suppressions:
        if not any(suppression.covers(finding) for finding in suppressed):
            warn(f"nothing is suppressed by {suppression.rule}@{suppression.place} ({suppression.reason}); it can go")


def _write_sarif(file: Path, findings: "Sequence[Finding]", suppressed: "Sequence[tuple[Finding, str]]", files: dict[str, str]) -> None:
    import json

    from coreflow.export.lint.catalogue import catalogue
    from coreflow.export.lint.sarif import sarif

    try:
        file.write_text(json.dumps(sarif(findings, suppressed, catalogue(), files), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--sarif {file} cannot be written: {error.strerror or error}", path=file) from error


def _list_rules(as_json: bool) -> None:
    from coreflow.export.lint.catalogue import catalogue

    if not as_json:
        from coreflow.cli.lint_text import show_rules

        show_rules(catalogue())
        return
    listed: list[dict[str, Any]] = [asdict(entry) | {"source": entry.known.evidence.source} for entry in catalogue()]
    print_json(listed)
