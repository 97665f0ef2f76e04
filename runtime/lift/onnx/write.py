"""A saved program as ONNX, and onnxruntime as an engine: the fastest way to run it on a CPU.

The ONNX model comes from ``LiftedModule`` by torch's exporter, so it consists of the same lowerings; under fp16 numerics it rounds where
they do. Every model is compared with the module before it is used. A file in the cache is keyed by everything that decides its bytes.
"""

import hashlib
import io
import logging
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coreflow.export.package.graph import Graph, Interface, Op, Program, package_digest
from coreflow.models.arrays import Array
from coreflow.models.errors import UnsupportedError
from coreflow.models.spec import TensorSpec
from coreflow.models.storage import write_atomically
from coreflow.models.versions import version
from coreflow.runtime.backend import NumericsName
from coreflow.runtime.cache import cache_folder, cached_entry
from coreflow.runtime.interface import converted_floats, input_specs, state_specs
from coreflow.runtime.lift.engines.module import LiftedModule
from coreflow.runtime.lift.numerics.plain import numerics_named
from coreflow.runtime.lift.onnx.session import import_onnxruntime
from coreflow.runtime.lift.ops.state import StateBuffer
from coreflow.runtime.lift.registry import find

logger = logging.getLogger(__name__)

# How far onnxruntime may be from the module, as a share of an output's largest value. In fp16 a sum in another order can fall on the
# other side of a rounding (2^-11 of a value), and what follows sees the difference.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}
_DRAWS = 2
_MODEL = "model.onnx"  # in an entry of the cache
_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "coreflow")


def write_onnx(
    program: Program, path: Path, numerics: NumericsName = "fp32", function_name: str | None = None, *, tuned: bool = False
) -> None:
    """Writes one function as a single ONNX file that gives what the interpreter gives under ``numerics`` (fp32 or fp16).

    Inputs, outputs and weights keep their names; floats go in and out as float32. A state is an input and, with ``_out`` behind its
    name, an output; a classifier gives its probabilities. ``tuned`` makes of it what onnxruntime runs fastest on this processor, and on
    no other, with its weights in a file beside it. ``UnsupportedError`` says why a program has no such form.
    """
    if numerics not in TOLERANCE:
        raise UnsupportedError(f"numerics {numerics!r} in ONNX; {' and '.join(TOLERANCE)} work")
    label = program.path.name
    graph, interface, _ = without_classifier(*program.function(function_name))
    drawn = [op.type for op in graph.walk() if op.type.startswith("random_")]
    if drawn:
        raise UnsupportedError(f"{label}: {drawn[0]} draws numbers, which ONNX would freeze; take engine='interpreter'")
    specs = {**input_specs(program, graph, interface), **state_specs(program, interface)}
    module = LiftedModule(graph, interface, numerics_named(numerics), label).eval().requires_grad_(False)
    _export(module, _draw(module, specs, 0), path, label)
    if tuned:
        from coreflow.runtime.lift.onnx.tuning import tune  # which imports onnx

        halves = {value.name for value in graph.inputs if value.kind == "tensor" and value.dtype == "float16"}
        tune(path, lambda source, target: _session(source, optimised=target), halves)
    session = _session(path, tuned=tuned)
    for seed in range(_DRAWS):
        _compare(module, session, _draw(module, specs, seed), TOLERANCE[numerics], label)


def cached_onnx(program: Program, numerics: NumericsName, function_name: str | None = None) -> Path:
    """The tuned ONNX file of a function, made if the cache has none; a refusal is kept too, since finding it out takes seconds."""
    entry = _cache_entry(program, numerics, function_name)
    refusal = _refusal(entry)
    if refusal.exists():
        raise UnsupportedError(refusal.read_text(encoding="utf-8"))
    try:
        return cached_entry(entry, lambda folder: write_onnx(program, folder / _MODEL, numerics, function_name, tuned=True)) / _MODEL
    except UnsupportedError as error:
        reason = str(error)
        write_atomically(refusal, lambda temporary: temporary.write_text(reason, encoding="utf-8"))
        raise


def is_cached(program: Program, numerics: NumericsName, function_name: str | None = None) -> bool:
    """Whether ``cached_onnx`` has the file, or knows that there can be none."""
    entry = _cache_entry(program, numerics, function_name)
    return entry.exists() or _refusal(entry).exists()


class OnnxEngine:
    """Runs one function with onnxruntime; called like the interpreter."""

    name = "onnxruntime"

    def __init__(self, program: Program, numerics: NumericsName, function_name: str | None = None) -> None:
        graph, interface = program.function(function_name)
        _, self._interface, self._classifier = without_classifier(graph, interface)
        self._opset = graph.opset
        if numerics not in TOLERANCE:
            raise UnsupportedError(f"engine onnxruntime under {numerics}; it computes {' or '.join(TOLERANCE)}, take engine='interpreter'")
        flexible = [feature.name for feature in interface.inputs if feature.enumerated or feature.ranges]
        if flexible:
            raise UnsupportedError(
                f"{program.path.name}: {', '.join(flexible)} may have several shapes, and ONNX holds one; take engine='interpreter'"
            )
        self._session = _session(cached_onnx(program, numerics, function_name), tuned=True)
        self._takes = _dtypes_taken(self._session)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name. States are replaced in their buffers."""
        states = {name: value for name, value in inputs.items() if isinstance(value, StateBuffer)}
        plain = {name: value.tensor if isinstance(value, StateBuffer) else value for name, value in inputs.items()}
        results = self._session.run(None, _as_taken(plain, self._takes))
        tensors = [torch.from_numpy(np.asarray(result)) for result in results]
        outputs = [feature.name for feature in self._interface.outputs]
        for name, tensor in zip(self._interface.states, tensors[len(outputs) :], strict=True):
            states[name.name].tensor = tensor
        found: dict[str, Any] = dict(zip(outputs, tensors, strict=False))
        return found if self._classifier is None else self._classified(found, self._classifier)

    def _classified(self, found: dict[str, Any], op: Op) -> dict[str, Any]:
        """The classifier's last op on the probabilities that the session gave."""
        lowering, probabilities, classes = find("classify", self._opset), op.inputs["probabilities"], op.inputs["classes"]
        assert lowering is not None and not isinstance(probabilities, tuple) and not isinstance(classes, tuple)
        results = lowering.function(probabilities=found.pop(probabilities.name), classes=classes.data)
        return found | {value.name: result for value, result in zip(op.outputs, results, strict=True)}


def without_classifier(graph: Graph, interface: Interface) -> tuple[Graph, Interface, Op | None]:
    """The function up to its ``classify``, whose probabilities take the place of the label and its dictionary; and that op."""
    op = next((op for op in graph.ops if op.type == "classify"), None)
    if op is None:
        return graph, interface, None
    probabilities, given = op.inputs["probabilities"], {value.name for value in op.outputs}
    assert not isinstance(probabilities, tuple)
    kept = tuple(value for value in graph.outputs if value.name not in given)
    label = next(feature for feature in interface.outputs if feature.name in given)
    outputs = tuple(feature for feature in interface.outputs if feature.name not in given)
    if probabilities not in kept:
        kept, outputs = (*kept, probabilities), (*outputs, replace(label, name=probabilities.name, kind="array"))
    return replace(graph, ops=tuple(o for o in graph.ops if o is not op), outputs=kept), replace(interface, outputs=outputs), op


def _dtypes_taken(session: Any) -> dict[str, np.dtype[Any]]:
    """By name, in which dtype every input of the session is given if it is of floats; one that no output depends on may be missing."""
    return {entry.name: np.dtype(np.float16 if entry.type == "tensor(float16)" else np.float32) for entry in session.get_inputs()}


def _as_taken(values: Mapping[str, Tensor], takes: Mapping[str, np.dtype[Any]]) -> dict[str, Array]:
    """What a session is given: floats in the width that it takes."""
    arrays = {name: values[name].numpy() for name in takes}
    return {name: converted_floats(array, takes[name]) if array.dtype.kind == "f" else array for name, array in arrays.items()}


def _cache_entry(program: Program, numerics: NumericsName, function_name: str | None) -> Path:
    name = program.default_function if function_name is None else function_name
    key = hashlib.sha256("\0".join((package_digest(program.path), name, numerics, *_makers())).encode()).hexdigest()[:32]
    return cache_folder() / "onnx" / key


def _refusal(entry: Path) -> Path:
    return entry.with_suffix(".refused.txt")


def _makers() -> Iterator[str]:
    """What else decides the bytes of a file: the processor, the versions of the libraries, and our own lowerings."""
    yield f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    for name in _LIBRARIES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} none"
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        yield hashlib.sha256(source.read_bytes()).hexdigest()


def _export(module: LiftedModule, example: Sequence[Tensor], path: Path, label: str) -> None:
    try:
        with _quiet():
            exported = torch.export.export(module, tuple(example), strict=False)
            made = torch.onnx.export(
                exported,
                (),
                input_names=module.input_names,
                output_names=module.output_names,
                dynamo=True,
                verbose=False,
                optimize=False,  # it merges equal weights and their names; onnxruntime optimises what it loads anyway
            )
            assert made is not None  # it is when no file is given
            model = made.model_proto
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
    """Neither the exporter's progress nor its complaints about parts that nobody asked for (torchvision) reach the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _session(path: Path, *, tuned: bool = False, optimised: Path | None = None) -> Any:
    """An onnxruntime session with as many threads as torch takes; it writes what it makes of the model to ``optimised``."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # fatal only; errors come as exceptions
    options.enable_mem_pattern = False  # a second buffer for all that lives at a time, made at the second run, and no faster
    if tuned:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise UnsupportedError(f"onnxruntime cannot open {path.name}: {error}") from error


def _compare(module: LiftedModule, session: Any, inputs: Sequence[Tensor], tolerance: float, label: str) -> None:
    """``UnsupportedError`` when onnxruntime does not give what the module gives."""
    given = dict(zip(module.input_names, inputs, strict=True))
    with torch.inference_mode():
        wanted = module(*inputs)
    try:
        found = session.run(None, _as_taken(given, _dtypes_taken(session)))
    except Exception as error:  # as above
        raise UnsupportedError(f"{label}: onnxruntime cannot run it: {error}; take engine='interpreter'") from error
    for name, want, have in zip(module.output_names, wanted, found, strict=True):
        reference, actual = want.numpy().astype(np.float64), np.asarray(have).astype(np.float64)
        finite = np.abs(reference[np.isfinite(reference)])
        limit = tolerance * float(finite.max(initial=1e-6)) if want.is_floating_point() else 0.0
        same = reference.shape == actual.shape and bool(np.isclose(actual, reference, rtol=0.0, atol=limit, equal_nan=True).all())
        if not same:
            raise UnsupportedError(f"{label}: onnxruntime gives another {name!r} than the program's own ops; take engine='interpreter'")


def _draw(module: LiftedModule, specs: Mapping[str, TensorSpec], seed: int) -> list[Tensor]:
    """Inputs within their bounds; without bounds standard normal floats, and zeros for integers, which may be indices."""
    random = np.random.default_rng(seed)
    drawn: list[Tensor] = []
    for name in module.input_names:
        spec = specs[name]
        if spec.dtype == "int32":
            low, high = (0.0, 0.0) if spec.bounds is None else spec.bounds
            drawn.append(torch.from_numpy(random.integers(int(low), int(high) + 1, spec.shape).astype(np.int32)))
        else:
            values = random.standard_normal(spec.shape) if spec.bounds is None else random.uniform(*spec.bounds, spec.shape)
            drawn.append(torch.from_numpy(values.astype(spec.dtype).astype(np.float32)))
    return drawn
