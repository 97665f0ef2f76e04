"""Loads and runs saved packages: ``load_model`` and ``Chain``, imported on first use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreflow.runtime.chain import Chain
    from coreflow.runtime.load import load_model

_HOMES = {"Chain": "coreflow.runtime.chain", "load_model": "coreflow.runtime.load"}
__all__ = ["Chain", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
