"""From a saved package to a model that predicts: ``load_model``, and ``open_model`` for a program that was read before."""

import sys
from pathlib import Path

from coreflow.export.package.graph import Program
from coreflow.export.package.mlpackage import read_program
from coreflow.runtime.backend import Backend, ComputeUnits, EngineName, LoadOptions, Model, NumericsName


def load_model(
    path: str | Path,
    backend: Backend = "auto",
    *,
    numerics: NumericsName = "fp16",
    device: str = "cpu",
    engine: EngineName = "auto",
    compute_units: ComputeUnits = "all",
    function_name: str | None = None,
) -> Model:
    """The model in the package at ``path``, ready to predict.

    >>> model = load_model("encoder.mlpackage", "lifted", numerics="fp16")
    >>> model.predict({"ids": ids, "mask": mask})["surface"]

    ``backend``: ``coreml`` (macOS), ``lifted`` (anywhere), or ``auto``: Core ML on macOS, lifted elsewhere. ``numerics``, ``device`` and
    ``engine`` are the lifted backend's, ``compute_units`` Core ML's. ``function_name`` picks one of several functions.
    Raises ``BundleError`` for a broken package and ``UnsupportedError`` for what the backend cannot execute.
    """
    options = LoadOptions(
        backend=backend, numerics=numerics, device=device, engine=engine, compute_units=compute_units, function_name=function_name
    )
    return open_model(read_program(path), options)


def open_model(program: Program, options: LoadOptions) -> Model:
    """``program`` on the backend of ``options``; raises ``UnsupportedError`` for what that cannot execute."""
    backend = ("coreml" if sys.platform == "darwin" else "lifted") if options.backend == "auto" else options.backend
    if backend == "lifted":
        from coreflow.runtime.lifted import LiftedModel

        return LiftedModel(program, options)
    from coreflow.runtime.coreml import CoreMLModel

    return CoreMLModel(program, options)
