"""Every stage of the demo bundle: torch eager against the interpreter's numerics."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import medians_ms, record
from coreflow.export.package.manifest import read_manifest
from coreflow.models.energy.stages import energy_stages
from coreflow.models.energy.training.checkpoint import load_checkpoint
from coreflow.runtime import load_model

RUN, BUNDLE = Path("artifacts/runs/demo"), Path("artifacts/demo")
ROUNDS = 60
BASELINE = "torch fp32"


def main() -> int:
    """Time every stage, print a table, and write the results."""
    if not (BUNDLE / "manifest.json").exists() or not RUN.exists():
        print(f"{BUNDLE} is missing; `make demo` makes it", file=sys.stderr)
        return 2
    manifest = read_manifest(BUNDLE)
    results = {}
    for stage in energy_stages(load_checkpoint(RUN).model):
        inputs = dict(stage.inputs_for(0))
        tensors = [torch.from_numpy(array) for array in inputs.values()]
        floats = [tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors]
        package = BUNDLE / manifest.stages[stage.name].package
        models = {
            f"lifted {numerics}": load_model(package, "lifted", numerics=numerics, engine="interpreter")
            for numerics in ("fp16", "fp32", "fp64")
        }

        def eager(module: torch.nn.Module = stage.module, arguments: list[torch.Tensor] = floats) -> object:
            with torch.inference_mode():
                return module(*arguments)

        candidates: dict[str, Callable[[], object]] = {BASELINE: eager}
        candidates |= {name: lambda model=model, inputs=inputs: model.predict(inputs) for name, model in models.items()}  # type: ignore[misc]
        results[stage.name] = medians_ms(candidates, ROUNDS)
    names = list(next(iter(results.values())))
    table = Table(
        "stage", f"{BASELINE} (ms)", *(f"{name} ÷ torch" for name in names[1:]), title="median of turns, this machine", title_justify="left"
    )
    for stage_name, times in results.items():
        table.add_row(stage_name, f"{times[BASELINE]:.3f}", *(f"{times[name] / times[BASELINE]:.2f}" for name in names[1:]))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    record(
        "demo-stages",
        ("coreflow", "torch", "numpy", "coremltools"),
        rounds=ROUNDS,
        median_ms=results,
        ratio_to_torch={stage: {name: times[name] / times[BASELINE] for name in names[1:]} for stage, times in results.items()},
    )
    return 0
