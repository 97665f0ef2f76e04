"""Converts a captured program to a saved ML program; the only caller of the converter."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.manifest import StageEntry
from coreflow.export.package.mlpackage import read_program
from coreflow.export.targets.declarations import (
    check_interface,
    classifier_type,
    describe,
    input_types,
    output_types,
    rename_states,
    state_types,
)
from coreflow.export.targets.failures import failing_place
from coreflow.export.targets.finite_masks import finite_masks
from coreflow.export.targets.functions import merge_functions
from coreflow.export.targets.lowerings.registry import registered
from coreflow.export.targets.origins import Origins, origins
from coreflow.export.targets.passes import REMOVED_PASSES, Pass, pipeline
from coreflow.export.targets.scopes import outside_of
from coreflow.models.errors import BundleError, CoreflowError, ExportError, first_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """The work of the converter without the module: plain data that travels to another process; a package, or a function of one.

    >>> package = convert(conversion_of(capture(recipe)), Path("head.mlpackage"))
    """

    program: bytes  # torch.jit.save's, or torch.export.save's
    is_exported: bool
    entry: StageEntry  # what a manifest says of the package
    removed_passes: tuple[str, ...] = REMOVED_PASSES
    passes: tuple[Pass, ...] = ()  # of the recipe
    prefix: str = ""  # of the paths of the recipe's module in the program
    is_lowered: bool = True  # by our lowerings and passes too; False: as anybody's coremltools converts
    functions: tuple["Conversion", ...] = ()  # further ones of the same package

    @property
    def name(self) -> str:
        """The name of the stage."""
        return str(self.entry.recipe["name"])


def convert(conversion: Conversion, package: Path) -> Path:
    """Convert a captured module and save it at ``package`` (an ``.mlpackage``); ``ExportError`` when it cannot be."""
    return _convert(conversion, package, None)


def convert_with_origins(conversion: Conversion, package: Path) -> Mapping[str, Origins]:
    """``convert``, and by function the lines of the module from which its ops come, as far as they are known."""
    places: dict[str, Origins] = {}
    _convert(conversion, package, places)
    return places if conversion.functions else {read_program(package).default_function: places[conversion.name]}


def _convert(conversion: Conversion, package: Path, places: dict[str, Origins] | None) -> Path:
    if not conversion.functions:
        return _convert_one(conversion, package, places)
    with tempfile.TemporaryDirectory(dir=package.parent, prefix=".functions-") as folder:
        parts = {
            part.name: _convert_one(part, Path(folder) / f"{part.name}.mlpackage", places) for part in (conversion, *conversion.functions)
        }
        try:
            with _silenced():
                merge_functions(parts, package)
            read_program(package)
        except OSError as error:
            raise ExportError(f"{conversion.name}: could not be written: {error.strerror or error}") from error
        except Exception as error:
            raise ExportError(f"{conversion.name}: its functions cannot be merged: {first_line(error)}") from error
    return package


def _convert_one(conversion: Conversion, package: Path, places: dict[str, Origins] | None) -> Path:
    ct = quiet_coremltools()
    entry = conversion.entry
    passes = (*conversion.passes, finite_masks) if conversion.is_lowered else conversion.passes
    program = None
    try:
        with (
            _silenced(),
            registered() if conversion.is_lowered else contextlib.nullcontext(),
            pipeline(conversion.removed_passes, passes) as pass_pipeline,
        ):
            program = _load(conversion)
            model = ct.convert(
                program,
                inputs=input_types(ct, entry),
                outputs=output_types(ct, entry),
                states=state_types(ct, entry, dict(getattr(program, "named_buffers", dict)()), conversion.prefix),
                classifier_config=classifier_type(ct, entry),
                convert_to="mlprogram",
                compute_precision=_compute_precision(ct, conversion, program),
                minimum_deployment_target=getattr(ct.target, entry.recipe["target"]),
                pass_pipeline=pass_pipeline,
                skip_model_load=True,
            )
            if places is not None:
                places[conversion.name] = origins(program, model._mil_program)
            describe(model, entry)
            model.save(str(package))
            rename_states(package, entry, conversion.prefix)
    except CoreflowError:
        raise
    except OSError as error:
        raise ExportError(f"{conversion.name}: could not be written: {error.strerror or error}") from error
    except Exception as error:
        place = None if program is None else failing_place(program, error)
        raise ExportError(f"{conversion.name}: the converter gave up{f' at {place}' if place else ''}: {first_line(error)}") from error
    try:
        # The converter's own writer does not tell of a disk that was full: what was saved has to be readable to its end.
        _, interface = read_program(package).function()
    except BundleError as error:
        raise ExportError(f"{conversion.name}: could not be written whole: {error}") from error
    check_interface(interface, entry)
    return package


def _load(conversion: Conversion) -> Any:
    import torch

    return (torch.export if conversion.is_exported else torch.jit).load(io.BytesIO(conversion.program))


def _compute_precision(ct: Any, conversion: Conversion, program: Any) -> Any:
    """The precision of the recipe, but for the ops of submodules that compute in fp32."""
    recipe = conversion.entry.recipe
    if recipe["precision"] == "fp32":
        return ct.precision.FLOAT32
    in_fp32 = [f"{conversion.prefix}{path}" for path, precision in recipe.get("compute_dtype", {}).items() if precision == "fp32"]
    if not in_fp32:
        return ct.precision.FLOAT16
    return ct.transform.FP16ComputePrecision(op_selector=outside_of(program, in_fp32))


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
