"""Converts a captured program to a saved ML program; the only caller of the converter."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.manifest import StageEntry
from coreflow.export.package.mlpackage import read_program
from coreflow.export.targets.lowerings.registry import registered
from coreflow.export.targets.passes import REMOVED_PASSES
from coreflow.models.errors import BundleError, ExportError, first_line
from coreflow.models.spec import BOUNDS_KEY, VALUES_KEY, Precision, TensorSpec

logger = logging.getLogger(__name__)

RECIPE_KEY = "coreflow.recipe"  # user-defined metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """The work of the converter without the module: plain data that travels to another process.

    >>> package = convert(conversion_of(capture(recipe)), Path("head.mlpackage"))
    """

    program: bytes  # torch.jit.save's, or torch.export.save's
    is_exported: bool
    entry: StageEntry  # what a manifest says of the package
    removed_passes: tuple[str, ...] = REMOVED_PASSES

    @property
    def name(self) -> str:
        """The name of the stage."""
        return str(self.entry.recipe["name"])


def convert(conversion: Conversion, package: Path) -> Path:
    """Convert a captured module and save it at ``package`` (an ``.mlpackage``); ``ExportError`` when it cannot be."""
    ct = quiet_coremltools()
    entry = conversion.entry
    target, precision = entry.recipe["target"], entry.recipe["precision"]
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(set(conversion.removed_passes))
    try:
        with _silenced(), registered():
            import torch

            model = ct.convert(
                (torch.export if conversion.is_exported else torch.jit).load(io.BytesIO(conversion.program)),
                inputs=[ct.TensorType(name=name, shape=spec.shape, dtype=_dtype(spec, precision)) for name, spec in entry.inputs.items()],
                outputs=[ct.TensorType(name=name, dtype=np.dtype(spec.dtype).type) for name, spec in entry.outputs.items()],
                convert_to="mlprogram",
                compute_precision=ct.precision.FLOAT16 if precision == "fp16" else ct.precision.FLOAT32,
                minimum_deployment_target=getattr(ct.target, target),
                pass_pipeline=pipeline,
                skip_model_load=True,
            )
            _describe(model, entry)
            model.save(str(package))
    except OSError as error:
        raise ExportError(f"{conversion.name}: could not be written: {error.strerror or error}") from error
    except Exception as error:
        raise ExportError(f"{conversion.name}: the converter gave up: {first_line(error)}") from error
    _check_interface(model.get_spec(), conversion)
    try:
        # The converter's own writer does not tell of a disk that was full: what was saved has to be readable to its end.
        read_program(package)
    except BundleError as error:
        raise ExportError(f"{conversion.name}: could not be written whole: {error}") from error
    return package


def _dtype(spec: TensorSpec, precision: Precision) -> Any:
    if spec.dtype == "float16" and precision == "fp32":
        return np.float32
    return np.dtype(spec.dtype).type


def _describe(model: Any, entry: StageEntry) -> None:
    model.short_description = entry.recipe["description"]
    bounds = {name: list(spec.bounds) for name, spec in entry.inputs.items() if spec.bounds is not None}
    model.user_defined_metadata[BOUNDS_KEY] = json.dumps(bounds)
    if values := {name: list(spec.values) for name, spec in entry.inputs.items() if spec.values is not None}:
        model.user_defined_metadata[VALUES_KEY] = json.dumps(values)
    recipe = {key: entry.recipe[key] for key in ("name", "target", "precision", "weights")}
    model.user_defined_metadata[RECIPE_KEY] = json.dumps({**recipe, "fingerprint": entry.fingerprint})


def _check_interface(spec: Any, conversion: Conversion) -> None:
    """The converter renames, drops and retypes without a word: its declarations must be those of the recipe."""
    for kind, features, specs in (
        ("inputs", spec.description.input, conversion.entry.inputs),
        ("outputs", spec.description.output, conversion.entry.outputs),
    ):
        declared = {feature.name: tuple(feature.type.multiArrayType.shape) for feature in features}
        asked = {name: spec.shape for name, spec in specs.items()}
        if kind == "outputs":
            # Output shapes are not always declared; names are.
            declared = {name: shape or asked.get(name, ()) for name, shape in declared.items()}
        if declared != asked:
            raise ExportError(f"{conversion.name}: the converter made the {kind} {declared}, the recipe says {asked}")


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """No warnings, no log, no progress bars of the converter: ours stand in their place, and its error is in the exception."""
    log = logging.getLogger("coremltools")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
