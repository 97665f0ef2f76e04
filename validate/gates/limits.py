"""Limits that a caller sets for single outputs, in a file.

[boxes]            # TOML; in JSON: {"boxes": {"contract": 0.02}, "scores": {"contract": 0.05, "ceiling": 0.05}}
contract = 0.02

[scores]
contract = 0.05
ceiling = 0.05
"""

import json
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from coreflow.models.errors import ConfigError
from coreflow.validate.gates.tolerance import Limits

_KEYS = tuple(field.name for field in fields(Limits))


def read_limits(file: Path) -> dict[str, Limits]:
    """The limits of every output that ``file`` names; ``ConfigError`` says what is wrong with it, and where."""
    try:
        text = file.read_text(encoding="utf-8")
        plain: Any = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{file} is not there; a file of limits names outputs and their contract or ceiling") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{file} is no {'JSON' if file.suffix == '.json' else 'TOML'}: {error}") from error
    if not isinstance(plain, dict) or not all(isinstance(values, dict) for values in plain.values()):
        raise ConfigError(f"{file} holds no table per output; [NAME] and below it contract = 0.02 is right")
    return {name: _limits(file, name, values) for name, values in plain.items()}


def check_outputs(limits: Mapping[str, Limits], outputs: Collection[str], package: str) -> None:
    """Raise ``ConfigError`` where ``limits`` name an output that ``package`` does not have."""
    if unknown := [name for name in limits if name not in outputs]:
        raise ConfigError(f"limits for {', '.join(unknown)}; the outputs of {package} are {', '.join(outputs)}", expected=tuple(outputs))


def _limits(file: Path, name: str, values: dict[str, Any]) -> Limits:
    for key, value in values.items():
        if key not in _KEYS:
            raise ConfigError(f"{file}: {name} has {key!r}; {' and '.join(_KEYS)} can be set", expected=_KEYS)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(f"{file}: {key} of {name} is {value!r}, not a number")
    try:
        return Limits(**values)
    except ConfigError as error:
        raise ConfigError(f"{file}: {name}: {error}") from None
