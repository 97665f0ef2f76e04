"""The device of a training run: CUDA, MPS or the CPU."""

import torch

from coreflow.models.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA, else MPS, else the CPU; a device that is not there is a ``ConfigError``."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [device for device, is_there in present.items() if is_there]
    if name == "auto":
        name = available[0]
    if name not in available:
        raise ConfigError(f"device {name} is not available here; there is {', '.join(available)}")
    return torch.device(name)
