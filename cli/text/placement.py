"""How ``coreflow place`` prints placements: regions, ops, reasons, and what would change it."""

import math
from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from coreflow.cli.console import out
from coreflow.export.engine.advice import obstacles, shortfalls
from coreflow.export.engine.compute_plan import Comparison
from coreflow.export.engine.placement import PlacedOp, Placement, Region
from coreflow.export.engine.targets import Target, labels, op_evidence, sources

DEVICES = {"engine": "Neural Engine", "cpu": "CPU", "gpu": "GPU", "none": "none"}
UNKNOWNS = {
    "second launch": "the price of a second launch",
    "rates": "rates between two published sizes",
}


def show_placement(label: str, function: str, placement: Placement, all_ops: bool) -> None:
    """Print one placement."""
    target = placement.target
    _line(
        f"{label}, function {function}: of {len(placement.ops)} ops {placement.count('engine')} on the Neural Engine and "
        f"{placement.count('cpu')} on the CPU, predicted for {target.key} ({target.chip}) with compute units CPU_AND_NE"
    )
    _line("A prediction from a published model, not measured. Estimates are Apple's planning figures, and no forecast of time.")
    out().print(_region_table(placement))
    if all_ops:
        out().print(_op_table(placement))
    for text in (*_reasons(placement), *_changes(placement), *_caveats(placement), ""):
        _line(text)


def _line(text: str) -> None:
    out().print(text, markup=False, soft_wrap=True)


def _region_table(placement: Placement) -> Table:
    table = _table("region", "device", "ops", "first op", "last op", right=2)
    for title in ("estimate ms", "of the cost", "of multiply-adds", "next path + ms", "elsewhere + ms"):
        table.add_column(title, justify="right")
    table.add_column("certainty")
    work = sum(op.multiply_adds for op in placement.ops)
    for number, region in enumerate(placement.regions, 1):
        ops = placement.ops_of(region)
        table.add_row(
            str(number),
            DEVICES[region.device],
            str(region.size),
            Text(f"{ops[0].name} ({ops[0].type})"),
            Text(f"{ops[-1].name} ({ops[-1].type})"),
            f"{region.ms:.4f}",
            f"{region.share:.1%}",
            f"{region.multiply_adds / work:.1%}" if work else "",
            _milliseconds(region.margin_ms),
            _milliseconds(region.flip_ms),
            _certainty(region, ops),
        )
    return table


def _op_table(placement: Placement) -> Table:
    table = _table("op", "name", "type", "device", right=1)
    for title in ("engine ms", "CPU ms", "of the cost", "other device + ms"):
        table.add_column(title, justify="right")
    table.add_column("remark")
    for number, op in enumerate(placement.ops):
        remark = op.support.reason or ("" if op.support.is_sure else "in no plan that was read")
        cpu = min(ms for backend, ms in op.ms.items() if backend != "ane")
        table.add_row(
            str(number),
            Text(op.name),
            Text(op.type),
            DEVICES[op.device],
            f"{op.ms['ane']:.5f}" if "ane" in op.ms else "",
            f"{cpu:.5f}",
            f"{op.share:.2%}",
            "tie" if op.is_tied else _milliseconds(op.margin_ms),
            Text("; ".join(filter(None, (remark, *(f"turns on {UNKNOWNS[reason]}" for reason in op.turns_on))))),
        )
    return table


def _milliseconds(ms: float) -> str:
    return f"{ms:.4f}" if math.isfinite(ms) else "none"


def _certainty(region: Region, ops: Sequence[PlacedOp]) -> str:
    """In words: what holds the region, and which of its ops a little would move."""
    if all(not op.support.engine for op in ops):
        return "no other device takes these ops"
    tied, fragile = sum(op.is_tied for op in ops), sum(op.is_fragile and not op.is_tied for op in ops)
    parts = [f"fragile: turns on {UNKNOWNS[reason]}" for reason in region.turns_on] or (["fragile"] if region.is_fragile else [])
    parts += [f"tie: {tied} op{'s' * (tied > 1)} on either side"] if tied else []
    parts += [f"{fragile} op{'s' * (fragile > 1)} by less than 0.02 ms"] if fragile and not region.is_fragile else []
    return "; ".join(parts) or "firm"


def _reasons(placement: Placement) -> Iterator[str]:
    for obstacle in obstacles(placement.ops):
        known = f" ({obstacle.evidence.label}, {obstacle.evidence.source})" if obstacle.evidence else " (no plan was read)"
        ops = f"{obstacle.count} op{'s' * (obstacle.count > 1)} ({', '.join(obstacle.types)})"
        yield f"not on the Neural Engine, {ops}: {obstacle.reason}{known}"


def _changes(placement: Placement) -> Iterator[str]:
    """What would bring more to the engine."""
    for short in shortfalls(placement):
        first, last = placement.ops[short.first], placement.ops[short.last]
        text = (
            f"what would change it: the Neural Engine would save {short.saved_ms:.4f} ms from {first.name} to {last.name}, and going there "
            f"costs {short.needed_ms:.3f} ms; fuse the program with more work for it"
        )
        if short.batch_factor is not None:
            text += f", or batch {short.batch_factor} times as much"
        if short.inner_extent is not None:
            length, enough = short.inner_extent
            text += f", or rows of {enough} instead of {length}"
        yield text
    for number, region in enumerate(placement.regions):
        if region.device == "cpu" and 0 < number < len(placement.regions) - 1:
            price = placement.target.launch_ms + 2 * placement.target.switch_ms
            yield (
                f"what would change it: region {number + 1} interrupts the Neural Engine, which costs {price:.3f} ms and its own "
                f"{region.ms:.4f} ms; do its work before the program, after it, or in fp16 ops that the engine takes"
            )


def _caveats(placement: Placement) -> Iterator[str]:
    """What of this program is beyond the tables."""
    ops = placement.ops
    if borrowed := sorted({op.type for op in ops if op.is_borrowed}):
        yield f"rates of another target: {', '.join(borrowed)}"
    if unsure := sorted({op.type for op in ops if not op.support.is_sure}):
        yield f"in no plan that was read: {', '.join(unsure)}"
    if any("second launch" in op.turns_on for op in ops):
        price = f"{placement.target.second_launch_ms} ms as the first ({placement.target.evidence['graph'].label})"
        yield f"second launch: {price}, or below 0.108 as the one published program with two has it (fit, K)"
    for op_type, (text, evidence) in op_evidence("remark").items():
        if any(op.type == op_type and op.device == "engine" for op in ops):
            yield f"{op_type}: {text} ({evidence.label}, {evidence.source})"
    if any(op.features.is_open for op in ops):
        yield "shapes are open until a prediction runs; an open extent counts as 1, and the placement is that of the smallest input"
    if any(op.type in ("cond", "while_loop") for op in ops):
        yield "control flow counts as one op on the CPU; what its blocks hold is not placed"


def evidence_lines(placements: Sequence[Placement]) -> Iterator[str]:
    """How the tables of these placements are known, and from whom."""
    yield "ops are in the order of the file; what Core ML's own passes reorder or fuse is not known"
    for target in {placement.target.key: placement.target for placement in placements}.values():
        known: dict[tuple[str, str], list[str]] = {}
        for name, evidence in target.evidence.items():
            known.setdefault((evidence.label, evidence.source), []).append(name)
        tables = "; ".join(f"{', '.join(names)}: {label} ({source})" for (label, source), names in known.items())
        yield f"tables of {target.key}: {tables}"
    every = [evidence for placement in placements for evidence in placement.target.evidence.values()]
    every += [op.support.evidence for placement in placements for op in placement.ops if op.support.evidence]
    for letter in sorted({evidence.source[0] for evidence in every} & set(sources())):
        yield f"{letter}: {sources()[letter]}"


def show_disagreement(placements: Sequence[Placement], differing: Sequence[tuple[PlacedOp, PlacedOp]]) -> None:
    """Print where two neighbours differ."""
    first, second = (placement.target.key for placement in placements[:2])
    if not differing:
        _line(f"{first} and {second} agree on every op")
        return
    table = _table("op", "type", first, second)
    for one, other in differing:
        table.add_row(Text(one.name), Text(one.type), DEVICES[one.device], DEVICES[other.device])
    _line(f"{first} and {second} differ on {len(differing)} ops, of which nothing can be said:")
    out().print(table)


def show_comparison(placement: Placement, comparison: Comparison, all_ops: bool) -> None:
    """Print the prediction beside this Mac's plan: the ops that differ, or all of them."""
    agreeing = len(comparison.pairs) - len(comparison.disagreements)
    _line(f"compute plan of this Mac, measured: {agreeing} of {len(comparison.pairs)} ops as predicted for {placement.target.key}")
    for device in ("engine", "cpu", "gpu", "none"):
        if count := sum(pair.measured.device == device for pair in comparison.pairs):
            predicted = sum(pair.predicted.device == device for pair in comparison.pairs)
            _line(f"on {DEVICES[device]}: measured {count}, predicted {predicted}")
    if (error := comparison.largest_share_error) is not None:
        _line(f"largest difference of a cost share: {error:.2e}; up to 1e-4 the tables are this Mac's")
    if not comparison.keeps_order:
        _line("the plan lists the ops in another order than the file: the prediction is of another chain")
    if comparison.only_predicted or comparison.only_measured:
        _line(f"not compared: {len(comparison.only_predicted)} ops of the file, {len(comparison.only_measured)} of the plan")
    if pairs := comparison.pairs if all_ops else comparison.disagreements:
        table = _table("op", "type", "predicted", "of the cost", "measured", "of the cost", "the plan allows", "")
        for pair in pairs:
            share = pair.measured.share
            table.add_row(
                Text(pair.predicted.name),
                Text(pair.predicted.type),
                DEVICES[pair.predicted.device],
                f"{pair.predicted.share:.2%}",
                DEVICES[pair.measured.device],
                "" if share is None else f"{share:.2%}",
                ", ".join(DEVICES[device] for device in pair.measured.supported),
                "" if pair.agrees else "differs",
            )
        out().print(table)


def show_targets(targets: Sequence[Target]) -> None:
    """Print every target with a table, and how each part of it is known."""
    table = _table("target", "chip", *targets[0].evidence, "remark")
    for target in targets:
        table.add_row(target.key, target.chip, *(evidence.label for evidence in target.evidence.values()), target.note)
    out().print(table)
    for name, meaning in {**labels(), **sources()}.items():
        _line(f"{name}: {meaning}")


def _table(*columns: str, right: int = -1) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index == right else "left")
    return table
