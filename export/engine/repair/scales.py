"""Products whose small terms are not lost and whose sums stay in range: powers of two, folded into weights where that is exact."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from coreflow.export.engine.repair.facts import Facts, Magnitude
from coreflow.export.engine.repair.rewrite import Builder, Uses, argument, names_of, number, replace_ops
from coreflow.export.package.graph import Graph, Op, Value
from coreflow.models.arrays import Array

_STEP_ERROR = 2.0**-16 / math.sqrt(12)  # of a product that is rounded to a multiple of 2**-16
_LOST, _KEPT = 5e-4, 1e-4  # error of sums, relative to them: what is too much, and the goal; a rounding to fp16 makes 2e-4
_OVER, _BELOW = 2.0**15, 2.0**14  # where sums overflow, and where they are brought if they might
_ROOM = 2.0**13  # for what is made larger: data may be four times what was seen
_WEIGHTED = {"linear": "weight", "conv": "weight"}
# Of these, a factor of x is a factor of the result.
_HOMOGENEOUS = (
    "relu", "leaky_relu", "prelu", "abs", "reshape", "transpose", "expand_dims", "squeeze", "slice_by_index", "slice_by_size", "identity",
)  # fmt: skip


def scaled_products(graph: Graph, facts: Facts) -> Graph:
    """Linear layers, convolutions and products of matrices with operands scaled by a power of two, and their results by its inverse.

    Given::

        %h = relu(x=linear(x=%x, weight=W1, bias=b1))        # sums of 4096 products, of size 1/64
        %y = linear(x=%h, weight=W2, bias=b2)

    Result::

        %h = relu(x=linear(x=%x, weight=W1 * 256, bias=b1 * 256))
        %y = linear(x=%h, weight=W2 / 256, bias=b2)

    The engine rounds every product to a multiple of 2**-16 and drops small ones, whatever the size of the sum, and a sum of 2**15 is
    infinite (``runtime.lift.numerics.engine_products``, derived from published results). The factor goes into a weight before the product,
    or a norm's gamma, and out of one behind it, past ops that keep it, if every element stays exact in fp16; else it is a product of its
    own. Factors are chosen from values that were seen; without them nothing is done.
    """
    work = _Work(graph, dict(facts.magnitudes))
    # From the end: a weight that is scaled up for its own sake can then take the inverse factor of the layer before it.
    for name in [op.name for op in reversed(graph.ops) if op.type in (*_WEIGHTED, "matmul")] if facts.magnitudes else ():
        work.scale(name)
    return work.graph


@dataclass
class _Work:
    """A graph while its products are scaled, and the magnitudes of its values, new ones included."""

    graph: Graph
    known: dict[str, Magnitude]
    _uses: Uses = field(init=False)
    _ops: dict[str, Op] = field(init=False)

    def __post_init__(self) -> None:
        self._uses, self._ops = Uses(self.graph), {op.name: op for op in self.graph.ops}

    def scale(self, name: str) -> None:
        """Scale one product, if its values ask for it."""
        op = self._ops[name]
        if (factor := self._factor(op)) == 1.0:
            return
        edit = _Edit(self, Builder(op.name, names_of(self.graph)))
        if edit.scale(op, factor):
            self.graph = replace_ops(self.graph, edit.ops, edit.new.constants)
            self.__post_init__()

    @property
    def uses(self) -> Uses:
        """Of the graph as it is now."""
        return self._uses

    def largest_sum(self, op: Op) -> float | None:
        """A bound of the sums of magnitudes of an op's products, by the lengths of their operands; None where one is not known."""
        lengths = [self._length(value, axes) for value, axes in _rows(op)]
        if len(lengths) != 2 or lengths[0] is None or lengths[1] is None:
            return None
        kernel = _kernel(op)
        bias = argument(op, "bias")
        start = float(np.abs(bias.data).max()) if bias is not None and isinstance(bias.data, np.ndarray) and bias.data.size else 0.0
        return lengths[0] * math.sqrt(kernel) * lengths[1] + start

    def _factor(self, op: Op) -> float:
        seen, terms = self.known.get(op.outputs[0].name), _terms(op)
        largest = self.largest_sum(op)
        if seen is None or largest is None or not 0 < largest < math.inf or not 0 < seen.rms < math.inf or op.outputs[0].dtype != "float16":
            return 1.0
        error = _STEP_ERROR * math.sqrt(terms) / seen.rms
        if largest >= _OVER:
            factor = _power(_BELOW / largest)
            return factor if error / factor <= _LOST or seen.largest >= _BELOW else 1.0
        return max(1.0, min(2 * _power(error / _KEPT), _power(_ROOM / largest))) if error > _LOST else 1.0

    def _length(self, value: Value | None, axes: tuple[int, ...]) -> float | None:
        """The largest length of a row along ``axes``."""
        if value is None:
            return None
        if isinstance(value.data, np.ndarray):
            return float(np.sqrt(np.square(value.data, dtype=np.float64).sum(axes).max(initial=0.0)))
        seen = self.known.get(value.name)
        return None if seen is None or len(axes) != 1 or len(seen.norms) < 2 else seen.norms[axes[0]]


@dataclass
class _Edit:
    """The ops that scale one product."""

    work: _Work
    new: Builder
    ops: dict[int, list[Op]] = field(default_factory=dict)

    def scale(self, op: Op, factor: float) -> bool:
        """Enter the ops that take the place of others; False where the factor has no place."""
        inputs = self._with_factor(op, factor)
        if inputs is None:
            return False
        before = self.new.ops[:]
        (result,) = op.outputs
        scaled = self._renamed(result, factor)
        if (end := self._way_out(op, result, factor)) is not None:
            self._rename(end, {id(result): scaled}, factor)
            behind: list[Op] = []
        else:
            self.new("mul", x=scaled, y=1 / factor, gives=result)
            behind = self.new.ops[len(before) :]
            behind = [replace(behind[0], name=f"{op.name}_unscaled")]
        self.ops[id(op)] = [*before, replace(op, inputs=inputs, outputs=(scaled,)), *behind]
        return True

    def _with_factor(self, op: Op, factor: float) -> dict[str, Value | tuple[Value, ...]] | None:
        """The arguments of ``op`` with the factor in one of them."""
        weight = argument(op, _WEIGHTED.get(op.type, "y"))
        if (own := self._times(op, _WEIGHTED.get(op.type, "y"), factor)) is not None:
            return {**op.inputs, **own}
        further: dict[str, Value] = {}
        if op.type in _WEIGHTED and (bias := argument(op, "bias")) is not None:
            if (data := scaled_exactly(bias, factor)) is None:
                return None
            further = {"bias": self.new.constant("bias_scaled", data, bias.dtype)}
        if weight is None:
            return None
        operands = [value for name in ("y", "x") if (value := argument(op, name)) is not None and value.data is None]
        for operand in operands:
            if (way := self._way_in(op, operand, factor)) is not None:
                exchanged = self._scale_origin(way, factor)
                return {name: exchanged.get(id(value), value) for name, value in op.inputs.items()} | further
        if not operands:
            return None
        smallest = min(operands, key=lambda value: math.prod(extent or 1 for extent in value.shape or ()))
        scaled = self.new("mul", x=smallest, y=factor)
        return {name: scaled if value is smallest else value for name, value in op.inputs.items()} | further

    def _way_in(self, op: Op, value: Value, factor: float) -> list[Op] | None:
        """The op whose weight takes the factor, and those between it and ``op``; None where there is none."""
        way: list[Op] = []
        while self.work.uses.only_reader(value) is op and (maker := self.work.uses.maker(value)) is not None and len(maker.outputs) == 1:
            way.insert(0, maker)
            if maker.type in _HOMOGENEOUS and (source := argument(maker, "x")) is not None and source.data is None:
                op, value = maker, source
                continue
            return way if self._takes(maker, factor) else None
        return None

    def _takes(self, op: Op, factor: float) -> bool:
        """Whether the weight of ``op``, or its gamma, may be multiplied."""
        seen = self.work.known.get(op.outputs[0].name)
        if op.type == "layer_norm":
            return seen is not None and seen.largest * factor <= _ROOM and "gamma" in op.inputs and self._exact(op, "gamma", "beta", factor)
        largest = self.work.largest_sum(op) if op.type in _WEIGHTED else None
        return largest is not None and largest * factor <= _ROOM and self._exact(op, "weight", "bias", factor)

    def _exact(self, op: Op, name: str, further: str, factor: float) -> bool:
        return all(scaled_exactly(argument(op, key), factor) is not None for key in (name, further) if key in op.inputs)

    def _scale_origin(self, way: list[Op], factor: float) -> dict[int, Value]:
        """Scale the weight of the first op of ``way``, and rename what follows; the new values by id of the old."""
        first, *between = way
        changed = self._times(first, "gamma" if first.type == "layer_norm" else "weight", factor)
        assert changed is not None, "the way was found by it"
        exchanged = {id(first.outputs[0]): self._renamed(first.outputs[0], factor)}
        self.ops[id(first)] = [replace(first, inputs={**first.inputs, **changed}, outputs=(exchanged[id(first.outputs[0])],))]
        for op in between:
            exchanged[id(op.outputs[0])] = self._renamed(op.outputs[0], factor)
            self.ops[id(op)] = [_exchanged(op, exchanged)]
        return exchanged

    def _way_out(self, op: Op, value: Value, factor: float) -> list[Op] | None:
        """The ops behind ``op`` up to the one whose weight takes the inverse factor; None where there is none."""
        way: list[Op] = []
        while (reader := self.work.uses.only_reader(value)) is not None:
            way.append(reader)
            if reader.type in _HOMOGENEOUS and argument(reader, "x") is value and len(reader.outputs) == 1:
                value = reader.outputs[0]
                continue
            name = _counterpart(reader, value)
            return way if name is not None and scaled_exactly(argument(reader, name), 1 / factor) is not None else None
        return None

    def _rename(self, way: list[Op], exchanged: dict[int, Value], factor: float) -> None:
        """Rename the values along ``way``, and divide the weight of its last op."""
        *between, last = way
        for op in between:
            exchanged[id(op.outputs[0])] = self._renamed(op.outputs[0], factor)
            self.ops[id(op)] = [_exchanged(op, exchanged)]
        weight = argument(last, _counterpart(last, self._read(last, exchanged)) or "")
        data = scaled_exactly(weight, 1 / factor)
        assert weight is not None and data is not None, "the way was found by it"
        exchanged[id(weight)] = self.new.constant("unscaled", data, weight.dtype)
        self.ops[id(last)] = [replace(last, inputs=_exchanged(last, exchanged).inputs)]

    def _read(self, op: Op, exchanged: dict[int, Value]) -> Value:
        return next(value for value in op.input_values() if id(value) in exchanged)

    def _times(self, op: Op, name: str, factor: float) -> dict[str, Value] | None:
        """The argument ``name``, and what is added to its products, multiplied; None where that is not exact."""
        changed: dict[str, Value] = {}
        for key in (name, {"weight": "bias", "gamma": "beta"}.get(name, "")):
            if key not in op.inputs:
                continue
            value = argument(op, key)
            data = scaled_exactly(value, factor)
            if value is None or data is None:
                return None
            changed[key] = self.new.constant(f"{key}_scaled", data, value.dtype)
        return changed or None

    def _renamed(self, value: Value, factor: float) -> Value:
        """A value for ``value`` times the factor."""
        name = self.new.free(f"{value.name}_scaled")
        if (seen := self.work.known.get(value.name)) is not None:
            norms = tuple(norm * factor for norm in seen.norms)
            self.work.known[name] = Magnitude(seen.largest * factor, seen.rms * factor, norms)
        return replace(value, name=name)


def scaled_exactly(value: Value | None, factor: float) -> Array | None:
    """The elements of a constant times a power of two; None where one of them would be rounded, or leave the type."""
    data = None if value is None else value.data
    if not isinstance(data, np.ndarray) or data.dtype.kind != "f":
        return None
    with np.errstate(over="ignore", under="ignore"):
        scaled = (data.astype(np.float64) * factor).astype(data.dtype)
    return scaled if bool((scaled.astype(np.float64) / factor == data).all()) else None


def _power(ratio: float) -> float:
    """The largest power of two that is not above ``ratio``."""
    return 2.0 ** math.floor(math.log2(ratio))


def _exchanged(op: Op, others: dict[int, Value]) -> Op:
    inputs = {
        name: tuple(others.get(id(item), item) for item in value) if isinstance(value, tuple) else others.get(id(value), value)
        for name, value in op.inputs.items()
    }
    return replace(op, inputs=inputs, outputs=tuple(others.get(id(value), value) for value in op.outputs))


def _counterpart(op: Op, value: Value) -> str | None:
    """The argument whose elements multiply those of ``value``."""
    if op.type in _WEIGHTED:
        return _WEIGHTED[op.type] if argument(op, "x") is value else None
    if op.type not in ("matmul", "mul"):
        return None
    return "y" if argument(op, "x") is value else "x"


def _rows(op: Op) -> Iterator[tuple[Value | None, tuple[int, ...]]]:
    """The operands of a product, and the axes that it sums over."""
    x, weight = argument(op, "x"), argument(op, _WEIGHTED.get(op.type, "y"))
    if op.type == "linear":
        yield from ((x, (-1,)), (weight, (-1,)))
    elif op.type == "conv":
        yield from ((x, (1,)), (weight, tuple(range(1, len(weight.shape or ()) if weight is not None else 1))))
    else:
        yield x, (-2 if number(op.inputs.get("transpose_x")) else -1,)
        yield weight, (-1 if number(op.inputs.get("transpose_y")) else -2,)


def _terms(op: Op) -> int:
    value, axes = list(_rows(op))[1]
    shape = (value.shape if value is not None else None) or ()
    return math.prod((shape[axis] or 1) for axis in axes if -len(shape) <= axis < len(shape))


def _kernel(op: Op) -> int:
    weight = argument(op, "weight")
    return math.prod((extent or 1) for extent in (weight.shape or ())[2:]) if op.type == "conv" and weight is not None else 1
