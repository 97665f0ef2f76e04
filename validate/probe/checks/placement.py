"""Core ML's compute plans beside the predicted placements."""

from pathlib import Path

import torch
from torch import nn

from coreflow.export.engine.compute_plan import compare, read_plan
from coreflow.export.engine.placement import place
from coreflow.export.engine.targets import find_targets
from coreflow.export.package.mlpackage import read_program
from coreflow.models.errors import ConfigError
from coreflow.validate.probe.check import Check, Reading
from coreflow.validate.probe.device import Device
from coreflow.validate.probe.machine import describe_machine
from coreflow.validate.probe.programs import SHAPE, Applied, Encoder, Stack, linear, package_of

_SHARE_ERROR = 1e-4  # up to which the tables are those of the machine


def run(device: Device, folder: Path) -> list[Reading]:
    """For each program how many ops differ from the prediction, each of them, and the largest error of a cost share."""
    torch.manual_seed(0)
    programs: dict[str, tuple[nn.Module, tuple[int, ...], tuple[str, ...]]] = {
        "transformer": (Encoder(), (1, 64, 384), ("y",)),
        "convolutions": (Stack(16, 256), SHAPE, ("y",)),
        "small convolutions": (Stack(2, 32), (1, 32, 16, 16), ("y",)),
        "linear of one row, 4096": (linear(torch.randn(4096, 4096) / 64), (1, 4096), ("y",)),
        "linear of one row, 4864": (linear(torch.randn(4864, 4864) / 64), (1, 4864), ("y",)),
        "sum": (Applied(lambda x: x.cumsum(-1)), SHAPE, ("y", "z")),
    }
    try:
        target = find_targets(f"{_chip()}/macOS{describe_machine()['system'].split()[-1].split('.')[0]}")[0]
    except ConfigError:
        target = find_targets("M4/macOS27")[0]
    readings = []
    for name, (module, shape, outputs) in programs.items():
        package = package_of(name.replace(" ", "_").replace(",", ""), module, shape, outputs, folder)
        program = read_program(package)
        placement = place(program.function()[0], target)
        comparison = compare(placement, read_plan(program, placement, program.default_function))
        source = f"coreflow place --target {target.key}"
        readings.append(
            Reading(
                name=f"{name}: ops on another device than predicted",
                value=float(len(comparison.disagreements)),
                expected=0.0,
                agrees=not comparison.disagreements,
                source=source,
            )
        )
        readings += [
            Reading(
                name=f"{name}: {pair.predicted.type} {pair.predicted.name}",
                value=pair.measured.device,
                expected=pair.predicted.device,
                agrees=False,
                source=f"{source}, margin {pair.predicted.margin_ms:.3g} ms",
            )
            for pair in comparison.disagreements
        ]
        if comparison.largest_share_error is not None:
            readings.append(
                Reading(
                    name=f"{name}: largest error of a cost share",
                    value=comparison.largest_share_error,
                    expected=f"at most {_SHARE_ERROR:g}",
                    agrees=comparison.largest_share_error <= _SHARE_ERROR,
                    source=source,
                )
            )
    return readings


def _chip() -> str:
    return describe_machine()["chip"].removeprefix("Apple ").replace(" ", "")


CHECK = Check(
    name="placement",
    title="compute plans beside predicted placements",
    seconds=900,
    obstacle=lambda device: device.no_core_ml,
    run=run,
)
