"""One call from a saved package to something that predicts."""

import sys
from pathlib import Path

from coreflow.export.package.graph import read_program
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.backend import Backend, ComputeUnits, Model, check_compute_units


def load_model(
    path: str | Path,
    backend: Backend = "auto",
    *,
    numerics: str = "fp16",
    device: str = "cpu",
    engine: str = "auto",
    compute_units: ComputeUnits = "all",
    function_name: str | None = None,
) -> Model:
    """The model in the package at ``path``, ready to predict.

    ``backend``: ``coreml`` (macOS), ``lifted`` (anywhere), or ``auto``: Core ML on macOS, lifted elsewhere. ``numerics``, ``device`` and
    ``engine`` are the lifted backend's, ``compute_units`` Core ML's. ``function_name`` picks one of several functions.
    Raises ``BundleError`` for a broken package and ``UnsupportedError`` for what the backend cannot execute.
    """
    check_compute_units(compute_units)
    program = read_program(path)
    chosen = ("coreml" if sys.platform == "darwin" else "lifted") if backend == "auto" else backend
    if chosen == "lifted":
        from coreflow.runtime.lifted import LiftedModel

        return LiftedModel(program, numerics, device, engine, function_name)
    if chosen == "coreml":
        from coreflow.runtime.coreml import CoreMLModel

        return CoreMLModel(program, compute_units, function_name)
    raise UnsupportedError(f"backend {backend!r}; choose auto, coreml or lifted")
