"""``coreflow validate``, ``coreflow validate diff`` and ``coreflow validate replay``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coreflow.cli.console import err, out, print_json, progress_bar
from coreflow.cli.options import BackendOption, ComparedUnitsOption, json_option
from coreflow.validate.report.files import check_formats, describe_formats, write

if TYPE_CHECKING:
    from coreflow.export.recipe import Recipe
    from coreflow.validate.report.diff import ReportDiff
    from coreflow.validate.report.model import BundleReport, Report

Reports = Annotated[
    list[Path] | None,
    typer.Option("--report", help=f"Also write the report to FILE; its suffix chooses: {describe_formats()}. Several times."),
]
Strict = Annotated[bool, typer.Option("--strict", help="A warning fails.")]
AsJson = Annotated[bool, json_option("the report")]


def validate(
    path: Annotated[Path, typer.Argument(help="A bundle of `coreflow export`, or one .mlpackage.")],
    against: Annotated[
        Path | None, typer.Argument(help="What one package is compared with: another package or an ONNX file.", show_default=False)
    ] = None,
    reference: Annotated[str | None, typer.Option(help="FILE.py:NAME of the recipes that your own packages were made from.")] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="Samples beside the seeds: .npz, .safetensors, .jsonl, pictures or a folder of them; for a bundle texts, .txt or .jsonl."
        ),
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Add extreme inputs: bounds, magnitudes, padding patterns, ids.")] = False,
    within: Annotated[
        float | None, typer.Option(help="Judge by this share of the output's RMS alone, as for compressed packages.", show_default=False)
    ] = None,
    evidence: Annotated[Path, typer.Option(help="Folder for what replays a failure.")] = Path("artifacts/replays"),
    backend: BackendOption = "auto",
    compute_units: ComparedUnitsOption = "all",
    report: Reports = None,
    baseline: Annotated[Path | None, typer.Option(help="Compare with this report, as `validate diff` does.")] = None,
    update_baseline: Annotated[bool, typer.Option("--update-baseline", help="Write the report to --baseline.")] = False,
    unsealed: Annotated[bool, typer.Option("--unsealed", help="Let changed files pass; they are listed.")] = False,
    strict: Strict = False,
    as_json: AsJson = False,
) -> int:
    """Compare saved packages with torch in fp64.

    `coreflow validate diff OLD NEW` compares two reports, and `coreflow validate replay FILE` runs a failure again.

    A folder that is called diff or replay is given as ./diff or ./replay.
    """
    from coreflow.models.errors import ConfigError
    from coreflow.validate.report.diff import compare
    from coreflow.validate.report.json import read_report, to_json, without_pictures, write_report

    # What can be refused is refused before minutes of work.
    check_formats(report or ())
    if update_baseline and baseline is None:
        raise ConfigError("--update-baseline: which file? Give --baseline FILE.json too")
    if baseline is not None and baseline.suffix != ".json":
        raise ConfigError(f"--baseline {baseline}: a baseline is a report in JSON, FILE.json")
    if baseline is not None and not update_baseline and not baseline.exists():
        raise ConfigError(f"--baseline {baseline} is not there; --update-baseline writes it")
    old = None if baseline is None or update_baseline else read_report(baseline)
    if old is not None and ("stages" in old) == (path.suffix == ".mlpackage"):
        kinds = ("bundle", "package") if "stages" in old else ("package", "bundle")
        raise ConfigError(f"--baseline {baseline} is of a {kinds[0]}, and {path} is a {kinds[1]}")
    if against is not None and reference is not None:
        raise ConfigError(f"compare {path.name} with {against} or with the recipes of {reference}, not with both")
    found = validate_with_bar(
        path,
        reference if against is None else str(against),
        backend,
        compute_units,
        verify=not unsealed,
        inputs=inputs,
        sweep=sweep,
        within=within,
        evidence=evidence,
    )
    if baseline is not None and update_baseline:
        write_report(baseline, without_pictures(found))
        err().print(f"baseline: {baseline}", soft_wrap=True, markup=False)
    compared = None if old is None else compare(old, to_json(found))
    return _present(found, report or (), strict=strict, as_json=as_json, compared=compared)


def diff(
    old: Annotated[Path, typer.Argument(help="A report of `coreflow validate --report FILE.json`.")],
    new: Annotated[Path, typer.Argument(help="A later one.")],
    as_json: Annotated[bool, json_option("the changes")] = False,
) -> int:
    """Compare two JSON reports: exit code 0 when nothing got worse, 1 when something did.

    A worse outcome of a gate, a package, output or check that is gone, more flips, overflows or non-finite values are worse.

    So is a rho_rms that grew by more than 10 % and 0.05, or a rho_max or rho_slice that grew by more than 50 % and 0.5.
    """
    from coreflow.validate.report.diff import compare
    from coreflow.validate.report.json import read_report
    from coreflow.validate.report.terminal.diff import render_diff

    found = compare(read_report(old), read_report(new))
    if as_json:
        print_json(found.to_json())
    else:
        out().print(render_diff(found))
    return found.exit_code


def replay(
    file: Annotated[Path, typer.Argument(help="The .safetensors file that a failing report names.")],
    reference: Annotated[
        str | None, typer.Option(help="FILE.py:NAME, a bundle, a package or an ONNX file [default: the recorded outputs].")
    ] = None,
    package: Annotated[Path | None, typer.Option(help="Where the package is, if not where it was.")] = None,
    backend: Annotated[str | None, typer.Option(help="auto, coreml or lifted [default: the recorded one].")] = None,
    report: Reports = None,
    strict: Strict = False,
    as_json: AsJson = False,
) -> int:
    """Run the worst sample of a failed validation again, alone."""

    check_formats(report or ())
    from coreflow.validate.recorded import replay as judge_again

    found = judge_again(file, reference=reference, package=package, backend=backend)  # type: ignore[arg-type]
    return _present(found, report or (), strict=strict, as_json=as_json)


def _present(
    found: "BundleReport | Report", files: Sequence[Path], *, strict: bool, as_json: bool, compared: "ReportDiff | None" = None
) -> int:
    """Write and print a report, and what changed against a baseline; the exit code of the worse of the two."""
    from coreflow.validate.report.json import to_json
    from coreflow.validate.report.terminal.diff import render_diff
    from coreflow.validate.report.terminal.report import render

    for each in files:
        write(each, found, strict=strict)
    if as_json:
        plain = to_json(found)
        print_json(plain if compared is None else {"validation": plain, "baseline": compared.to_json()})
    else:
        console = out()
        console.print(render(found), crop=False)  # commands to copy are longer than a line
        if compared is not None:
            console.print("\nagainst the baseline:", style="bold")
            console.print(render_diff(compared))
        for each in files:
            console.print(f"report: {each}", soft_wrap=True, markup=False)
    # A failing validation says more by its own code than a comparison, which knows only 1.
    return found.exit_code_for(strict=strict) or (compared.exit_code if compared is not None else 0)


def validate_with_bar(
    path: Path,
    reference: str | None = None,
    backend: str = "auto",
    compute_units: str = "all",
    *,
    verify: bool = True,
    inputs: Path | None = None,
    sweep: bool = False,
    within: float | None = None,
    evidence: Path | None = None,
) -> "BundleReport | Report":
    """Judge a bundle or a package while a bar counts its parts."""
    from coreflow.export.user_files import is_recipe_source, load_recipes
    from coreflow.models.errors import ConfigError
    from coreflow.validate import judge_bundle
    from coreflow.validate.gates.tolerance import by_share
    from coreflow.validate.report.model import BundleReport

    tolerance = None if within is None else by_share(within)
    options: dict[str, Any] = {"backend": backend, "compute_units": compute_units, "tolerance": tolerance, "sweep": sweep}
    own = reference is None or is_recipe_source(reference)
    if path.suffix == ".mlpackage":
        against = _only_recipe(path, load_recipes(reference) if own and reference else None) if own else Path(str(reference))
        return _judge_one(path, against, reference, inputs, evidence, options)
    if not own:
        raise ConfigError(f"{path} is a bundle; a package is compared with {reference}, as in {path}/packages/.../NAME.mlpackage")
    recipes = None if reference is None else load_recipes(reference)
    with progress_bar("validating") as (bar, task):
        for event in judge_bundle(path, recipes=recipes, verify=verify, texts=inputs, evidence=evidence, **options):
            if isinstance(event, BundleReport):
                return event
            bar.update(task, total=event.total, completed=event.done, detail=event.part)
            if bar.disable:
                err().print(f"{event.part}: {event.verdict} in {event.seconds:.1f} s")
    raise AssertionError("a validation ends with its report")


def _judge_one(
    path: Path, against: "Recipe | Path", named: str | None, inputs: Path | None, evidence: Path | None, options: dict[str, Any]
) -> "Report":
    """One package against its recipe, another package or an ONNX file."""
    from coreflow.export.package.graph import read_program
    from coreflow.runtime.interface import input_specs
    from coreflow.validate import validate as judge
    from coreflow.validate.inputs.sample_files import read_samples
    from coreflow.validate.options import Evidence

    given = None
    if inputs is not None:
        program = read_program(path)
        graph, interface = program.function()
        given = read_samples(inputs, input_specs(program, graph, interface), interface=interface)
    with progress_bar("validating", total=None):
        draw = None if isinstance(against, Path) else against.inputs_for
        kept = None if evidence is None else Evidence(folder=evidence, reference=named)
        return judge(path, against, given, draw=draw, evidence=kept, **options)


def _only_recipe(package: Path, recipes: "tuple[Recipe, ...] | None") -> "Recipe":
    from coreflow.models.errors import ConfigError

    if not recipes:
        raise ConfigError(
            f"{package.name}: what is it to be compared with? Give another package or an ONNX file after it, "
            "or --reference FILE.py:NAME of its recipe"
        )
    matching = [recipe for recipe in recipes if recipe.name == package.stem] or list(recipes)
    if len(matching) > 1:
        raise ConfigError(f"no recipe is named {package.stem!r}; there are {', '.join(recipe.name for recipe in matching)}")
    return matching[0]
