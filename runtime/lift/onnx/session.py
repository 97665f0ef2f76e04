"""Sessions of onnxruntime, and the one place where it is imported."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coreflow.models.arrays import Array
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.interface import to_floats

# Read once, when onnxruntime starts. Source: onnxruntime pull requests 27379 and 29843 (release 1.29).
_VARIABLE = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> Any:
    """The onnxruntime module with its telemetry off; ``UnsupportedError`` when it is not installed.

    Its releases since 1.29, on Windows earlier ones, write an identifier of the machine into the user's cache and send the names of models,
    hashes of their weights and running times. A user who wants that sets ``ORT_DISABLE_TELEMETRY=0``.
    """
    chosen = os.environ.setdefault(_VARIABLE, "1")
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UnsupportedError("onnxruntime is not installed; pip install onnxruntime") from error
    if chosen != "0":
        onnxruntime.disable_telemetry_events()  # on Windows, where the variable says nothing
    return onnxruntime


def open_session(path: Path, *, tuned: bool = False, optimised: Path | None = None, threads: int | None = None) -> Any:
    """An onnxruntime session of the model at ``path``; ``UnsupportedError`` for a file that onnxruntime does not open.

    A ``tuned`` model is run as it is; any other is optimised first, and the result written to ``optimised``. ``threads``: None for as many
    as torch uses, 0 for onnxruntime's own choice.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
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


def float_dtypes(session: Any) -> dict[str, np.dtype[Any]]:
    """Float dtype per input of the session; an input that no output depends on may be missing."""
    return {entry.name: np.dtype(np.float16 if entry.type == "tensor(float16)" else np.float32) for entry in session.get_inputs()}


def session_inputs(values: Mapping[str, Tensor], dtypes: Mapping[str, np.dtype[Any]]) -> dict[str, Array]:
    """The arrays that a session takes, floats in its ``float_dtypes``."""
    arrays = {name: values[name].numpy() for name in dtypes}
    return {name: to_floats(array, dtypes[name]) if array.dtype.kind == "f" else array for name, array in arrays.items()}
