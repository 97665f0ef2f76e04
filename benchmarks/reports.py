"""The full report on one T5-small decoder step (8 seeds, every op): seconds, memory, and what looking at every op costs a seed.

Run in a process of its own, twice: the second time R2's conversion is in the cache, as it is in every later validation.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.engines import PACKAGES
from benchmarks.measure import record

LIMITS = {"seconds": 60.0, "peak_gb": 2.0, "walk_ratio": 6.0}
_REPORT = """
import json, sys, time
import torch
from benchmarks.engines import t5_recipe
from coreflow.runtime.backend import LoadOptions
from coreflow.export.package.mlpackage import read_program
from coreflow.runtime.lifted import LiftedModel
from coreflow.validate import validate
from coreflow.validate.ladder.localise import Localiser
package, recipe = sys.argv[1], t5_recipe()
began = time.perf_counter()
report = validate(package, recipe)
seconds = time.perf_counter() - began
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1e6
program = read_program(package)
model_fp16, model_fp64 = (LiftedModel(program, LoadOptions(numerics=name, engine="interpreter")) for name in ("fp16", "fp64"))
localiser, inputs = Localiser(model_fp16, model_fp64), recipe.inputs_for(0)
samples = [recipe.inputs_for(seed) for seed in range(8)]
calls = {
    "plain": lambda: model_fp16.predict(inputs),  # as anybody does
    "walk": lambda: list(localiser.run(samples)),
}
times = {name: [] for name in calls}
for _ in range(6):
    for name, call in calls.items():
        began = time.perf_counter()
        call()
        times[name].append(time.perf_counter() - began)
plain, walk = (sorted(turns[1:])[2] for turns in times.values())
walk /= len(samples)
print(json.dumps({
    "verdict": report.verdict, "ops": len(report.ops), "with_origin": sum(op.origin is not None for op in report.ops),
    "seconds": seconds, "peak_gb": peak, "plain_ms": plain * 1e3, "walk_ms": walk * 1e3,
    "walk_ratio": walk / plain,
}))
"""


def main() -> int:
    """Measure, print, and write the results; 1 when a limit is passed."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    package = next(PACKAGES.glob("packages/**/t5_small_step.mlpackage"), None)
    if package is None:
        console.print("run benchmarks.engines first: it converts the packages", style="red")
        return 1
    runs = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {"XDG_CACHE_HOME": cache, "PYTHONPATH": str(Path.cwd())}
        for name in ("R2 converted", "R2 from the cache"):
            command = [sys.executable, "-c", _REPORT, str(package)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
            runs[name] = json.loads(done.stdout.splitlines()[-1])
            console.print(
                f"T5-small step, full report, {name}: " + ", ".join(f"{key} {_short(value)}" for key, value in runs[name].items())
            )
    misses = [
        f"{name}: {key} {run[key]:.2f}; {limit:g} is the target"
        for name, run in runs.items()
        for key, limit in LIMITS.items()
        if run[key] > limit
    ]
    for miss in misses:
        console.print(f"missed: {miss}", style="yellow")
    record("reports", ("coreflow", "torch", "numpy", "coremltools"), t5_small_step=runs, missed=misses)
    return 1 if misses else 0


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
