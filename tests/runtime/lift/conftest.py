"""Runs one lowering the way the interpreter does, from a graph of a single op."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coreflow.export.package.graph import Graph, Op, Value
from coreflow.runtime.backend import NumericsName
from coreflow.runtime.lift.engines.interpreter import Interpreter
from coreflow.runtime.lift.numerics.named import numerics_named


def constant(data: Any) -> Value | tuple[Value, ...]:
    """A constant value; a list of arrays is an argument with several values."""
    if isinstance(data, list) and data and isinstance(data[0], np.ndarray):
        return tuple(Value("", part.dtype.name, part.shape, data=part) for part in data)
    if isinstance(data, str):
        return Value("", "string", (), data=data)
    array = np.asarray(data)
    if array.dtype == np.int64 and not isinstance(data, np.ndarray):
        array = array.astype(np.int32)
    if array.dtype == np.float64 and not isinstance(data, np.ndarray):
        array = array.astype(np.float32)
    return Value("", array.dtype.name, array.shape, data=array)


@pytest.fixture(scope="session")
def evaluate() -> Callable[..., Any]:
    """``evaluate(op, x=..., axis=...)``: the results as arrays; constants in, no rounding."""

    def run(
        op: str, *, results: int = 1, opset: str = "CoreML8", numerics: NumericsName = "fp64", declared: str = "float32", **arguments: Any
    ) -> Any:
        inputs = {name: constant(value) for name, value in arguments.items() if value is not None}
        outputs = tuple(Value(f"y{i}", declared, None) for i in range(results))
        graph = Graph("main", opset, (), outputs, (Op(op, "op", inputs, outputs),), ())
        actual = Interpreter(graph, numerics_named(numerics)).run({})
        arrays = tuple(np.asarray(value) for value in actual.values())
        return arrays[0] if results == 1 else arrays

    return run
