"""Graphs of a few ops, and the law that every pass keeps: the same function, once is enough, and types that are right."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import settings

from coreflow.export.engine.repair.facts import Facts, Magnitude
from coreflow.export.engine.repair.repair import Pass
from coreflow.export.engine.repair.rewrite import Builder
from coreflow.export.engine.targets import find_targets
from coreflow.export.package.graph import Graph, Op, Value
from coreflow.models.arrays import Array
from coreflow.runtime.backend import NumericsName
from coreflow.runtime.lift.engines.interpreter import Interpreter
from coreflow.runtime.lift.numerics.named import numerics_named

Body = Callable[..., Value | Sequence[Value]]
SAME = 1e-12
drawn = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def facts(
    bounds: Mapping[str, tuple[float, float]] | None = None, magnitudes: Mapping[str, Magnitude] | None = None, target: str = "M4/macOS27"
) -> Facts:
    return Facts(target=find_targets(target)[0], bounds=bounds or {}, magnitudes=magnitudes or {})


def graph_of(body: Body, opset: str = "CoreML8", **shapes: Any) -> Graph:
    """The graph whose ops ``body(new, **inputs)`` makes; an input is given by its shape, or by its type and shape."""
    new = Builder("net", set(shapes))
    typed = {name: given if given and isinstance(given[0], str) else ("float16", given) for name, given in shapes.items()}
    inputs = {name: Value(name, dtype, shape) for name, (dtype, shape) in typed.items()}
    made = body(new, **inputs)
    outputs = (made,) if isinstance(made, Value) else tuple(made)
    return Graph("main", opset, tuple(inputs.values()), outputs, tuple(new.ops), tuple(new.constants))


def run(graph: Graph, inputs: Mapping[str, Array], numerics: NumericsName = "fp64") -> list[Array]:
    """The outputs; every value has the shape and the kind of elements that it is declared with."""
    chosen = numerics_named(numerics)

    def check(op: Op, results: tuple[Any, ...]) -> None:
        for value, result in zip(op.outputs, results, strict=True):
            if isinstance(result, torch.Tensor):
                assert value.shape is None or len(value.shape) == result.dim(), (op.name, value.shape, result.shape)
                assert all(declared in (None, extent) for declared, extent in zip(value.shape or (), result.shape, strict=False)), op.name
                assert value.dtype.startswith("float") == result.is_floating_point(), op.name

    tensors: dict[str, Any] = {}
    for name, array in inputs.items():
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        tensors[name] = tensor.to(chosen.dtype) if tensor.is_floating_point() else tensor
    return [np.asarray(value) for value in Interpreter(graph, chosen).run(tensors, check).values()]


def off(reference: Sequence[Array], actual: Sequence[Array]) -> float:
    """The largest difference of an output, relative to its largest number; of what is finite in the reference."""
    worst = 0.0
    for one, other in zip(reference, actual, strict=True):
        assert one.shape == other.shape and one.dtype.kind == other.dtype.kind
        finite = np.isfinite(one)
        assert np.isfinite(other[finite]).all()
        difference = np.abs(one[finite].astype(float) - other[finite].astype(float))
        worst = max(worst, float(difference.max(initial=0)) / max(float(np.abs(one[finite]).max(initial=0)), 1e-6))
    return worst


def repaired(graph: Graph, repair: Pass, inputs: Mapping[str, Array], known: Facts | None = None, limit: float = SAME) -> Graph:
    """The graph after ``repair``, which is the same function within ``limit`` and has nothing left to repair."""
    known = known or facts()
    after = repair(graph, known)
    assert repair(after, known) is after, "a second time changes something"
    assert off(run(graph, inputs), run(after, inputs)) <= limit
    names = [value.name for op in after.walk() for value in op.outputs]
    assert len(names) == len(set(names))
    assert [value.name for value in after.outputs] == [value.name for value in graph.outputs]
    return after


def seen(graph: Graph, *samples: Mapping[str, Array]) -> Facts:
    """What calibration data show of every value of a graph."""
    shown: dict[str, Magnitude] = {}

    def note(name: str, array: Array) -> None:
        squares = np.square(array, dtype=np.float64)
        norms = tuple(float(np.sqrt(squares.sum(axis).max())) for axis in range(array.ndim))
        shown[name] = Magnitude(float(np.abs(array).max()), float(np.sqrt(squares.mean())), norms)

    def observe(op: Op, results: tuple[Any, ...]) -> None:
        for value, result in zip(op.outputs, results, strict=True):
            note(value.name, result.numpy())

    for inputs in samples:
        for name, array in inputs.items():
            note(name, array)
        tensors = {name: torch.from_numpy(array).double() for name, array in inputs.items()}
        Interpreter(graph, numerics_named("fp64")).run(tensors, observe)
    return facts(magnitudes=shown)


def types(graph: Graph) -> list[str]:
    return [op.type for op in graph.walk()]
