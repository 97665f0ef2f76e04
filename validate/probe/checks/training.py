"""Training of the demo's model on MPS beside the CPU."""

from pathlib import Path

import torch

from coreflow.models.family import Progress, families
from coreflow.validate.probe.check import Check, Reading
from coreflow.validate.probe.device import Device

_STEPS = 60
_DIFFERENCE = 0.05  # of the loss, by which two devices may differ after so few steps


def run(device: Device, folder: Path) -> list[Reading]:
    """The losses after sixty steps on both devices, and the time of a step."""
    family = families()[0]
    last: dict[str, Progress] = {}
    for name in ("cpu", "mps"):
        options = family.training_options({"preset": next(iter(family.presets)), "steps": _STEPS, "device": name})
        for event in family.train(options, folder / name, False):
            if isinstance(event, Progress):
                last[name] = event
    readings = [Reading(name=f"{name}: time of a step", value=event.step_ms, unit="ms") for name, event in last.items()]
    for loss, expected in last["cpu"].losses.items():
        value = last["mps"].losses[loss]
        readings.append(
            Reading(
                name=f"loss {loss} after {_STEPS} steps on mps",
                value=float(value),
                expected=float(expected),
                agrees=abs(value - expected) <= _DIFFERENCE * max(abs(expected), 1e-3),
                source="the same steps on the CPU",
            )
        )
    return readings


def _obstacle(device: Device) -> str:
    return "" if torch.backends.mps.is_available() else "it needs MPS, and torch finds none here"


CHECK = Check(name="training", title="training of the demo on MPS beside the CPU", seconds=900, obstacle=_obstacle, run=run)
