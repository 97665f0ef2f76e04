"""``coreflow place``: which device Core ML will give each op, predicted on any machine; on a Mac beside the compute plan."""

import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coreflow.cli.console import out, print_json, warn
from coreflow.cli.options import FunctionOption, json_option
from coreflow.models.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from coreflow.export.engine.compute_plan import Comparison
    from coreflow.export.engine.placement import PlacedOp, Placement
    from coreflow.export.engine.targets import Target
    from coreflow.export.package.graph import Program


def place(
    path: Annotated[Path | None, typer.Argument(help="An .mlpackage, or a bundle of `coreflow export`.")] = None,
    target: Annotated[str, typer.Option(help="Chip and system; one without a table is told by its neighbours.")] = "M4/macOS27",
    function: FunctionOption = None,
    all_ops: Annotated[bool, typer.Option("--all-ops", help="Show every op, not only the regions.")] = False,
    targets: Annotated[bool, typer.Option("--targets", help="List the targets that have a table, and how it is known.")] = False,
    learn: Annotated[Path | None, typer.Option(help="On a Mac: append what the compute plan has otherwise, as JSON lines.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a map too: every op with its device, cost, findings and proofs, as one page.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="On a Mac: ask for the plan of large kernels too; it takes minutes.")] = False,
    as_json: Annotated[bool, json_option("the placement", "or the targets of --targets")] = False,
) -> int:
    """Predict which device Core ML gives each op, and what would change it. Nothing is executed; a Mac is asked for its plan."""
    from coreflow.export.engine.targets import all_targets, find_targets

    if targets:
        _list_targets(list(all_targets().values()), as_json)
        return 0
    if path is None:
        raise typer.BadParameter("a package is missing; as in coreflow place FILE.mlpackage, or coreflow place artifacts/NAME")
    if learn is not None and platform.system() != "Darwin":
        raise ConfigError(f"--learn {learn}: only a Mac has a compute plan to learn from, and this is {platform.system()}")
    chosen = find_targets(target)
    if html is not None:
        from coreflow.cli.text.maps import write_map

        write_map(html, functions_at(path, function), chosen[0])
    results = []
    for label, program, name in functions_at(path, function):
        result = _predict(program, name, label, chosen, force=force)
        results.append(result)
        if not as_json:
            _show(result, target, all_ops)
        if learn is not None:
            _learn(learn, result)
    if as_json:
        plain = [result_json(result, target) for result in results]
        print_json(plain[0] if path.suffix == ".mlpackage" else plain)
    else:
        _show_sources([placement for result in results for placement in result.placements])
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One function: its placement on every target, and the comparison of the first with this Mac's plan.

    >>> Result(label="encoder", package="encoder.mlpackage", function="main", placements=(placement,), comparison=None)
    """

    label: str
    package: str
    function: str
    placements: tuple["Placement", ...]
    comparison: "Comparison | None"


def functions_at(path: Path, function: str | None) -> Iterator[tuple[str, "Program", str]]:
    """Label, program and function of a package, or of every stage of a bundle."""
    from coreflow.export.package.manifest import read_manifest
    from coreflow.export.package.mlpackage import read_program

    if path.suffix in (".mlpackage", ".mlmodelc"):
        program = read_program(path)
        yield path.name, program, program.function(function)[0].name
        return
    for stage, entry in read_manifest(path, verify=False).stages.items():
        program = read_program(path / entry.package)
        yield stage, program, program.function(function or entry.function)[0].name


def _predict(program: "Program", function: str, label: str, targets: Sequence["Target"], *, force: bool) -> Result:
    from coreflow.export.engine.compute_plan import compare, read_plan
    from coreflow.export.engine.placement import place as place_graph

    graph, _ = program.function(function)
    placements = tuple(place_graph(graph, target) for target in targets)
    comparison = None
    if platform.system() == "Darwin":
        try:
            comparison = compare(placements[0], read_plan(program, placements[0], function, force=force))
        except UnsupportedError as error:
            warn(str(error))
    return Result(label=label, package=program.path.name, function=function, placements=placements, comparison=comparison)


def _learn(file: Path, result: Result) -> None:
    from coreflow.export.engine.compute_plan import learn, this_machine

    if result.comparison is not None:
        count = learn(file, result.placements[0], result.comparison, this_machine())
        warn(f"{file}: {count} disagreements of {result.label} appended")


def _differing(placements: Sequence["Placement"]) -> list[tuple["PlacedOp", "PlacedOp"]]:
    """Ops of the first two placements with different devices."""
    if len(placements) < 2:
        return []
    return [(one, other) for one, other in zip(placements[0].ops, placements[1].ops, strict=True) if one.device != other.device]


def _show(result: Result, asked: str, all_ops: bool) -> None:
    from coreflow.cli.text.placement import show_comparison, show_disagreement, show_placement
    from coreflow.export.engine.targets import table_of

    if table_of(asked) is None:
        names = " and ".join(placement.target.key for placement in result.placements)
        kind = "neighbours" if len(result.placements) > 1 else "neighbour"
        out().print(f"{result.label}: {asked} has no table; predicted for its {kind}, {names}", markup=False, soft_wrap=True)
    for placement in result.placements:
        show_placement(result.label, result.function, placement, all_ops)
    if len(result.placements) > 1:
        show_disagreement(result.placements, _differing(result.placements))
    if result.comparison is not None:
        show_comparison(result.placements[0], result.comparison, all_ops)


def _show_sources(placements: Sequence["Placement"]) -> None:
    from coreflow.cli.text.placement import evidence_lines

    for text in evidence_lines(placements):
        out().print(text, markup=False, soft_wrap=True)


def _list_targets(targets: Sequence["Target"], as_json: bool) -> None:
    from coreflow.export.engine.targets import labels, sources

    if not as_json:
        from coreflow.cli.text.placement import show_targets

        show_targets(targets)
        return
    listed = [
        {"key": target.key, "chip": target.chip, "evidence": {name: asdict(table) for name, table in target.evidence.items()}}
        for target in targets
    ]
    print_json({"targets": listed, "labels": dict(labels()), "sources": dict(sources())})


# --- JSON ----------------------------------------------------------------------------------------------------------------------------


def result_json(result: Result, asked: str) -> dict[str, Any]:
    """The placements of one function as plain data."""
    comparison = result.comparison
    return {
        "package": result.package,
        "label": result.label,
        "function": result.function,
        "asked": asked,
        "kind": "prediction from a published model, not measured",
        "placements": [placement_json(placement) for placement in result.placements],
        "disagreements": [op.name for op, _ in _differing(result.placements)],
        "plan": None
        if comparison is None
        else {
            "compared": len(comparison.pairs),
            "disagreements": [
                {"name": pair.predicted.name, "predicted": pair.predicted.device, "measured": asdict(pair.measured)}
                for pair in comparison.disagreements
            ],
            "largest_share_error": comparison.largest_share_error,
            "keeps_order": comparison.keeps_order,
            "only_predicted": [op.name for op in comparison.only_predicted],
            "only_measured": [op.name for op in comparison.only_measured],
        },
    }


def placement_json(placement: "Placement") -> dict[str, Any]:
    """A placement as plain data; milliseconds that no path has are null."""
    from coreflow.export.engine.advice import shortfalls
    from coreflow.export.engine.targets import sources

    target = placement.target
    return {
        "target": target.key,
        "chip": target.chip,
        "compute_units": "CPU_AND_NE",
        "evidence": {name: asdict(evidence) for name, evidence in target.evidence.items()},
        "sources": dict(sources()),
        "total_ms": placement.total_ms,
        "counts": {device: placement.count(device) for device in ("engine", "cpu")},
        "regions": [
            {
                "device": region.device,
                "first": region.first,
                "last": region.last,
                "ms": region.ms,
                "share": region.share,
                "multiply_adds": region.multiply_adds,
                "margin_ms": _finite(region.margin_ms),
                "flip_ms": _finite(region.flip_ms),
                "fragile": region.is_fragile,
                "turns_on": list(region.turns_on),
            }
            for region in placement.regions
        ],
        "ops": [
            {
                "name": op.name,
                "type": op.type,
                "device": op.device,
                "supported": ["cpu", *(["engine"] if op.support.engine else [])],
                "reason": op.support.reason,
                "sure": op.support.is_sure,
                "evidence": None if op.support.evidence is None else asdict(op.support.evidence),
                "ms": dict(op.ms),
                "share": op.share,
                "multiply_adds": op.multiply_adds,
                "margin_ms": _finite(op.margin_ms),
                "tied": op.is_tied,
                "fragile": op.is_fragile,
                "turns_on": list(op.turns_on),
                "borrowed": op.is_borrowed,
            }
            for op in placement.ops
        ],
        "shortfalls": [asdict(shortfall) for shortfall in shortfalls(placement)],
    }


def _finite(ms: float) -> float | None:
    return ms if math.isfinite(ms) else None
