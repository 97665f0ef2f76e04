"""``coreflow export``, and ``coreflow repair`` for a package that is there already."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coreflow.cli.console import err, out, print_json, progress_bar, warn
from coreflow.cli.options import PackageArgument, json_option
from coreflow.cli.text.repairs import repair_lines

if TYPE_CHECKING:
    from coreflow.export.bundle import BundleDone, StageDone
    from coreflow.export.package.manifest import StageEntry
    from coreflow.export.recipe import Recipe
    from coreflow.export.sources.source import SourceOptions


_BOUNDS = re.compile(r"(?P<name>\w+):(?P<low>-?[\d.]+)\.\.(?P<high>-?[\d.]+)")


def export(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A run of `coreflow train`; FILE.py:NAME of a Recipe, a list of them, or a function that gives them; a folder of "
            "transformers; module.path:Class; FILE.pt2; or a TorchScript FILE.pt.",
            show_default=False,
        ),
    ] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder of the bundle, as in artifacts/NAME.")] = None,
    target: Annotated[str | None, typer.Option(help="Deployment target: iOS16, iOS17 or iOS18 [default: iOS17, or the recipe's].")] = None,
    task: Annotated[str | None, typer.Option(help="Of a folder of transformers [default: that of its class].", show_default=False)] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens [default: 128, 512 of a decoder, or its most].", show_default=False)
    ] = None,
    prompt: Annotated[int | None, typer.Option(min=2, help="Tokens a decoder reads at once [default: 64].", show_default=False)] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    image_size: Annotated[int | None, typer.Option(min=1, help="Pixels of both sides [default: the model's].", show_default=False)] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="Of a class or a program: NAME:SHAPE[:DTYPE[:LOW..HIGH]], as in ids:1x128:int32:0..999."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Of a class: .safetensors, or .pt with tensors alone.", show_default=False)] = None,
    arguments: Annotated[str | None, typer.Option(help="Of a class: a JSON object.", show_default=False)] = None,
    engine_safe: Annotated[bool, typer.Option("--engine-safe", help="Repair the saved programs for the Neural Engine.")] = False,
    engine: Annotated[str, typer.Option(help="Whose engine: M4/macOS27 and the like; with --engine-safe.")] = "M4/macOS27",
    jobs: Annotated[int | None, typer.Option(min=1, help="Stages that convert side by side [default: one per core].")] = None,
    no_reference: Annotated[bool, typer.Option("--no-reference", help="Leave out the weights and golden samples of the modules.")] = False,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not prove that the saved programs are their modules.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be converted, and write nothing.")] = False,
    ops: Annotated[bool, typer.Option("--ops", help="List torch operations that coreflow converts and coremltools does not.")] = False,
    models: Annotated[bool, typer.Option("--list", help="List the models that are exported from a folder of transformers.")] = False,
    as_json: Annotated[bool, json_option("the manifest", "or what --dry-run, --ops or --list says")] = False,
) -> int:
    """Convert a trained run, your own recipes, or a model as it comes, to a bundle of Core ML packages."""
    from coreflow.models.errors import ConfigError

    if ops:
        return _list_operations(as_json)
    if models:
        return _list_models(as_json)
    if source is None or out_dir is None:
        missing = "--out" if source else "what to export"
        raise ConfigError(f"{missing} is missing; as in coreflow export my_recipes.py:ENCODER --out artifacts/NAME")
    options = replace(
        _options(target, task, (length, prompt, batch, image_size), inputs or (), weights, arguments), has_reference=not no_reference
    )
    repaired_for = engine if engine_safe else ""
    if dry_run:
        return _show_preview(source, out_dir, options, repaired_for, as_json)
    done = export_with_bar(source, out_dir, options, jobs, check=not no_check, engine_safe=repaired_for)
    if as_json:
        print_json(done.manifest.to_json())
    else:
        out().print(summary(done), soft_wrap=True)
    return 0


def _options(
    target: str | None,
    task: str | None,
    sizes: tuple[int | None, int | None, int, int | None],
    inputs: Sequence[str],
    weights: Path | None,
    arguments: str | None,
) -> "SourceOptions":
    """What was said of the source, checked."""
    import json

    from coreflow.export.recipe import TARGETS
    from coreflow.export.sources.adapters.adapter import Sizes
    from coreflow.export.sources.input_texts import parse_inputs
    from coreflow.export.sources.source import SourceOptions
    from coreflow.models.errors import ConfigError

    if target is not None and target not in TARGETS:
        raise ConfigError(f"target {target!r}; choose one of {', '.join(TARGETS)}")
    try:
        keywords = json.loads(arguments or "{}")
    except ValueError as error:
        raise ConfigError(f"--arguments {arguments!r} is no JSON ({error})") from error
    if not isinstance(keywords, dict):
        raise ConfigError(f"--arguments {arguments!r}; a JSON object is right, as in '{{\"width\": 64}}'")
    length, prompt, batch, image_size = sizes
    return SourceOptions(
        task=task,
        sizes=Sizes(length=length, prompt=prompt, batch=batch, image_size=image_size),
        inputs=parse_inputs(inputs),
        weights=weights,
        arguments=keywords,
        target=target,
    )


def export_with_bar(
    source: str,
    out_dir: Path,
    options: "SourceOptions | None" = None,
    jobs: int | None = None,
    *,
    check: bool = True,
    engine_safe: str = "",
) -> "BundleDone":
    """Export while a bar counts the stages; returns the bundle."""
    from coreflow.export.bundle import BundleDone
    from coreflow.export.sources.source import SourceOptions

    with progress_bar("exporting") as (bar, task):
        for event in _start(source, out_dir, options or SourceOptions(), jobs, check, engine_safe):
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
            + "".join(f"\n    {line}" for line in repair_lines(stage.repairs))
            for name, stage in stages.items()
        ]
    )


def _proven(stage: "StageEntry") -> str:
    return "not checked" if stage.errors is None else f"error {max(stage.errors.values()):.1e}"


def _show_preview(source: str, out_dir: Path, options: "SourceOptions", engine_safe: str, as_json: bool) -> int:
    from rich.table import Table

    from coreflow.export.preview import preview_bundle

    preview = preview_bundle(_load_recipes(source, options, engine_safe), out_dir)
    for stage in preview.stages:
        for text in stage.warnings:
            warn(f"{stage.name}: {text}")
    if as_json:
        print_json(preview.to_json())
        return 0
    table = Table("stage", "would", "as", "inputs", "outputs", "MB of weights", box=None, pad_edge=False, header_style="dim")
    for stage in preview.stages:
        recipe, specs = stage.entry.recipe, (stage.entry.inputs, stage.entry.outputs)
        listed = ["\n".join(f"{name} {spec.dtype} {'x'.join(map(str, spec.shape))}" for name, spec in part.items()) for part in specs]
        kind = f"{recipe['target']} {recipe['precision']} by {recipe['front_end']}"
        table.add_row(stage.name, stage.action, kind, *listed, f"{stage.weights_bytes / 1e6:.2f}")
    out().print(table)
    removed = f"; {', '.join(preview.removed)} would go" if preview.removed else ""
    out().print(f"{'a bundle is' if preview.exists else 'no bundle is'} at {out_dir}{removed}; nothing was written", soft_wrap=True)
    return 0


def _load_recipes(source: str, options: "SourceOptions", engine_safe: str) -> "Sequence[Recipe]":
    from coreflow.export.run import run_recipes
    from coreflow.export.sources.source import load_source, refuse_options
    from coreflow.models.family import is_run

    if not is_run(Path(source)):
        return _repaired(load_source(source, options).recipes, engine_safe)
    refuse_options(source, options)
    return run_recipes(Path(source), options.target or "iOS17", engine_safe)


def _repaired(recipes: "Sequence[Recipe]", engine_safe: str) -> "Sequence[Recipe]":
    """``recipes``, to be repaired for a target; as they are where none is given."""
    return [replace(recipe, engine_safe=engine_safe) for recipe in recipes] if engine_safe else recipes


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


def _list_models(as_json: bool) -> int:
    from rich.table import Table

    from coreflow.export.sources.hugging_face import ADAPTERS

    rows = [{"task": adapter.task, "class": adapter.auto_class, "model_types": list(adapter.model_types)} for adapter in ADAPTERS]
    if as_json:
        print_json(rows)
        return 0
    table = Table("task", "model types", box=None, pad_edge=False, header_style="dim")
    for row in rows:
        table.add_row(str(row["task"]), ", ".join(row["model_types"]))
    out().print(table)
    return 0


def _start(
    source: str, out_dir: Path, options: "SourceOptions", jobs: int | None, check: bool, engine_safe: str
) -> "Iterator[StageDone | BundleDone]":
    from coreflow.export.bundle import export_bundle
    from coreflow.export.run import export_run
    from coreflow.export.sources.source import OPTIONS, load_source, refuse_options
    from coreflow.models.family import is_run

    if is_run(Path(source)):
        refuse_options(source, options)
        return export_run(Path(source), out_dir, target=options.target or "iOS17", engine_safe=engine_safe, jobs=jobs, check=check)
    origin = load_source(source, options)
    settings = {"source": Path(source).name, OPTIONS: options.to_json()}
    recipes = _repaired(origin.recipes, engine_safe)
    return export_bundle(recipes, out_dir, settings=settings, write_companions=origin.write_companions, jobs=jobs, check=check)


def repair(
    package: PackageArgument,
    out_path: Annotated[Path, typer.Option("--out", help="The repaired package, NAME.mlpackage.")],
    target: Annotated[str, typer.Option(help="Whose engine: M4/macOS27 and the like.")] = "M4/macOS27",
    inputs: Annotated[Path | None, typer.Option(help="Samples from which scales are chosen.", show_default=False)] = None,
    bounds: Annotated[
        list[str] | None, typer.Option(help="Of an input, where the package records none: ids:0..30521.", show_default=False)
    ] = None,
    as_json: Annotated[bool, json_option("what was changed")] = False,
) -> int:
    """Repair a package for the Neural Engine: the same function and interface, without what goes wrong or is off there."""
    from coreflow.export.package.mlpackage import read_program
    from coreflow.export.proof.repairs import repair_file
    from coreflow.models.draws import draw_inputs
    from coreflow.runtime.interface import input_specs
    from coreflow.validate.inputs.sample_files import read_samples

    program = read_program(package)
    graph, interface = program.function()
    specs = input_specs(program, graph, interface)
    limits = _parse_bounds(bounds or (), specs)
    with progress_bar("repairing"):
        if inputs is not None:
            samples = [sample.inputs for sample in read_samples(inputs, specs, interface=interface)]
        else:
            drawn = {name: replace(spec, bounds=limits.get(name, spec.bounds)) for name, spec in specs.items()}
            samples = [draw_inputs(drawn, seed) for seed in (0, 1)]
        entry = repair_file(package, out_path, target, samples, has_data=inputs is not None, bounds=limits)
    if as_json:
        print_json({"package": str(out_path), **entry})
        return 0
    out().print(f"{out_path}: for {entry['target']}" + ("" if entry["changes"] else ", nothing to repair"), soft_wrap=True)
    for line in repair_lines(entry):
        out().print(f"  {line}", markup=False, soft_wrap=True)
    return 0


def _parse_bounds(texts: Sequence[str], names: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    from coreflow.models.errors import ConfigError

    bounds = {}
    for text in texts:
        matched = _BOUNDS.fullmatch(text)
        if matched is None or matched["name"] not in names:
            raise ConfigError(f"--bounds {text!r}; NAME:LOW..HIGH of an input is right, as in ids:0..30521; inputs are {', '.join(names)}")
        bounds[matched["name"]] = float(matched["low"]), float(matched["high"])
    return bounds
