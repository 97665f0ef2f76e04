"""onnxruntime as an engine, on the tuned ONNX form of a program: the fastest way to run many small ops on a CPU."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from coreflow.export.package.classifier import without_classifier
from coreflow.export.package.graph import Op, Program
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.backend import LoadOptions
from coreflow.runtime.lift.onnx.cached import cached_onnx
from coreflow.runtime.lift.onnx.session import float_dtypes, open_session, session_inputs
from coreflow.runtime.lift.onnx.write import TOLERANCE
from coreflow.runtime.lift.ops.state import StateBuffer
from coreflow.runtime.lift.registry import find


class OnnxEngine:
    """Runs one function with onnxruntime.

    >>> engine = OnnxEngine(program, LoadOptions(numerics="fp16"))
    >>> outputs = engine.run({"ids": ids, "mask": mask})
    """

    name = "onnxruntime"

    def __init__(self, program: Program, options: LoadOptions) -> None:
        device, numerics = torch.device(options.device), options.numerics
        if device.type != "cpu":
            raise UnsupportedError(f"engine onnxruntime on {device}; it runs on the CPU, take engine='module'")
        graph, interface = program.function(options.function_name)
        _, self._interface, self._classifier = without_classifier(graph, interface)
        self._opset = graph.opset
        if numerics not in TOLERANCE:
            raise UnsupportedError(f"engine onnxruntime under {numerics}; it computes {' or '.join(TOLERANCE)}, take engine='interpreter'")
        flexible = [feature.name for feature in interface.inputs if feature.enumerated or feature.ranges]
        if flexible:
            raise UnsupportedError(
                f"{program.path.name}: {', '.join(flexible)} may have several shapes, and ONNX holds one; take engine='interpreter'"
            )
        path, self._temporary = cached_onnx(program, numerics, options.function_name)  # large weights are read from there
        self._session = open_session(path, tuned=True)
        self._dtypes = float_dtypes(self._session)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name. States are replaced in their buffers."""
        states = {name: value for name, value in inputs.items() if isinstance(value, StateBuffer)}
        tensors = {name: value.tensor if isinstance(value, StateBuffer) else value for name, value in inputs.items()}
        results = self._session.run(None, session_inputs(tensors, self._dtypes))
        values = [torch.from_numpy(np.asarray(result)) for result in results]
        names = [feature.name for feature in self._interface.outputs]
        for feature, value in zip(self._interface.states, values[len(names) :], strict=True):
            states[feature.name].tensor = value
        outputs: dict[str, Any] = dict(zip(names, values, strict=False))
        return outputs if self._classifier is None else self._classify(outputs, self._classifier)

    def _classify(self, outputs: dict[str, Any], op: Op) -> dict[str, Any]:
        """The outputs after the classifier's last op on the probabilities that the session gave."""
        lowering, probabilities, classes = find("classify", self._opset), op.inputs["probabilities"], op.inputs["classes"]
        assert lowering is not None and not isinstance(probabilities, tuple) and not isinstance(classes, tuple)
        results = lowering.function(probabilities=outputs.pop(probabilities.name), classes=classes.data)
        return outputs | {value.name: result for value, result in zip(op.outputs, results, strict=True)}
