"""The map of packages as an HTML file: their placement on a target, with the findings and proofs of lint."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from coreflow.cli.text.placement import DEVICES, evidence_lines
from coreflow.export.engine.bounds.hazards import Proofs
from coreflow.export.engine.chips import find_chip
from coreflow.export.engine.features import features_of
from coreflow.export.engine.finding import Finding
from coreflow.export.engine.placement import PlacedOp, Placement, place
from coreflow.export.engine.targets import Target
from coreflow.export.lint.lint import examine_package
from coreflow.export.package.graph import Graph, Program
from coreflow.models.errors import ConfigError
from coreflow.models.storage import write_atomically
from coreflow.validate.report.html.map import MapOp, MapRegion, ProgramMap, map_page

PROVED = {"proved": "proved in range", "open": "range open", "seen": "out of range in the data"}


def write_map(file: Path, functions: Iterable[tuple[str, Program, str]], target: Target) -> None:
    """Write the page of ``functions``: label, program and name of each; ``ConfigError`` where the file cannot be written."""
    chips = chips_of(target)
    maps, placements = [], []
    for label, program, function in functions:
        examined = examine_package(program.path, chips)
        graph, _ = program.function(function)
        placements.append(place(graph, target))
        findings = [finding for finding in examined.findings if finding.function == function]
        maps.append(map_of(label, graph, placements[-1], findings, examined.proofs.get(function)))
    page = map_page(f"Map for {target.key}: {', '.join(entry.label for entry in maps)}", maps, list(evidence_lines(placements)))
    try:
        write_atomically(file, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--html {file} cannot be written: {error.strerror or error}", path=file) from error


def chips_of(target: Target) -> tuple[str, ...]:
    """The chip of a target by the name that lint has for it; none where it has none, which stands for all."""
    try:
        return (find_chip(target.key).name,)
    except ConfigError:
        return ()


def map_of(label: str, graph: Graph, placement: Placement, findings: Sequence[Finding], proofs: Proofs | None) -> ProgramMap:
    """The map of one function."""
    by_op: dict[str, list[tuple[str, str]]] = {}
    for finding in findings:
        text = f"{finding.title}{f' ({finding.detail})' if finding.detail else ''}"
        by_op.setdefault(finding.op, []).append((finding.severity, text))
    reads = _reads(graph)
    worst: Mapping[str, str] = {} if proofs is None else proofs.worst
    ops = tuple(
        _map_op(op, reads[number], PROVED.get(worst.get(op.name, ""), ""), tuple(by_op.get(op.name, ())))
        for number, op in enumerate(placement.ops)
    )
    lead = f"{placement.count('engine')} of {len(ops)} ops on the Neural Engine and {placement.count('cpu')} on the CPU, predicted for "
    notes = [f"{severity}: {text}" for severity, text in by_op.get("", ())]
    if proofs is not None and proofs.ops:
        notes.append(f"{proofs.count('proved')} of {proofs.ops} ops are proved to stay in range for every input within the bounds.")
    return ProgramMap(
        label=label,
        lead=f"{lead}{placement.target.key} from a published model, not measured. Milliseconds are Apple's planning figures, no time.",
        ops=ops,
        regions=tuple(
            MapRegion(device=region.device, first=region.first, last=region.last, text=f"{region.share:.1%} of the cost")
            for region in placement.regions
        ),
        notes=tuple(notes),
    )


def _map_op(op: PlacedOp, reads: tuple[int, ...], proof: str, findings: tuple[tuple[str, str], ...]) -> MapOp:
    output = op.features.outputs[0] if op.features.outputs else None
    other = "cpu" if op.device == "engine" else "engine"
    margin = "a tie" if op.is_tied else f"{op.margin_ms:.3g} ms to the {DEVICES[other]}" if op.support.engine else ""
    return MapOp(
        name=op.name,
        type=op.type,
        device=op.device,
        shape="" if output is None else f"{' x '.join(map(str, output.shape)) or 'a number'} {output.dtype}",
        reads=reads,
        cost=f"{op.ms[op.backend]:.3g} ms, {op.share:.1%}",
        margin=f"{margin}{', fragile' if op.is_fragile else ''}",
        reason=op.support.reason,
        proof=proof,
        findings=findings,
    )


def _reads(graph: Graph) -> list[tuple[int, ...]]:
    """By placed op: the places of the ops whose results it reads, through ops that have no place."""
    places = {id(op): number for number, (op, _) in enumerate(features_of(graph))}
    makers: dict[int, tuple[int, ...]] = {}
    result = []
    for op in graph.ops:
        read = tuple(sorted({maker for value in op.reads() for maker in makers.get(id(value), ())}))
        number = places.get(id(op))
        if number is not None:
            result.append(read)
        for value in op.outputs:
            makers[id(value)] = read if number is None else (number,)
    return result
