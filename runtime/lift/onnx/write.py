"""A saved program as an ONNX file.

The model comes from ``LiftedModule`` by torch's exporter, so it consists of the same lowerings; under fp16 numerics it rounds where they
do. Every model is compared with the module before it is used.
"""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coreflow.export.package.classifier import without_classifier
from coreflow.export.package.graph import Program
from coreflow.models.draws import draw_inputs
from coreflow.models.errors import UnsupportedError
from coreflow.models.spec import TensorSpec
from coreflow.models.versions import version
from coreflow.runtime.backend import NumericsName
from coreflow.runtime.interface import input_specs, state_specs
from coreflow.runtime.lift.engines.module import LiftedModule
from coreflow.runtime.lift.numerics.named import numerics_named
from coreflow.runtime.lift.onnx.session import float_dtypes, open_session, session_inputs

# How far onnxruntime may be from the module, as a share of an output's largest value. In fp16 a sum in another order can fall on the
# other side of a rounding (2^-11 of a value), and what follows sees the difference.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}
_DRAWS = 2


def write_onnx(
    program: Program, path: Path, numerics: NumericsName = "fp32", function_name: str | None = None, *, tuned: bool = False
) -> None:
    """Writes one function as a single ONNX file that gives what the interpreter gives under ``numerics`` (fp32 or fp16).

    Inputs, outputs and weights keep their names; floats go in and out as float32. A state is an input and, with ``_out`` behind its name,
    an output; a classifier gives its probabilities. ``tuned`` optimises the file for this processor alone and puts its weights into a file
    beside it. ``UnsupportedError`` says why a program has no such form.
    """
    if numerics not in TOLERANCE:
        raise UnsupportedError(f"numerics {numerics!r} in ONNX; {' and '.join(TOLERANCE)} work")
    label = program.path.name
    graph, interface, _ = without_classifier(*program.function(function_name))
    random = next((op.type for op in graph.walk() if op.type.startswith("random_")), None)
    if random is not None:
        raise UnsupportedError(f"{label}: {random} draws numbers, which ONNX would freeze; take engine='interpreter'")
    specs = {**input_specs(program, graph, interface), **state_specs(program, interface)}
    module = LiftedModule(graph, interface, numerics_named(numerics), label).eval().requires_grad_(False)
    _export(module, _draw(module, specs, 0), path, label)
    if tuned:
        from coreflow.runtime.lift.onnx.tuning import tune  # which imports onnx

        fp16_inputs = {value.name for value in graph.inputs if value.kind == "tensor" and value.dtype == "float16"}
        tune(path, lambda source, target: open_session(source, optimised=target), fp16_inputs)
    session = open_session(path, tuned=tuned)
    for seed in range(_DRAWS):
        _compare(module, session, _draw(module, specs, seed), TOLERANCE[numerics], label)


def _export(module: LiftedModule, example: Sequence[Tensor], path: Path, label: str) -> None:
    try:
        with _quiet():
            exported = torch.export.export(module, tuple(example), strict=False)
            program = torch.onnx.export(
                exported,
                (),
                input_names=module.input_names,
                output_names=module.output_names,
                dynamo=True,
                verbose=False,
                optimize=False,  # it merges equal weights and their names; onnxruntime optimises what it loads anyway
            )
            assert program is not None  # it is when no file is given
            model = program.model_proto
            _forget_sources(model)
            path.write_bytes(model.SerializeToString(deterministic=True))
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"ONNX needs {error.name}, which is not installed; pip install {error.name}") from error
    except Exception as error:  # whatever the exporter raises: this program has no static ONNX form
        cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UnsupportedError(f"{label}: cannot be written as ONNX: {cause.strip()}; take engine='interpreter'") from error


def _forget_sources(model: Any) -> None:
    """Drops what the exporter notes of the Python behind every node: it is ours, not the program's, and holds paths of this machine."""
    model.producer_name, model.producer_version = "coreflow", version("coreflow")
    for owner in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.functions):
        del owner.metadata_props[:]
        owner.doc_string = ""
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporter's progress, and its warnings about missing optional parts (torchvision)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _compare(module: LiftedModule, session: Any, inputs: Sequence[Tensor], tolerance: float, label: str) -> None:
    """``UnsupportedError`` when onnxruntime does not give what the module gives."""
    named = dict(zip(module.input_names, inputs, strict=True))
    with torch.inference_mode():
        references = module(*inputs)
    try:
        results = session.run(None, session_inputs(named, float_dtypes(session)))
    except Exception as error:  # as above
        raise UnsupportedError(f"{label}: onnxruntime cannot run it: {error}; take engine='interpreter'") from error
    for name, tensor, result in zip(module.output_names, references, results, strict=True):
        reference, actual = tensor.numpy().astype(np.float64), np.asarray(result).astype(np.float64)
        finite = np.abs(reference[np.isfinite(reference)])
        limit = tolerance * float(finite.max(initial=1e-6)) if tensor.is_floating_point() else 0.0
        same = reference.shape == actual.shape and bool(np.isclose(actual, reference, rtol=0.0, atol=limit, equal_nan=True).all())
        if not same:
            raise UnsupportedError(f"{label}: onnxruntime gives another {name!r} than the program's own ops; take engine='interpreter'")


def _draw(module: LiftedModule, specs: Mapping[str, TensorSpec], seed: int) -> list[Tensor]:
    """Inputs like those in use; zeros for integers without bounds, which may be indices."""
    chosen = {name: specs[name] for name in module.input_names}
    free = {name: replace(spec, bounds=(0, 0)) for name, spec in chosen.items() if spec.dtype == "int32" and spec.bounds is None}
    arrays = draw_inputs({**chosen, **free}, seed).values()
    return [torch.from_numpy(array if array.dtype == np.int32 else array.astype(np.float32)) for array in arrays]
