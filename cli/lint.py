"""``coreflow lint``: known wrong conversions of coremltools, in recipes and in packages."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coreflow.cli.console import out, print_json
from coreflow.cli.options import json_option
from coreflow.models.errors import ConfigError

if TYPE_CHECKING:
    from coreflow.export.engine.finding import Finding

_FORMS = "FILE.py:NAME of recipes, an .mlpackage, or a bundle"


def lint(
    source: Annotated[str | None, typer.Argument(help="FILE.py:NAME of recipes, an .mlpackage, or a bundle.")] = None,
    rules: Annotated[bool, typer.Option("--rules", help="List the rules.")] = False,
    as_json: Annotated[bool, json_option("the findings", "or the rules of --rules")] = False,
) -> int:
    """Find what plain coremltools converts wrongly without a word. Exit code 1: something was found."""
    if rules:
        from coreflow.export.lint.rule import all_rules

        listed = [{"id": rule.id, "title": rule.title, "source": rule.source, "remedy": rule.remedy} for rule in all_rules()]
        _show(listed, ("id", "title", "remedy"), as_json)
        return 0
    if source is None:
        raise ConfigError(f"a source is missing; {_FORMS} is right, as in coreflow lint my_recipes.py:ENCODER")
    findings = _findings(source)
    if findings or as_json:
        _show([asdict(finding) for finding in findings], ("name", "rule", "place", "title", "remedy"), as_json)
    else:
        out().print(f"{source}: no known wrong conversion", markup=False, soft_wrap=True)
    return 1 if findings else 0


def _findings(source: str) -> "list[Finding]":
    from coreflow.export.lint.lint import lint_bundle, lint_package, lint_recipe
    from coreflow.export.package.manifest import MANIFEST
    from coreflow.export.user_files import is_recipe_source, load_recipes

    path = Path(source)
    if is_recipe_source(source):
        return [finding for recipe in load_recipes(source) for finding in lint_recipe(recipe)]
    if path.suffix == ".mlpackage":
        return lint_package(path)
    if (path / MANIFEST).is_file():
        return lint_bundle(path)
    raise ConfigError(f"{source} cannot be linted; {_FORMS} is right")


def _show(rows: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    if as_json:
        print_json(rows)
        return
    table = Table(*columns, box=None, pad_edge=False, header_style="dim")
    for row in rows:
        table.add_row(*(Text(str(row[column])) for column in columns))
    out().print(table)
