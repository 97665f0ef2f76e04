"""``coreflow export``."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coreflow.cli.console import err, out, print_json, progress_bar, warn
from coreflow.cli.options import json_option

if TYPE_CHECKING:
    from coreflow.export.bundle import BundleDone, StageDone
    from coreflow.export.package.manifest import StageEntry


def export(
    source: Annotated[
        str | None,
        typer.Argument(help="A run of `coreflow train`, or FILE.py:NAME of a Recipe, a list of them, or a function that gives them."),
    ] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder of the bundle, as in artifacts/NAME.")] = None,
    target: Annotated[str | None, typer.Option(help="Deployment target: iOS16, iOS17 or iOS18 [default: iOS17, or the recipe's].")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Stages that convert side by side [default: one per core].")] = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not prove that the saved programs are their modules.")] = False,
    ops: Annotated[bool, typer.Option("--ops", help="List torch operations that coreflow converts and coremltools does not.")] = False,
    as_json: Annotated[bool, json_option("the manifest", "or the list of --ops")] = False,
) -> int:
    """Convert a trained run, or your own recipes, to a bundle of Core ML packages."""
    if ops:
        return _list_operations(as_json)
    if source is None or out_dir is None:
        missing = "--out" if source else "a run or FILE.py:NAME"
        raise typer.BadParameter(f"{missing} is missing; as in coreflow export my_recipes.py:ENCODER --out artifacts/NAME")
    done = export_with_bar(source, out_dir, target, jobs, check=not no_check)
    if as_json:
        print_json(done.manifest.to_json())
    else:
        out().print(summary(done), soft_wrap=True)
    return 0


def export_with_bar(source: str, out_dir: Path, target: str | None = None, jobs: int | None = None, *, check: bool = True) -> "BundleDone":
    """Export while a bar counts the stages; returns the bundle."""
    from coreflow.export.bundle import BundleDone

    with progress_bar("exporting") as (bar, task):
        for event in _start(source, out_dir, target, jobs, check):
            if isinstance(event, BundleDone):
                return event
            bar.update(task, total=event.total, completed=event.done, detail=event.stage)
            for text in event.warnings:
                warn(f"{event.stage}: {text}")
            if bar.disable:
                how = "kept, nothing it depends on has changed" if event.reused else f"converted in {event.seconds:.1f} s"
                err().print(f"{event.stage}: {how}, {event.size_bytes / 1e6:.2f} MB")
    raise AssertionError("an export ends with its bundle")


def summary(done: "BundleDone") -> str:
    """One line per package."""
    stages = done.manifest.stages
    lines = [f"bundle {done.path}: {len(stages)} packages in {done.seconds:.0f} s"]
    return "\n".join(
        lines
        + [
            f"  {name:15} {stage.recipe['target']} {stage.recipe['precision']}  {_proven(stage):15}  {done.path / stage.package}"
            for name, stage in stages.items()
        ]
    )


def _proven(stage: "StageEntry") -> str:
    return "not checked" if stage.errors is None else f"error {max(stage.errors.values()):.1e}"


def _list_operations(as_json: bool) -> int:
    from rich.table import Table

    from coreflow.export.operations import list_operations

    operations = list_operations()
    if as_json:
        print_json([asdict(operation) for operation in operations])
        return 0
    table = Table("operation", "becomes", "front ends", box=None, pad_edge=False, header_style="dim")
    for operation in operations:
        table.add_row(operation.name, operation.becomes, ", ".join(operation.front_ends))
    out().print(table)
    return 0


def _start(source: str, out_dir: Path, target: str | None, jobs: int | None, check: bool) -> "Iterator[StageDone | BundleDone]":
    from dataclasses import replace

    from coreflow.export.bundle import export_bundle
    from coreflow.export.run import export_run
    from coreflow.export.user_files import is_recipe_source, load_recipes

    if not is_recipe_source(source):
        return export_run(Path(source), out_dir, target=target or "iOS17", jobs=jobs, check=check)  # type: ignore[arg-type]
    recipes = load_recipes(source)
    if target is not None:
        recipes = tuple(replace(recipe, target=target) for recipe in recipes)  # type: ignore[arg-type]
    return export_bundle(recipes, out_dir, settings={"source": Path(source).name}, jobs=jobs, check=check)
