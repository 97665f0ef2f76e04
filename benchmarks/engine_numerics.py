"""One T5-small decoder step under the engine's numerics, exact and fast, beside fp16: `python -m benchmarks.engine_numerics`.

Targets of issue 15: exact at most 30 s on two cores, fast at most twice the time of fp16 by the same engine of execution.
"""

import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.engines import t5_recipe
from benchmarks.measure import medians_ms, record
from coreflow.export.bundle import build
from coreflow.runtime.backend import NumericsName
from coreflow.runtime.load import load_model

NUMERICS: tuple[NumericsName, ...] = ("fp16", "engine-m4", "engine-m4-fast")
EXACT_S, FAST_RATIO = 30.0, 2.0


def main() -> int:
    """Measure and record; 1 where a target is missed."""
    recipe = t5_recipe()
    inputs = recipe.inputs_for(0)
    with tempfile.TemporaryDirectory() as folder:
        package = build(recipe, Path(folder), check=False)
        models = {name: load_model(package, "lifted", numerics=name, engine="interpreter") for name in NUMERICS}
        began = time.perf_counter()
        models["engine-m4"].predict(inputs)
        exact = time.perf_counter() - began
        times = medians_ms({name: partial(models[name].predict, inputs) for name in ("fp16", "engine-m4-fast")}, rounds=5)
    ratio = times["engine-m4-fast"] / times["fp16"]
    print(f"T5-small step: exact {exact:.1f} s, fast {times['engine-m4-fast']:.0f} ms, fp16 {times['fp16']:.0f} ms, ratio {ratio:.2f}")
    record("engine_numerics", ("torch", "coremltools"), exact_s=exact, fast_over_fp16=ratio, ms=times)
    return 0 if exact <= EXACT_S and ratio <= FAST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
