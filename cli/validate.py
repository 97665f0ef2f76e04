"""``coreflow validate``, ``coreflow validate diff`` and ``coreflow validate replay``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coreflow.cli.console import err, out, print_json, progress_bar

if TYPE_CHECKING:
    from coreflow.export.recipe import Recipe
    from coreflow.validate.report.diff import ReportDiff
    from coreflow.validate.report.model import BundleReport, Report

Reports = Annotated[
    list[Path] | None,
    typer.Option("--report", help="Also write the report to FILE; its suffix chooses: .json, .html, .xml (JUnit) or .md. Several times."),
]
Strict = Annotated[bool, typer.Option("--strict", help="A warning fails.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def validate(
    path: Annotated[Path, typer.Argument(help="A bundle of `coreflow export`, or one .mlpackage.")],
    reference: Annotated[
        str | None,
        typer.Option(
            help="FILE.py:NAME of the recipes that your own packages were made from; for one package also a package or ONNX file."
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="auto (Core ML on macOS, lifted elsewhere), coreml or lifted.")] = "auto",
    compute_units: Annotated[str, typer.Option(help="Core ML's: all, cpu_only, cpu_and_gpu or cpu_and_ne.")] = "all",
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
    from coreflow.validate.report.files import check_formats
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
    found = validate_with_bar(path, reference, backend, compute_units, verify=not unsealed)
    if baseline is not None and update_baseline:
        write_report(baseline, without_pictures(found))
        err().print(f"baseline: {baseline}", soft_wrap=True, markup=False)
    compared = None if old is None else compare(old, to_json(found))
    return _present(found, report or (), strict=strict, as_json=as_json, compared=compared)


def diff(
    old: Annotated[Path, typer.Argument(help="A report of `coreflow validate --report FILE.json`.")],
    new: Annotated[Path, typer.Argument(help="A later one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the changes as JSON.")] = False,
) -> int:
    """Compare two JSON reports: exit code 0 when nothing got worse, 1 when something did.

    A worse outcome of a gate, a package, output or check that is gone, more flips, overflows or non-finite values are worse.

    So is a rho_rms that grew by more than 10 % and 0.05, or a rho_max or rho_slice that grew by more than 50 % and 0.5.
    """
    from coreflow.validate.report.diff import compare
    from coreflow.validate.report.json import read_report
    from coreflow.validate.report.terminal import render_diff

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
    from coreflow.validate.report.files import check_formats

    check_formats(report or ())
    from coreflow.validate.replay import replay as judge_again

    found = judge_again(file, reference=reference, package=package, backend=backend)  # type: ignore[arg-type]
    return _present(found, report or (), strict=strict, as_json=as_json)


def _present(
    found: "BundleReport | Report", files: Sequence[Path], *, strict: bool, as_json: bool, compared: "ReportDiff | None" = None
) -> int:
    """Write and print a report, and what changed against a baseline; the exit code of the worse of the two."""
    from coreflow.validate.report.files import write
    from coreflow.validate.report.json import to_json
    from coreflow.validate.report.terminal import render, render_diff

    for each in files:
        write(each, found, strict=strict)
    if as_json:
        plain = to_json(found)
        print_json(plain if compared is None else {"validation": plain, "baseline": compared.to_json()})
    else:
        console = out()
        console.print(render(found))
        if compared is not None:
            console.print("\nagainst the baseline:", style="bold")
            console.print(render_diff(compared))
        for each in files:
            console.print(f"report: {each}", soft_wrap=True, markup=False)
    # A failing validation says more by its own code than a comparison, which knows only 1.
    return found.exit_code_for(strict=strict) or (compared.exit_code if compared is not None else 0)


def validate_with_bar(
    path: Path, reference: str | None = None, backend: str = "auto", compute_units: str = "all", *, verify: bool = True
) -> "BundleReport | Report":
    """Judge a bundle or a package while a bar counts its parts."""
    from coreflow.export.source import is_recipe_source, load_recipes
    from coreflow.validate import judge_bundle
    from coreflow.validate import validate as judge
    from coreflow.validate.report.model import BundleReport

    if path.suffix == ".mlpackage" and reference is not None and not is_recipe_source(reference):
        return judge(path, Path(reference), backend=backend, compute_units=compute_units)  # type: ignore[arg-type]
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
