"""What executes one function: the interpreter, the module, onnxruntime, or whichever of them pays.

All are called alike: tensors (floats in the numerics' dtype) and states by name in, outputs by name out, states replaced in their buffers.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from coreflow.export.package.graph import Graph, Interface, Program, Value
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.backend import NumericsName
from coreflow.runtime.lift.engines.interpreter import Interpreter
from coreflow.runtime.lift.engines.module import LiftedModule
from coreflow.runtime.lift.numerics.plain import Numerics
from coreflow.runtime.lift.onnx.write import TOLERANCE, OnnxEngine, is_cached
from coreflow.runtime.lift.ops.state import StateBuffer

logger = logging.getLogger(__name__)

# About what it takes to write a program as ONNX. Who rents until the rent has reached the price pays at most twice the least possible.
COMPILE_AFTER_S = 4.0
# Of weights. A program with more of them spends its time in products, where onnxruntime gains little, and to make its form takes twelve
# times their memory for a moment; one with less spends it between its ops. Measured: benchmarks/results/engines.json.
COMPILE_UP_TO_BYTES = 64 << 20


class Runs(Protocol):
    """What executes the function."""

    @property
    def name(self) -> str:
        """Which engine it is."""

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs; states are replaced in their buffers."""


class ModuleEngine:
    """Runs one function as ``LiftedModule``."""

    name = "module"

    def __init__(self, graph: Graph, interface: Interface, numerics: Numerics, device: torch.device, package: str) -> None:
        self.module = LiftedModule(graph, interface, numerics, package).eval().requires_grad_(False).to(device)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name. States are replaced in their buffers."""
        buffers = [inputs[name] for name in self.module.states]
        values = (each.tensor if isinstance(each, StateBuffer) else each for each in (inputs[name] for name in self.module.input_names))
        with torch.inference_mode():
            results = self.module(*values)
        outputs = len(results) - len(buffers)
        for buffer, tensor in zip(buffers, results[outputs:], strict=True):
            buffer.tensor = tensor
        return dict(zip(self.module.output_names[:outputs], results, strict=False))


class AutoEngine:
    """onnxruntime if the program's ONNX form is in the cache; otherwise the interpreter, until it has run for as long as making it takes.

    A program that has no such form stays with the interpreter, as does one with large weights. On other devices than the CPU and in fp64
    there is no other choice.
    """

    def __init__(
        self,
        program: Program,
        function_name: str | None,
        numerics: NumericsName,
        device: torch.device,
        interpreter: Callable[[], Interpreter],
    ) -> None:
        self._program, self._function_name, self._numerics = program, function_name, numerics
        weights = _weight_bytes(program.function(function_name)[0])
        self._compiles = device.type == "cpu" and numerics in TOLERANCE and weights <= COMPILE_UP_TO_BYTES
        self._seconds = 0.0
        known = self._compiles and is_cached(program, numerics, function_name)
        self._runs: Interpreter | OnnxEngine = (self._compiled() if known else None) or interpreter()

    @property
    def name(self) -> str:
        """The engine of the next prediction."""
        return self._runs.name

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name. States are replaced in their buffers."""
        if not self._compiles:
            return self._runs.run(inputs)
        began = time.monotonic()
        results = self._runs.run(inputs)
        self._seconds += time.monotonic() - began
        if self._seconds > COMPILE_AFTER_S:
            self._runs = self._compiled() or self._runs
        return results

    def _compiled(self) -> OnnxEngine | None:
        """The program in onnxruntime; None for one that it cannot run. Not tried again."""
        self._compiles = False
        try:
            return OnnxEngine(self._program, self._numerics, self._function_name)
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
