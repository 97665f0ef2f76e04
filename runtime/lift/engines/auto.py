"""The automatic engine: the interpreter at first, onnxruntime once that is expected to be faster."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from coreflow.export.package.graph import Graph, Program, Value
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.backend import LoadOptions
from coreflow.runtime.lift.engines.interpreter import Interpreter
from coreflow.runtime.lift.engines.onnxruntime import OnnxEngine
from coreflow.runtime.lift.onnx.cached import is_cached
from coreflow.runtime.lift.onnx.write import TOLERANCE

logger = logging.getLogger(__name__)

# About what it takes to build the ONNX form of a program. Ski-rental rule: interpret until the time spent equals the cost of building the
# ONNX form; the total is at most twice the optimum.
COMPILE_AFTER_S = 4.0
# Of weights. A program with more of them spends its time in products, where onnxruntime gains little, and to build its form takes twelve
# times their memory for a moment; one with less spends it between its ops. Measured: benchmarks/results/engines.json.
COMPILE_UP_TO_BYTES = 64 << 20


class AutoEngine:
    """onnxruntime if the program's ONNX form is in the cache; otherwise the interpreter, until it has run for as long as building it takes.

    >>> engine = AutoEngine(program, LoadOptions(numerics="fp16"), lambda: interpreter)
    >>> engine.name, engine.run(inputs)

    A program without an ONNX form or with large weights stays with the interpreter, as does every program on other devices than the CPU and
    in fp64.
    """

    def __init__(self, program: Program, options: LoadOptions, interpreter: Callable[[], Interpreter]) -> None:
        self._program, self._options = program, options
        weights = _weight_bytes(program.function(options.function_name)[0])
        on_cpu = torch.device(options.device).type == "cpu"
        self._compiles = on_cpu and options.numerics in TOLERANCE and weights <= COMPILE_UP_TO_BYTES
        self._seconds = 0.0
        cached = self._compiles and is_cached(program, options.numerics, options.function_name)
        self._engine: Interpreter | OnnxEngine = (self._onnx_engine() if cached else None) or interpreter()

    @property
    def name(self) -> str:
        """The engine of the next prediction."""
        return self._engine.name

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name. States are replaced in their buffers."""
        if not self._compiles:
            return self._engine.run(inputs)
        began = time.monotonic()
        results = self._engine.run(inputs)
        self._seconds += time.monotonic() - began
        if self._seconds > COMPILE_AFTER_S:
            self._engine = self._onnx_engine() or self._engine
        return results

    def _onnx_engine(self) -> OnnxEngine | None:
        """The program in onnxruntime; None for one that it cannot run. Not tried again."""
        self._compiles = False
        try:
            return OnnxEngine(self._program, self._options)
        except (UnsupportedError, OSError) as error:
            logger.info("%s stays with the interpreter: %s", self._program.path.name, error)
            return None


def _weight_bytes(graph: Graph) -> int:
    """The size of the constants. What a product of one row reads counts twice: it is all that takes time there, and it is fp32 there."""
    read_once = {
        id(value)
        for op in graph.walk()
        if op.type in ("linear", "matmul") and isinstance(x := op.inputs.get("x"), Value) and x.shape and set(x.shape[:-1]) <= {1}
        for value in op.input_values()
    }
    sizes = ((value, value.data.nbytes) for value in graph.constants if isinstance(value.data, np.ndarray))
    return sum(size * (2 if id(value) in read_once else 1) for value, size in sizes)
