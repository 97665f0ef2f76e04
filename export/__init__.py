"""Converts PyTorch modules to Core ML packages: ``Recipe``, ``build`` and ``torch_lowering``, imported on first use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreflow.export.bundle import build, export_bundle
    from coreflow.export.recipe import Recipe
    from coreflow.export.shapes import Range
    from coreflow.export.targets.lowerings.registry import torch_lowering
    from coreflow.models.images import ImageSpec
    from coreflow.models.spec import TensorSpec

_HOMES = {
    "ImageSpec": "coreflow.models.images",
    "Range": "coreflow.export.shapes",
    "Recipe": "coreflow.export.recipe",
    "TensorSpec": "coreflow.models.spec",
    "build": "coreflow.export.bundle",
    "export_bundle": "coreflow.export.bundle",
    "torch_lowering": "coreflow.export.targets.lowerings.registry",
}
__all__ = ["ImageSpec", "Range", "Recipe", "TensorSpec", "build", "export_bundle", "torch_lowering"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
