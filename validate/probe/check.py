"""What a check is: a title, a time limit, why it may not run here, and the readings that it takes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal

from coreflow.models.errors import ConfigError
from coreflow.validate.probe.device import Device

Status = Literal["done", "cannot run here", "failed", "timed out", "killed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One value that a device gave, and the one that is expected of it, where there is any.

    >>> Reading(name="slice at 4095", value="inf", expected=4095.0, agrees=False, source="numerics engine-m4")

    Numbers are plain; infinities and NaN are words, since the report is JSON.
    """

    name: str
    value: float | str
    unit: str = ""
    expected: float | str | None = None
    agrees: bool | None = None  # None where nothing is expected
    source: str = ""  # of what is expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing to find out.

    >>> CHECK = Check(name="latency", title="...", seconds=300, obstacle=no_core_ml, run=measure)

    ``obstacle`` says why it cannot run on a device, or is empty; ``run`` fills a folder with what it needs and returns its readings.
    """

    name: str
    title: str
    seconds: int  # after which it is ended
    obstacle: Callable[[Device], str]
    run: Callable[[Device, Path], list[Reading]]


def all_checks() -> Mapping[str, Check]:
    """The check of every file, by name."""
    folder = import_module("coreflow.validate.probe.checks")
    checks: list[Check] = [import_module(f"{folder.__name__}.{module.name}").CHECK for module in iter_modules(folder.__path__)]
    return {check.name: check for check in checks}


def check_named(name: str) -> Check:
    """The check of that name; ``ConfigError`` names those that there are."""
    checks = all_checks()
    if name not in checks:
        raise ConfigError(f"no check {name!r}; there are {', '.join(checks)}", expected=tuple(checks))
    return checks[name]


def plain_number(value: Any) -> float | str:
    """A number as JSON holds it."""
    number = float(value)
    return number if math.isfinite(number) else str(number)
