"""Compares packages with torch and gives a verdict: ``validate`` and ``validate_bundle``, imported on first use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreflow.validate.bundle import judge_bundle, validate_bundle
    from coreflow.validate.package import validate

_HOMES = {
    "judge_bundle": "coreflow.validate.bundle",
    "validate": "coreflow.validate.package",
    "validate_bundle": "coreflow.validate.bundle",
}
__all__ = ["judge_bundle", "validate", "validate_bundle"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
