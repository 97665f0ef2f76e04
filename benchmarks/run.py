"""``make bench``: every stage of the demo bundle, torch eager against the lifted engines, side by side in one run.

Machines are noisy and differ: the figures to keep are the ratios. The candidates take turns, call by call, so that what
disturbs one disturbs all; medians are compared. Results go to benchmarks/results/, with the versions that gave them.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from coreflow.export.manifest import read_manifest
from coreflow.models.energy.stages import energy_stages
from coreflow.models.training.checkpoint import load_checkpoint
from coreflow.runtime import load_model

RUN, BUNDLE, RESULTS = Path("artifacts/runs/demo"), Path("artifacts/demo"), Path("benchmarks/results")
ROUNDS, WARM_UP = 60, 5
BASELINE = "torch fp32"


def medians_ms(candidates: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median time of each candidate in milliseconds; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(ROUNDS + WARM_UP):
        for name, call in candidates.items():
            began = time.perf_counter()
            call()
            if number >= WARM_UP:
                times[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> int:
    """Time every stage, print a table, and write the results."""
    if not (BUNDLE / "manifest.json").exists() or not RUN.exists():
        print(f"{BUNDLE} is missing; `make demo` makes it", file=sys.stderr)
        return 2
    manifest = read_manifest(BUNDLE)
    results = {}
    for stage in energy_stages(load_checkpoint(RUN).model):
        inputs = dict(stage.draw(0))
        tensors = [torch.from_numpy(array) for array in inputs.values()]
        floats = [each.float() if each.is_floating_point() else each for each in tensors]
        package = BUNDLE / manifest.stages[stage.name].package
        models = {f"lifted {numerics}": load_model(package, "lifted", numerics=numerics) for numerics in ("fp16", "fp32", "fp64")}

        def eager(module: torch.nn.Module = stage.module, given: list[torch.Tensor] = floats) -> object:
            with torch.inference_mode():
                return module(*given)

        candidates: dict[str, Callable[[], object]] = {BASELINE: eager}
        candidates |= {name: lambda model=model, given=inputs: model.predict(given) for name, model in models.items()}  # type: ignore[misc]
        results[stage.name] = medians_ms(candidates)
    names = list(next(iter(results.values())))
    table = Table(
        "stage", f"{BASELINE} (ms)", *(f"{name} ÷ torch" for name in names[1:]), title="median of turns, this machine", title_justify="left"
    )
    for stage_name, times in results.items():
        table.add_row(stage_name, f"{times[BASELINE]:.3f}", *(f"{times[name] / times[BASELINE]:.2f}" for name in names[1:]))
    Console().print(table)
    record = {
        "benchmark": "demo stages",
        "rounds": ROUNDS,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("coreflow", "torch", "numpy", "coremltools")},
        },
        "median_ms": results,
        "ratio_to_torch": {stage: {name: times[name] / times[BASELINE] for name in names[1:]} for stage, times in results.items()},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "demo-stages.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
