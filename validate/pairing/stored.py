"""Constants as ops read them, and which numbers may have been stored as them: rounded, quantised, looked up in a palette, or pruned."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from coreflow.export.package.graph import Graph, Op, Value
from coreflow.models.arrays import Array, Bools, Floats
from coreflow.runtime.lift.numerics.named import numerics_named
from coreflow.runtime.lift.plan.planner import Planner
from coreflow.runtime.lift.plan.policy import GeneralPolicy
from coreflow.validate.pairing.rounding import is_rounding_of, slack_of

_FLOATS = ("float16", "float32")
_BLUR = 0.02  # of a step: what coremltools' own palettes and scales are off by
_CODES = ("quantized_data", "data", "nonzero_data")  # arguments that hold steps of a scale
_BLOCK = 1 << 16  # elements compared at a time: no temporary of an embedding is as large as the embedding, and all stay in the cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stored:
    """A floating constant, with the op and the argument that read it first.

    >>> [stored.value.name for stored in stored_constants(graph) if stored.low is not None]  # compressed ones
    ['weight_palettized']
    """

    op: Op
    argument: str
    value: Value
    numbers: Array  # dense
    low: Floats | None = None  # (N,): bounds of what was compressed to each number; None: each was rounded
    high: Floats | None = None

    @property
    def name(self) -> str:
        """Name of the constant, or of the op that reads it."""
        return self.value.name or self.op.name

    def accepts_by_block(self, values: Array) -> Iterator[Bools]:
        """``accepts`` of ``values`` (N,), one for each number, a block at a time."""
        for start in range(0, values.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            yield self.accepts(values[block], block)

    @property
    def is_one_number(self) -> bool:
        """Whether all elements are the same number."""
        flat = self.numbers.reshape(-1)
        return bool(flat[0] == flat[-1] and (flat == flat[0]).all())

    def accepts(self, values: Array, places: npt.NDArray[np.intp] | slice = slice(None)) -> Bools:
        """(N,) whether each of ``values`` (N,) may have been stored as the number at its place; ``places`` (N,) count in a flat array."""
        if self.low is None or self.high is None:
            return is_rounding_of(self.numbers.reshape(-1)[places], values)
        reference, low, high = values.astype(np.float64), self.low[places], self.high[places]
        # Scales and tables were rounded, too, and codes computed in fp16, by which the borders between two of them moved.
        ends = [np.where(np.isfinite(end), np.abs(end), 0.0) for end in (reference, low, high)]
        slack = 2 * slack_of(np.maximum.reduce(ends), self.value.dtype) + _BLUR * np.where(np.isfinite(high - low), high - low, 0.0)
        return (low - slack <= reference) & (reference <= high + slack)


def stored_constants(graph: Graph) -> Iterator[Stored]:
    """Every floating constant of ``graph`` once; results of ``constexpr_*`` ops are constants, and what those read is none."""
    expressions = {id(value): op for op in graph.walk() if op.type.startswith("constexpr_") for value in op.outputs}
    seen: set[int] = set()
    for op in graph.walk():
        if op.type.startswith("constexpr_"):
            continue
        for argument in op.inputs:
            for value in op.argument(argument):
                if id(value) in seen or value.dtype not in _FLOATS:
                    continue
                seen.add(id(value))
                if id(value) in expressions:
                    yield _compressed(op, argument, value, expressions, graph.opset)
                elif isinstance(value.data, np.ndarray) and value.data.size:
                    yield Stored(op=op, argument=argument, value=value, numbers=value.data)


def _compressed(op: Op, argument: str, value: Value, expressions: Mapping[int, Op], opset: str) -> Stored:
    """A result of constant expressions: computed as it is, and with every code half a step lower and higher."""
    chain: dict[int, Op] = {}
    _gather(value, expressions, chain)
    graph = Graph("constant", opset, (), (value,), tuple(chain.values()), ())
    numbers = _evaluate(graph, value)
    bounds = [_evaluate(graph.with_values(_moved(graph, side)), value).reshape(-1).astype(np.float64) for side in (-1, 1)]
    low, high = np.minimum(*bounds), np.maximum(*bounds)
    if any("sparse" in part.type for part in chain.values()):  # what was pruned had any value
        is_pruned = numbers.reshape(-1) == 0
        low[is_pruned], high[is_pruned] = -np.inf, np.inf
    return Stored(op=op, argument=argument, value=value, numbers=numbers, low=low, high=high)


def _gather(value: Value, expressions: Mapping[int, Op], chain: dict[int, Op]) -> None:
    """Add the expressions that ``value`` comes from to ``chain``, in the order of their execution."""
    op = expressions.get(id(value))
    if op is not None and id(op) not in chain:
        for part in op.input_values():
            _gather(part, expressions, chain)
        chain[id(op)] = op


def _moved(graph: Graph, side: int) -> dict[int, Value]:
    """The codes of a scale half a step to one side, and the entries of a palette halfway to their neighbours on that side."""
    others: dict[int, Value] = {}
    for op in graph.ops:
        for argument in op.inputs.keys() & {*_CODES, "lut"}:
            (value,) = op.argument(argument)
            if argument == "lut":
                table = value.data if isinstance(value.data, np.ndarray) else _evaluate(graph, value)
                others[id(value)] = Value(value.name, "float32", table.shape, data=_borders(table, side))
            elif isinstance(value.data, np.ndarray) and value.data.dtype.kind in "iu":
                others[id(value)] = Value(value.name, "float32", value.shape, data=value.data.astype(np.float32) + np.float32(side / 2))
    return others


def _borders(table: Array, side: int) -> Array:
    """The middle between each entry and the next one on ``side``; infinite at the end. iOS16 has one table, iOS18 (..., entries, 1)."""
    axis = 0 if table.ndim == 1 else table.ndim - 2
    order = np.argsort(table, axis=axis)
    entries = np.take_along_axis(table, order, axis).astype(np.float32)
    middles = (np.take(entries, range(1, entries.shape[axis]), axis) + np.take(entries, range(entries.shape[axis] - 1), axis)) / 2
    end = np.full_like(np.take(entries, [0], axis), side * np.inf)
    borders = np.empty_like(entries)
    np.put_along_axis(borders, order, np.concatenate([end, middles] if side < 0 else [middles, end], axis), axis)
    return borders


def _evaluate(graph: Graph, value: Value) -> Array:
    """A result of constant expressions in float32."""
    planner = Planner(graph, GeneralPolicy(numerics_named("fp32"), torch.device("cpu")))
    planner.plan()
    array: Array = planner.constants.tensor(value, torch.float32).numpy()
    return array
