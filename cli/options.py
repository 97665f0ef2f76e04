"""Options that several commands share, as annotated types: one name, one help text and one set of choices each."""

from pathlib import Path
from typing import Annotated, Any

import typer

PackageArgument = Annotated[Path, typer.Argument(help="An .mlpackage.")]
FunctionOption = Annotated[str | None, typer.Option(help="One of several functions [default: the package's].")]
BackendOption = Annotated[str, typer.Option(help="auto (Core ML on macOS, lifted elsewhere), coreml or lifted.")]
NumericsOption = Annotated[str, typer.Option(help="Arithmetic of the lifted backend: fp16, fp32, fp64, or engine-m4 and its like.")]
DeviceOption = Annotated[str, typer.Option(help="Device of the lifted backend: cpu, cuda or mps.")]
ComputeUnitsOption = Annotated[str, typer.Option(help="Core ML's: all, cpu_only, cpu_and_gpu or cpu_and_ne.")]
ComparedUnitsOption = Annotated[
    str, typer.Option(help="Core ML's: all (the others are compared with it), cpu_only, cpu_and_gpu or cpu_and_ne.")
]


def json_option(printed: str, detail: str = "") -> Any:
    """``--json`` of a command that prints ``printed``.

    >>> def export(as_json: Annotated[bool, json_option("the manifest")] = False) -> int: ...
    """
    return typer.Option("--json", help=f"Print {printed} as JSON{detail and f', {detail}'}.")
