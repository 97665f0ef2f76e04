"""Core ML's results on every compute unit beside the program in float64."""

from pathlib import Path
from typing import get_args

import numpy as np
from torch import nn

from coreflow.export.package.mlpackage import read_program
from coreflow.runtime.backend import ComputeUnits, LoadOptions
from coreflow.runtime.load import open_model
from coreflow.validate.gates.metrics import relative_rms
from coreflow.validate.gates.tolerance import DEVICE
from coreflow.validate.probe.check import Check, Reading, plain_number
from coreflow.validate.probe.device import Device
from coreflow.validate.probe.programs import Encoder, Stack, linear, package_of

_SAMPLES = 4


def run(device: Device, folder: Path) -> list[Reading]:
    """The error of each program on each compute unit, in errors of the lifted fp16: up to 4 is within the tolerance of a device."""
    import torch

    torch.manual_seed(0)
    programs: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "transformer": (Encoder(), (1, 64, 384)),
        "convolutions": (Stack(4, 64), (1, 64, 32, 32)),
        "linear": (linear(torch.randn(256, 256) / 16), (8, 256)),
    }
    readings = []
    for name, (module, shape) in programs.items():
        package = package_of(name, module, shape, ("y",), folder)
        samples = [np.random.default_rng(seed).standard_normal(shape).astype(np.float16) for seed in range(_SAMPLES)]
        reference, fp16 = (
            np.stack(
                [
                    open_model(read_program(package), LoadOptions(backend="lifted", numerics=numerics)).predict({"x": x})["y"]
                    for x in samples
                ]
            )
            for numerics in ("fp64", "fp16")
        )
        budget = relative_rms(fp16 - reference, reference)
        for units in get_args(ComputeUnits):
            model = device.open(package, units)
            actual = np.stack([model.predict({"x": x})["y"] for x in samples])
            error = relative_rms(actual - reference, reference) / budget
            readings.append(
                Reading(
                    name=f"{name} on {units}: error in those of fp16",
                    value=plain_number(error),
                    expected=f"at most {DEVICE.rms_warn:g}",
                    agrees=bool(error <= DEVICE.rms_warn),
                    source="tolerance of a device, docs/validation.md",
                )
            )
    return readings


CHECK = Check(
    name="backend",
    title="Core ML's results on every compute unit",
    seconds=600,
    obstacle=lambda device: device.no_core_ml,
    run=run,
)
