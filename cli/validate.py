"""``coreflow validate`` with its ``diff`` and ``replay``: compare packages with torch, two reports, one sample again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from coreflow.cli.console import err, fail, out, print_json, progress_bar, warn
from coreflow.cli.options import BackendOption, ComparedUnitsOption, FunctionOption, NumericsOption, json_option
from coreflow.validate.report.files import check_formats, describe_formats, write

if TYPE_CHECKING:
    from rich.console import Console

    from coreflow.runtime.backend import Backend, ComputeUnits, NumericsName
    from coreflow.validate.gates.tolerance import Limits, Tolerance
    from coreflow.validate.options import Options, Phase
    from coreflow.validate.report.diff import ReportDiff
    from coreflow.validate.report.model import BundleReport, Report

Reports = Annotated[
    list[Path] | None,
    typer.Option("--report", help=f"Also write the report to FILE; its suffix chooses: {describe_formats()}. Several times."),
]
Inputs = Annotated[
    Path | None,
    typer.Option(
        help="Samples beside the seeds: .npz, .safetensors, .jsonl, pictures or a folder of them; for a bundle texts, .txt or .jsonl."
    ),
]
Within = Annotated[
    float | None, typer.Option(help="Judge by this share of the output's RMS alone, as for compressed packages.", show_default=False)
]
Contract = Annotated[
    float | None, typer.Option(help="Largest RMS error, as a share of the output's RMS [default: 0.01; fp32 0.0001].", show_default=False)
]
Ceiling = Annotated[
    float | None, typer.Option(help="The same for torch's own fp16 [default: 0.01, or --contract if that is more].", show_default=False)
]
LimitsFile = Annotated[
    Path | None, typer.Option(help="FILE.toml or .json of contract and ceiling by output: [NAME] and contract = 0.02.", show_default=False)
]
Quick = Annotated[bool, typer.Option("--quick", help="Two seeds, and no op is looked at; a note of the report says so.")]
Seeds = Annotated[int | None, typer.Option(min=1, help="Samples to draw [default: 8, or 2 with --quick].", show_default=False)]
Accept = Annotated[
    list[str] | None,
    typer.Option(help="OP:REASON: what every conversion of the module changes at this op does not matter. Several times."),
]
Strict = Annotated[bool, typer.Option("--strict", help="A warning fails.")]
AsJson = Annotated[bool, json_option("the report")]


def validate(
    path: Annotated[Path, typer.Argument(help="A bundle of `coreflow export`, or one .mlpackage.")],
    against: Annotated[
        Path | None, typer.Argument(help="What one package is compared with: another package or an ONNX file.", show_default=False)
    ] = None,
    reference: Annotated[str | None, typer.Option(help="FILE.py:NAME of the recipes that your own packages were made from.")] = None,
    inputs: Inputs = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Add extreme inputs: bounds, magnitudes, padding patterns, ids.")] = False,
    within: Within = None,
    contract: Contract = None,
    ceiling: Ceiling = None,
    limits: LimitsFile = None,
    quick: Quick = False,
    seeds: Seeds = None,
    accept: Accept = None,
    function: FunctionOption = None,
    evidence: Annotated[Path, typer.Option(help="Folder for what replays a failure.")] = Path("artifacts/replays"),
    backend: BackendOption = "auto",
    numerics: NumericsOption = "fp16",
    compute_units: ComparedUnitsOption = "all",
    reports: Reports = None,
    baseline: Annotated[Path | None, typer.Option(help="Compare with this report, as `validate diff` does.")] = None,
    update_baseline: Annotated[bool, typer.Option("--update-baseline", help="Write the report to --baseline.")] = False,
    unsealed: Annotated[bool, typer.Option("--unsealed", help="Let changed files pass; they are listed.")] = False,
    strict: Strict = False,
    as_json: AsJson = False,
) -> int:
    """Compare saved packages with torch in fp64.

    `coreflow validate diff OLD NEW` compares two reports, and `coreflow validate replay FILE` runs a failure again; a folder of such a
    name is given as ./diff or ./replay.
    """
    from coreflow.validate.gates.tolerance import Limits
    from coreflow.validate.options import Evidence, Options
    from coreflow.validate.report.diff import compare
    from coreflow.validate.report.json import to_json

    check_formats(reports or ())  # wrong arguments are refused before minutes of work
    old = _read_baseline(baseline, update_baseline, path)
    named = _reference_of(path, against, reference)
    tolerance, output_limits = _read_limits(within, contract, ceiling, limits)
    options = Options(
        backend=cast("Backend", backend),  # all three are checked where a package is opened
        numerics=cast("NumericsName", numerics),
        compute_units=cast("ComputeUnits", compute_units),
        tolerance=tolerance,
        limits=Limits(contract=contract, ceiling=ceiling),
        output_limits=output_limits,
        sweep=sweep,
        evidence=Evidence(folder=evidence),
        quick=quick,
        seeds=seeds,
        accepted=dict(_split(text) for text in accept or ()),
        function_name=function,
    )
    report = validate_with_bar(path, options, reference=named, inputs=inputs, verify=not unsealed)
    changes = None if old is None else compare(old, to_json(report))
    kept, record = baseline if update_baseline else None, partial(_record, path, report, options)
    return _present(report, reports or (), strict=strict, as_json=as_json, changes=changes, baseline=kept, record=record)


def _reference_of(path: Path, against: Path | None, reference: str | None) -> str | None:
    """The package or the recipes to compare with, as far as one was given."""
    from coreflow.models.errors import ConfigError

    if against is not None and reference is not None:
        raise ConfigError(f"compare {path.name} with {against} or with the recipes of {reference}, not with both")
    return reference if against is None else str(against)


def _record(path: Path, report: "BundleReport | Report", options: "Options") -> None:
    """Show the verdict on a bundle in its model card; a bundle that cannot be written to stays as it is."""
    from datetime import UTC, datetime

    from coreflow.export.card import TOGETHER, record_verdicts
    from coreflow.validate.report.model import BundleReport

    if not isinstance(report, BundleReport):
        return
    given = {
        "--quick": options.quick,
        "--within": options.tolerance,
        "--contract": options.limits.contract,
        "--ceiling": options.limits.ceiling,
        "--limits": options.output_limits,
        "--accept": options.accepted,
        f"--numerics {options.numerics}": options.numerics != "fp16",
    }
    conditions = ", ".join(option for option, value in given.items() if value)
    outcomes: dict[str, str] = {**{name: stage.verdict for name, stage in report.stages.items()}, TOGETHER: report.verdict}
    try:
        record_verdicts(path, outcomes, date=datetime.now(UTC).isoformat(timespec="seconds"), conditions=conditions)
    except OSError as error:
        warn(f"the model card of {path} could not be written: {error.strerror or error}")


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

    changes = compare(read_report(old), read_report(new))
    if as_json:
        print_json(changes.to_json())
    else:
        out().print(render_diff(changes))
    return changes.exit_code


def replay(
    file: Annotated[Path, typer.Argument(help="The .safetensors file that a failing report names.")],
    reference: Annotated[
        str | None, typer.Option(help="FILE.py:NAME, a bundle, a package or an ONNX file [default: the recorded outputs].")
    ] = None,
    package: Annotated[Path | None, typer.Option(help="Where the package is, if not where it was.")] = None,
    backend: Annotated[str | None, typer.Option(help="auto, coreml or lifted [default: the recorded one].")] = None,
    reports: Reports = None,
    strict: Strict = False,
    as_json: AsJson = False,
) -> int:
    """Run the worst sample of a failed validation again, alone."""
    from coreflow.validate.recorded import replay as validate_again

    check_formats(reports or ())
    report = validate_again(file, reference=reference, package=package, backend=backend)  # type: ignore[arg-type]
    return _present(report, reports or (), strict=strict, as_json=as_json)


def validate_with_bar(
    path: Path, options: "Options", *, reference: str | None = None, inputs: Path | None = None, verify: bool = True
) -> "BundleReport | Report":
    """The report of ``validate_files``, which takes the same arguments, while a bar shows the phase and the share that is done."""
    from coreflow.validate.from_files import validate_files
    from coreflow.validate.report.model import BundleReport, Report

    with progress_bar("validating", total=1.0, counts=False) as (bar, task):
        done = 0.0

        def show(phase: "Phase") -> None:
            nonlocal done
            done = max(done, phase.share)  # seeds that are drawn later begin again
            bar.update(task, completed=done, detail=f"{phase.part}: {phase.name}")

        for event in validate_files(path, replace(options, progress=show), reference=reference, inputs=inputs, verify=verify):
            if isinstance(event, BundleReport | Report):
                return event
            if bar.disable:
                err().print(f"{event.part}: {event.verdict} in {event.seconds:.1f} s")
    raise AssertionError("a validation ends with its report")


def _read_limits(
    within: float | None, contract: float | None, ceiling: float | None, file: Path | None
) -> tuple["Tolerance | None", "dict[str, Limits]"]:
    """The tolerance of ``--within``, and the limits in ``file`` by output; ``--within`` allows no other limit."""
    from coreflow.models.errors import ConfigError
    from coreflow.validate.gates.limits import read_limits
    from coreflow.validate.gates.tolerance import by_share

    if within is not None and (contract, ceiling, file) != (None, None, None):
        raise ConfigError("--within is a contract by itself; leave out --contract, --ceiling and --limits")
    return None if within is None else by_share(within), {} if file is None else read_limits(file)


def _split(accepted: str) -> tuple[str, str]:
    """OP and REASON."""
    op, _, reason = accepted.partition(":")
    return op.strip(), reason.strip()


def _read_baseline(baseline: Path | None, update: bool, path: Path) -> dict[str, Any] | None:
    """The report that a validation of ``path`` is compared with; None where there is none, or where it is about to be written."""
    from coreflow.models.errors import ConfigError
    from coreflow.validate.report.json import read_report

    if baseline is None:
        if update:
            raise ConfigError("--update-baseline: which file? Give --baseline FILE.json too")
        return None
    if baseline.suffix != ".json":
        raise ConfigError(f"--baseline {baseline}: a baseline is a report in JSON, FILE.json")
    if update:
        return None
    if not baseline.exists():
        raise ConfigError(f"--baseline {baseline} is not there; --update-baseline writes it")
    old = read_report(baseline)
    if ("stages" in old) == (path.suffix == ".mlpackage"):
        kinds = ("bundle", "package") if "stages" in old else ("package", "bundle")
        raise ConfigError(f"--baseline {baseline} is of a {kinds[0]}, and {path} is a {kinds[1]}")
    return old


def _present(
    report: "BundleReport | Report",
    files: Sequence[Path],
    *,
    strict: bool,
    as_json: bool,
    changes: "ReportDiff | None" = None,
    baseline: Path | None = None,
    record: Callable[[], None] = lambda: None,
) -> int:
    """Print a report and its changes, then write it to ``files`` and ``baseline``; the exit code of the worst of these.

    ``record`` is called where there are ``files``.
    """
    try:
        _print(report, changes, as_json=as_json)
    finally:  # a reader who goes away, as `| head` does, takes no file along
        is_written = _write(report, files, baseline, strict=strict, as_json=as_json)
    if files:
        record()
    # A failing validation says more by its own code than a comparison, which knows only 1.
    return report.exit_code_for(strict=strict) or (changes.exit_code if changes is not None else 0) or (0 if is_written else 2)


def _print(report: "BundleReport | Report", changes: "ReportDiff | None", *, as_json: bool) -> None:
    from coreflow.validate.report.json import to_json
    from coreflow.validate.report.terminal.diff import render_diff
    from coreflow.validate.report.terminal.report import render

    if as_json:
        plain = to_json(report)
        print_json(plain if changes is None else {"validation": plain, "baseline": changes.to_json()})
        return
    console = out()
    console.print(render(report), crop=False)  # commands to copy are longer than a line
    if changes is not None:
        console.print("\nagainst the baseline:", style="bold")
        console.print(render_diff(changes))


def _write(report: "BundleReport | Report", files: Sequence[Path], baseline: Path | None, *, strict: bool, as_json: bool) -> bool:
    """Write the report to its files; whether all could be written."""
    from coreflow.validate.report.json import without_pictures, write_report

    console = None if as_json else out()
    are_written = [_is_written("report", file, partial(write, file, report, strict=strict), console) for file in files]
    if baseline is not None:
        are_written.append(_is_written("baseline", baseline, lambda: write_report(baseline, without_pictures(report)), err()))
    return all(are_written)


def _is_written(kind: str, path: Path, write_file: Callable[[], None], console: "Console | None") -> bool:
    """Whether ``write_file`` could write ``path``, after a line that says so: on ``console``, or as an error."""
    try:
        write_file()
    except OSError as error:
        fail(f"the {kind} {path} could not be written: {error.strerror or error}")
        return False
    if console is not None:
        console.print(f"{kind}: {path}", soft_wrap=True, markup=False)
    return True
