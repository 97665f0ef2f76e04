"""``coreflow lift``: a package back to ONNX or torch."""

from pathlib import Path
from typing import Annotated

import typer

from coreflow.cli.console import out, print_json, progress_bar, warn
from coreflow.cli.options import FunctionOption, PackageArgument, json_option


def lift(
    package: PackageArgument,
    to: Annotated[str, typer.Option(help="onnx: one file for onnxruntime. torch: a Python package with a module and its weights.")],
    out_path: Annotated[Path, typer.Option("--out", help="The .onnx file, or the folder of the Python package.")],
    function: FunctionOption = None,
    numerics: Annotated[str, typer.Option(help="Of ONNX: fp32, or fp16 to round after every op as the package does.")] = "fp32",
    as_json: Annotated[bool, json_option("the result")] = False,
) -> int:
    """Turn a saved package back into ONNX or PyTorch; names are kept, and the result gives what the package gives."""
    from coreflow.models.errors import ConfigError

    if to not in ("onnx", "torch"):
        raise ConfigError(f"--to {to}; choose onnx or torch")
    if to == "onnx" and out_path.suffix != ".onnx":
        raise ConfigError(f"--out {out_path}; the name of an ONNX file ends in .onnx")
    if to == "torch" and numerics != "fp32":
        raise ConfigError(f"--numerics {numerics} is for --to onnx; a torch module computes in the dtype it is moved to")
    size = _lift(package, to, out_path, function, numerics)
    if as_json:
        print_json({"package": package.name, "to": to, "path": str(out_path), "size_bytes": size})
    else:
        out().print(f"{out_path}: {size / 1e6:.2f} MB", markup=False, soft_wrap=True)
        if to == "torch":
            out().print(f"from {out_path.name}.model import load", markup=False, soft_wrap=True)
    return 0


def _lift(package: Path, to: str, out_path: Path, function: str | None, numerics: str) -> int:
    """Write the result; returns its size in bytes."""
    from coreflow.export.package.mlpackage import read_program

    program = read_program(package)
    flexible = [feature.name for feature in program.function(function)[1].inputs if feature.enumerated or feature.ranges]
    with progress_bar("lifting"):
        if to == "torch":
            from coreflow.runtime.lift.source.write import write_source

            write_source(program, out_path, function)
            return sum(file.stat().st_size for file in out_path.iterdir())
        from coreflow.models.storage import write_atomically
        from coreflow.runtime.lift.onnx.write import write_onnx

        write_atomically(out_path, lambda temporary: write_onnx(program, temporary, numerics, function))  # type: ignore[arg-type]
    if flexible:
        warn(f"{', '.join(flexible)} may have several shapes in the package; the ONNX file holds the default one")
    return out_path.stat().st_size
