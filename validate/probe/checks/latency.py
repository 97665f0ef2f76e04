"""Latencies of a few programs with warm-up, on the CPU alone and with the Neural Engine."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from coreflow.export.engine.latency import all_chips, chip_named, estimate
from coreflow.export.engine.placement import place
from coreflow.export.engine.targets import find_targets
from coreflow.export.package.mlpackage import read_program
from coreflow.models.errors import ConfigError
from coreflow.runtime.backend import ComputeUnits
from coreflow.validate.probe.check import Check, Reading
from coreflow.validate.probe.device import Device
from coreflow.validate.probe.machine import describe_machine
from coreflow.validate.probe.programs import Encoder, Stack, linear, package_of

_WARM_UP, _CALLS = 5, 50
_UNITS: tuple[ComputeUnits, ...] = ("cpu_only", "cpu_and_ne")


def run(device: Device, folder: Path) -> list[Reading]:
    """The first call, the least and the median of fifty; what is published of the engine alone stands beside the least."""
    torch.manual_seed(0)
    programs: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "16 convolutions, 256 channels, 32 x 32": (Stack(16, 256), (1, 256, 32, 32)),
        "linear 1024 x 1024 x 1024": (linear(torch.randn(1024, 1024) / 32), (1024, 1024)),
        "transformer 6 x 384": (Encoder(), (1, 64, 384)),
        "linear 8 x 256 x 256": (linear(torch.randn(256, 256) / 16), (8, 256)),
    }
    readings = []
    for place_of_program, (name, (module, shape)) in enumerate(programs.items()):
        package = package_of(f"latency_{place_of_program}", module, shape, ("y",), folder)
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
        for units in _UNITS:
            first, least, median = _measure(device, package, units, x)
            expected = _published(package) if units == "cpu_and_ne" else ""
            readings += [
                Reading(name=f"{name} on {units}: first call", value=first, unit="ms"),
                Reading(name=f"{name} on {units}: median of {_CALLS}", value=median, unit="ms"),
                Reading(
                    name=f"{name} on {units}: least of {_CALLS}",
                    value=least,
                    unit="ms",
                    expected=expected or None,
                    source="coreflow estimate, of the engine alone; calls are made from Python" if expected else "",
                ),
            ]
    return readings


def _measure(
    device: Device, package: Path, units: ComputeUnits, x: "np.ndarray[tuple[int, ...], np.dtype[np.float16]]"
) -> tuple[float, ...]:
    model = device.open(package, units)
    spent = []
    for _ in range(1 + _WARM_UP + _CALLS):
        began = time.perf_counter()
        model.predict({"x": x})
        spent.append((time.perf_counter() - began) * 1e3)
    timed = spent[1 + _WARM_UP :]
    return spent[0], min(timed), float(np.median(timed))


def _published(package: Path) -> str:
    """The range of ``coreflow estimate`` on this chip; empty where nothing is published of it, or no op is on the engine."""
    try:
        chip = chip_named(describe_machine()["chip"].removeprefix("Apple "))
    except ConfigError:
        return ""
    latency = estimate(place(read_program(package).function()[0], find_targets(chip.target)[0]), chip)
    return f"{latency.low_ms:.3g} to {latency.high_ms:.3g}" if latency.parts and chip.key in all_chips() else ""


CHECK = Check(
    name="latency",
    title="latencies with warm-up",
    seconds=900,
    obstacle=lambda device: device.no_core_ml,
    run=run,
)
