"""``coreflow validate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coreflow.cli.console import err, out, print_json, progress_bar

if TYPE_CHECKING:
    from coreflow.export.recipe import Recipe
    from coreflow.validate.report.model import BundleReport, Report


def validate(
    path: Annotated[Path, typer.Argument(help="A bundle of `coreflow export`, or one .mlpackage.")],
    reference: Annotated[str | None, typer.Option(help="FILE.py:NAME of the recipes that your own packages were made from.")] = None,
    backend: Annotated[str, typer.Option(help="auto (Core ML on macOS, lifted elsewhere), coreml or lifted.")] = "auto",
    compute_units: Annotated[str, typer.Option(help="Core ML's: all, cpu_only, cpu_and_gpu or cpu_and_ne.")] = "all",
    report: Annotated[Path | None, typer.Option(help="Also write the report to this file, as JSON.")] = None,
    unsealed: Annotated[bool, typer.Option("--unsealed", help="Let changed files pass; they are listed.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A warning fails.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> int:
    """Compare saved packages with torch in fp64."""
    from coreflow.validate.report.json import to_json, write_report
    from coreflow.validate.report.terminal import render

    found = validate_with_bar(path, reference, backend, compute_units, verify=not unsealed)
    if report is not None:
        write_report(report, found)
    if as_json:
        print_json(to_json(found))
    else:
        out().print(render(found))
        if report is not None:
            out().print(f"report: {report}", soft_wrap=True)
    return found.exit_code_for(strict=strict)


def validate_with_bar(
    path: Path, reference: str | None = None, backend: str = "auto", compute_units: str = "all", *, verify: bool = True
) -> "BundleReport | Report":
    """Judge a bundle or a package while a bar counts its parts."""
    from coreflow.export.source import load_recipes
    from coreflow.validate import judge_bundle
    from coreflow.validate import validate as judge
    from coreflow.validate.report.model import BundleReport

    recipes = None if reference is None else load_recipes(reference)
    if path.suffix == ".mlpackage":
        return judge(path, _only_recipe(path, recipes), backend=backend, compute_units=compute_units)  # type: ignore[arg-type]
    with progress_bar("validating") as (bar, task):
        for event in judge_bundle(path, recipes=recipes, backend=backend, compute_units=compute_units, verify=verify):  # type: ignore[arg-type]
            if isinstance(event, BundleReport):
                return event
            bar.update(task, total=event.total, completed=event.done, detail=event.part)
            if bar.disable:
                err().print(f"{event.part}: {event.verdict} in {event.seconds:.1f} s")
    raise AssertionError("a validation ends with its report")


def _only_recipe(package: Path, recipes: "tuple[Recipe, ...] | None") -> "Recipe":
    from coreflow.models.errors import ConfigError

    if not recipes:
        raise ConfigError(f"{package.name}: what is it to be compared with? Give --reference FILE.py:NAME of its recipe")
    matching = [recipe for recipe in recipes if recipe.name == package.stem] or list(recipes)
    if len(matching) > 1:
        raise ConfigError(f"no recipe is named {package.stem!r}; there are {', '.join(recipe.name for recipe in matching)}")
    return matching[0]
