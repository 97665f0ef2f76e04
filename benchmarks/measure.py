"""How the benchmarks measure: candidates take turns, medians are compared, and the versions that gave a figure go with it."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from coreflow.models.versions import version

RESULTS = Path("benchmarks/results")
WARM_UP = 2
PAUSE_S = 0.1  # thread pools keep a core busy after their work is done: after 10 ms what came behind onnxruntime took three times as long
CALLS = 3


def medians_ms(candidates: Mapping[str, Callable[[], object]], rounds: int, seconds: float = 60.0) -> dict[str, float]:
    """Median time of each candidate in milliseconds; they take turns, so that what disturbs one disturbs all.

    A turn is a pause, in which the threads of the candidate before stop spinning, ``CALLS`` calls that are not counted, after which caches
    and cores are its own, and ``CALLS`` that are. After ``seconds`` no more rounds are begun, if there were ten.
    """
    started = time.perf_counter()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + WARM_UP):
        if number >= 10 + WARM_UP and time.perf_counter() - started > seconds:
            break
        for name, call in candidates.items():
            time.sleep(PAUSE_S)
            for turn in range(2 * CALLS):
                began = time.perf_counter()
                call()
                if number >= WARM_UP and turn >= CALLS:
                    times[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(turns) for name, turns in times.items()}


def record(name: str, libraries: Sequence[str], **figures: Any) -> None:
    """Write the figures, and what they were measured with, to benchmarks/results/NAME.json."""
    plain = {
        "benchmark": name,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": {"python": platform.python_version(), **{library: version(library) for library in libraries}},
        **figures,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(plain, indent=1) + "\n")
