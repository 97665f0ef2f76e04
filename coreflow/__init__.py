"""PyTorch models to Core ML and the Apple Neural Engine, proven right on any machine.

    import coreflow

    recipe = coreflow.Recipe(name="head", module=module, inputs={"x": coreflow.TensorSpec((1, 128))}, outputs=("y",))
    package = coreflow.build(recipe, "artifacts")
    coreflow.load_model(package).predict({"x": x})
    coreflow.validate.validate(package, reference=module).verdict

Names load when they are asked for: importing ``coreflow`` loads neither torch nor coremltools. ``coreflow.validate`` is the
package of that name, as ``coreflow.export`` and ``coreflow.runtime`` are; the function stands in it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreflow import export, runtime, validate
    from coreflow.export.bundle import build
    from coreflow.export.recipe import Recipe
    from coreflow.export.shapes import Range
    from coreflow.models import errors
    from coreflow.models.images import ImageSpec
    from coreflow.models.spec import TensorSpec
    from coreflow.runtime.chain import Chain
    from coreflow.runtime.load import load_model
    from coreflow.validate.bundle import validate_bundle

__version__ = "0.1.0"  # pyproject.toml reads it here

_HOMES = {
    "Chain": "coreflow.runtime.chain",
    "ImageSpec": "coreflow.models.images",
    "Range": "coreflow.export.shapes",
    "Recipe": "coreflow.export.recipe",
    "TensorSpec": "coreflow.models.spec",
    "build": "coreflow.export.bundle",
    "load_model": "coreflow.runtime.load",
    "validate_bundle": "coreflow.validate.bundle",
}
_MODULES = {
    "errors": "coreflow.models.errors",
    "export": "coreflow.export",
    "runtime": "coreflow.runtime",
    "validate": "coreflow.validate",
}
__all__ = [
    "Chain",
    "ImageSpec",
    "Range",
    "Recipe",
    "TensorSpec",
    "build",
    "errors",
    "export",
    "load_model",
    "runtime",
    "validate",
    "validate_bundle",
]

# In a checkout the folders stand beside this one, in an installed package inside it.
if not Path(__file__).with_name("models").is_dir():
    __path__.append(str(Path(__file__).parents[1]))


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
