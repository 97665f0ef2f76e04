"""``coreflow inspect``: interface, ops, weights and multiply-adds of a package."""

from typing import TYPE_CHECKING, Annotated, Any

from coreflow.cli.console import out, print_json
from coreflow.cli.options import FunctionOption, PackageArgument, json_option

if TYPE_CHECKING:
    from rich.table import Table

    from coreflow.export.package.graph import Feature
    from coreflow.export.package.summary import Summary


def inspect(
    package: PackageArgument,
    function: FunctionOption = None,
    as_json: Annotated[bool, json_option("the figures")] = False,
) -> int:
    """Show what a package takes and gives, its operations, weights, size and multiply-adds. Nothing is executed."""
    from coreflow.export.package.mlpackage import read_program
    from coreflow.export.package.summary import summarize

    summary = summarize(read_program(package), function)
    if as_json:
        print_json(to_json(summary))
    else:
        show(summary)
    return 0


def to_json(summary: "Summary") -> dict[str, Any]:
    """Figures of one function as plain data."""
    from dataclasses import asdict

    from coreflow.export.package.op_facts import FACTS

    meta = summary.metadata
    return {
        "package": summary.program.path.name,
        "format": "mlProgram",
        "spec_version": summary.program.spec_version,
        "opset": summary.opset,
        "function": summary.function,
        "functions": list(summary.program.functions),
        "inputs": [_feature(feature) for feature in summary.interface.inputs],
        "outputs": [_feature(feature) for feature in summary.interface.outputs],
        "states": [_feature(feature) for feature in summary.interface.states],
        "metadata": {
            "description": meta.description,
            "author": meta.author,
            "licence": meta.licence,
            "version": meta.version,
            "user": dict(meta.user),
        },
        "ops": dict(summary.ops),
        "weights": [asdict(group) for group in summary.weights],
        "parameters": summary.parameters,
        "size_bytes": summary.size_bytes,
        "multiply_adds": {
            "total": summary.multiply_adds.total,
            "by_op": dict(summary.multiply_adds.by_op),
            "counted": sorted(op for op, facts in FACTS.items() if facts.is_contraction),
            "open": list(summary.multiply_adds.open),
        },
    }


def show(summary: "Summary") -> None:
    """Print the figures as tables."""
    from rich.text import Text

    program, counted, console = summary.program, summary.multiply_adds, out()
    console.print(
        f"{program.path.name}: ML program, specification {program.spec_version}, opset {summary.opset}, "
        f"{summary.size_bytes / 1e6:.2f} MB on disk",
        markup=False,
        soft_wrap=True,
    )
    if len(program.functions) > 1:
        console.print(f"function {summary.function} of {', '.join(program.functions)}", markup=False, soft_wrap=True)
    meta = summary.metadata
    described = {"description": meta.description, "author": meta.author, "licence": meta.licence, "version": meta.version, **meta.user}
    for name, value in described.items():
        if value:
            console.print(Text(f"{name}: {value}"), soft_wrap=True)
    interface = summary.interface
    table = _table("", "name", "type", "shape")
    for what, features in (("input", interface.inputs), ("output", interface.outputs), ("state", interface.states)):
        for feature in features:
            plain = _feature(feature)
            kind = plain["dtype"] or plain["kind"]
            table.add_row(what, Text(feature.name), kind + (", optional" if feature.optional else ""), _shapes(feature))
    console.print(table)
    weights = _table("weights", "tensors", "parameters", "MB stored", right=3)
    for group in summary.weights:
        weights.add_row(
            f"{group.dtype} {group.compression or 'as they are'}",
            str(group.tensors),
            f"{group.parameters:,}",
            f"{group.stored_bytes / 1e6:.2f}",
        )
    weights.add_row("all", str(sum(g.tensors for g in summary.weights)), f"{summary.parameters:,}", "")
    console.print(weights)
    ops = _table("op", "count", "multiply-adds", right=2)
    for op, count in summary.ops.items():
        ops.add_row(op, str(count), f"{counted.by_op[op]:,}" if op in counted.by_op else "")
    ops.add_row("all", str(sum(summary.ops.values())), f"{counted.total:,}")
    console.print(ops)
    if counted.open:
        console.print(f"not counted, since their shapes are open: {', '.join(counted.open)}", markup=False, soft_wrap=True)


def _feature(feature: "Feature") -> dict[str, Any]:
    return {
        "name": feature.name,
        "kind": feature.kind,
        "dtype": feature.dtype,
        "shape": list(feature.shape),
        "optional": feature.optional,
        "enumerated": [list(shape) for shape in feature.enumerated],
        "ranges": [list(bounds) for bounds in feature.ranges],
        "colour": feature.colour,
        "description": feature.description,
    }


def _shapes(feature: "Feature") -> str:
    text = " × ".join(map(str, feature.shape))
    if feature.enumerated:
        text += " or " + " or ".join(" × ".join(map(str, shape)) for shape in feature.enumerated if shape != feature.shape)
    if feature.ranges:
        text += " (" + " × ".join(str(low) if low == high else f"{low}..{high or ''}" for low, high in feature.ranges) + ")"
    return text


def _table(*columns: str, right: int = 0) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place >= len(columns) - right else "left")
    return table
