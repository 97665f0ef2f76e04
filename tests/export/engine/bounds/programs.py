"""Random small programs of any ops with a transfer function, as graphs, and inputs at and within their bounds."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from coreflow.export.package.graph import Graph, Op, Value
from coreflow.models.arrays import Array

Shape = tuple[int, ...]
T = TypeVar("T")


def constant(data: object, dtype: str = "float16") -> Value:
    """A constant."""
    array = np.asarray(data, dtype)
    return Value("", array.dtype.name, array.shape, data=array)


def text(data: str) -> Value:
    return Value("", "string", (), data=data)


def whole(data: object) -> Value:
    return constant(data, "int32")


def flag(data: object) -> Value:
    return constant(data, "bool")


@dataclass
class Writer:
    """Draws one program.

    >>> graph, bounds = Writer(np.random.default_rng(0)).program()
    """

    random: np.random.Generator
    ops: list[Op] = field(default_factory=list)
    pool: list[Value] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def whole(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high + 1))

    def one(self, choices: Sequence[T]) -> T:
        return choices[self.whole(0, len(choices) - 1)]

    def shape(self, rank: int | None = None) -> Shape:
        return tuple(self.whole(1, 4) for _ in range(self.whole(1, 4) if rank is None else rank))

    def array(self, *shape: int, scale: float | None = None) -> Array:
        scale = self.one([0.01, 0.5, 1.0, 1.0, 4.0, 30.0]) if scale is None else scale
        return self.random.normal(0, scale, shape)

    def value(self, rank: int | None = None, least: int = 0) -> Value:
        """A value of the pool of this rank, or of at least ``least`` axes; a new constant where there is none."""
        fitting = [v for v in self.pool if v.shape is not None and (len(v.shape) == rank if rank is not None else len(v.shape) >= least)]
        return self.one(fitting) if fitting else constant(self.array(*self.shape(rank or max(least, 1))))

    def emit(
        self, kind: str, arguments: "dict[str, Value | tuple[Value, ...]]", *shapes: Shape, dtype: str = "float16"
    ) -> tuple[Value, ...]:
        outputs = tuple(Value(f"v{next(self.numbers)}", dtype, shape) for shape in shapes)
        self.ops.append(Op(kind, outputs[0].name, arguments, outputs))
        if dtype == "float16":
            self.pool.extend(outputs)
        return outputs

    def program(self, length: int | None = None, families: "list[str] | None" = None) -> tuple[Graph, dict[str, tuple[float, float]]]:
        """A graph whose outputs are all of its results, and the bounds of its inputs."""
        inputs, bounds = [], {}
        for number in range(self.whole(1, 2)):
            name, shape = f"x{number}", self.shape()
            inputs.append(Value(name, "float16", shape))
            bounds[name] = self.interval()
        self.pool = list(inputs)
        for _ in range(self.whole(2, 8) if length is None else length):
            FAMILIES[self.one(families or list(FAMILIES))](self)
        outputs = tuple(value for op in self.ops for value in op.outputs)
        return Graph("main", "CoreML8", tuple(inputs), outputs, tuple(self.ops), ()), bounds

    def interval(self) -> tuple[float, float]:
        scale = self.one([0.001, 1.0, 1.0, 10.0, 300.0])
        low, high = sorted(float(np.float16(number)) for number in self.random.normal(0, scale, 2))
        return self.one([(low, high), (-scale, scale), (0.0, scale), (scale, 2 * scale), (low, low)])


def samples(graph: Graph, bounds: dict[str, tuple[float, float]], random: np.random.Generator, count: int) -> Iterator[dict[str, Array]]:
    """Inputs at the ends of their bounds, at a mixture of both, within them, and near 0."""
    for number in range(count):
        inputs = {}
        for value in graph.inputs:
            low, high = bounds[value.name]
            shape = tuple(extent or 1 for extent in value.shape or ())
            inside = random.uniform(low, high, shape)
            ends = np.where(random.random(shape) < 0.5, low, high)
            spike = np.full(shape, np.clip(0.0, low, high))
            spike.flat[random.integers(spike.size)] = random.choice([low, high])
            inputs[value.name] = (inside, ends, spike, np.clip(inside * 1e-3, low, high))[number % 4].astype(np.float16)
            inputs[value.name] = np.clip(inputs[value.name], np.float16(low), np.float16(high))
        yield inputs


FAMILIES: dict[str, Callable[[Writer], object]] = {}


def family(function: Callable[[Writer], object]) -> Callable[[Writer], object]:
    FAMILIES[function.__name__] = function
    return function


def broadcast_partner(w: Writer, x: Value) -> Value:
    """Another value, or a constant, that is broadcast against ``x``; ``x`` itself at times."""
    shape = tuple(extent or 1 for extent in x.shape or ())
    if w.whole(0, 5) == 0:
        return x
    fitting = [v for v in w.pool if _fits(shape, v)]
    if fitting and w.whole(0, 2):
        return w.one(fitting)
    kept = w.whole(0, len(shape))
    other = tuple(extent if w.whole(0, 1) else 1 for extent in shape[len(shape) - kept :])
    return constant(w.array(*other))


def _fits(shape: Shape, value: Value) -> bool:
    try:
        np.broadcast_shapes(shape, value.shape)  # type: ignore[arg-type]
    except ValueError:
        return False
    return True


def shape_of(value: Value) -> Shape:
    return tuple(extent or 0 for extent in value.shape or ())


@family
def arithmetic(w: Writer) -> None:
    x = w.value()
    y = broadcast_partner(w, x)
    shape = np.broadcast_shapes(shape_of(x), shape_of(y))
    w.emit(w.one(["add", "add", "sub", "mul", "mul", "real_div", "maximum", "minimum"]), {"x": x, "y": y}, shape)


@family
def functions(w: Writer) -> None:
    x = w.value()
    kind = w.one(
        [
            "abs",
            "atan",
            "erf",
            "exp",
            "gelu",
            "relu",
            "relu6",
            "sigmoid",
            "sign",
            "silu",
            "softplus",
            "softsign",
            "square",
            "tanh",
            "sin",
            "cos",
            "floor",
            "ceil",
            "round",
        ]
    )
    extra = {"mode": text(w.one(["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"]))} if kind == "gelu" else {}
    w.emit(kind, {"x": x, **extra}, shape_of(x))


@family
def roots(w: Writer) -> None:
    (x,) = w.emit("abs", {"x": (value := w.value())}, shape_of(value))
    kind = w.one(["sqrt", "rsqrt", "inverse", "log"])
    extra = {} if kind == "sqrt" else {"epsilon": constant(w.one([1e-3, 0.1, 1.0]), "float32")}
    w.emit(kind, {"x": x, **extra}, shape_of(x))


@family
def norms(w: Writer) -> None:
    x = w.value()
    shape = shape_of(x)
    kind = w.one(["layer_norm", "softmax"])
    axis = w.whole(0, len(shape) - 1)
    if kind == "softmax":
        w.emit(kind, {"x": x, "axis": whole(axis)}, shape)
        return
    axes = [axis] if w.whole(0, 2) else sorted({axis, len(shape) - 1})
    parameters = [shape[axis] for axis in axes]
    extra = {name: constant(w.array(*parameters)) for name in ("gamma", "beta") if w.whole(0, 1)}
    w.emit(kind, {"x": x, "axes": whole(axes), "epsilon": constant(w.one([1e-5, 1e-3]), "float32"), **extra}, shape)


@family
def linear(w: Writer) -> None:
    x = w.value()
    shape, results = shape_of(x), w.whole(1, 6)
    bias = {"bias": constant(w.array(results))} if w.whole(0, 1) else {}
    w.emit("linear", {"x": x, "weight": constant(w.array(results, shape[-1])), **bias}, (*shape[:-1], results))


@family
def matmul(w: Writer) -> None:
    x = w.value(least=2)
    shape = shape_of(x)
    swap_x, swap_y = bool(w.whole(0, 1)), bool(w.whole(0, 1))
    rows, terms = shape[-2:][::-1] if swap_x else shape[-2:]
    fitting = [v for v in w.pool if len(shape_of(v)) > 1 and shape_of(v)[-1 if swap_y else -2] == terms and _fits(shape[:-2], _batch(v))]
    if fitting and w.whole(0, 3):
        y = w.one(fitting)
    else:
        columns = w.whole(1, 4)
        y = constant(w.array(*((columns, terms) if swap_y else (terms, columns))))
    columns = shape_of(y)[-2 if swap_y else -1]
    batch = np.broadcast_shapes(shape[:-2], shape_of(y)[:-2])
    w.emit("matmul", {"x": x, "y": y, "transpose_x": flag(swap_x), "transpose_y": flag(swap_y)}, (*batch, rows, columns))


def _batch(value: Value) -> Value:
    return Value("", "float16", shape_of(value)[:-2])


@family
def shapes(w: Writer) -> None:
    x = w.value()
    shape = shape_of(x)
    kind = w.one(["transpose", "expand_dims", "squeeze", "reshape", "reshape"])
    if kind == "transpose":
        order = w.random.permutation(len(shape)).tolist()
        w.emit(kind, {"x": x, "perm": whole(order)}, tuple(shape[axis] for axis in order))
    elif kind == "expand_dims" and len(shape) < 5:
        axis = w.whole(0, len(shape))
        w.emit(kind, {"x": x, "axes": whole([axis])}, (*shape[:axis], 1, *shape[axis:]))
    elif kind == "squeeze" and 1 in shape and len(shape) > 1:
        axis = shape.index(1)
        w.emit(kind, {"x": x, "axes": whole([axis])}, (*shape[:axis], *shape[axis + 1 :]))
    else:
        after = new_shape(w, math.prod(shape))
        w.emit("reshape", {"x": x, "shape": whole(after)}, after)


def new_shape(w: Writer, count: int) -> Shape:
    """Extents with a product of ``count``."""
    shape: list[int] = []
    while count > 1 and len(shape) < 3 and w.whole(0, 3):
        factor = w.one([factor for factor in range(1, count + 1) if count % factor == 0])
        shape.append(factor)
        count //= factor
    return (*shape, count)


@family
def parts(w: Writer) -> None:
    x = w.value()
    shape = shape_of(x)
    axis = w.whole(0, len(shape) - 1)
    extent = shape[axis]
    if w.whole(0, 1) and extent > 1:
        cut = w.whole(1, extent - 1)
        sizes = [cut, extent - cut]
        shapes = [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]
        w.emit("split", {"x": x, "split_sizes": whole(sizes), "axis": whole(axis)}, *shapes)
        return
    strides = [w.one([1, 1, 2, -1]) for _ in shape]
    ends = [sorted((w.whole(0, extent - 1), w.whole(1, extent))) for extent in shape]
    masks = [[bool(w.whole(0, 1)) or stride < 0 for stride in strides] for _ in range(2)]
    begin, end = [low for low, _ in ends], [max(high, low + 1) for low, high in ends]
    slices = [slice(None if masks[0][a] else begin[a], None if masks[1][a] else end[a], strides[a]) for a in range(len(shape))]
    result = np.zeros(shape)[tuple(slices)].shape
    names = {"begin": whole(begin), "end": whole(end), "stride": whole(strides), "begin_mask": flag(masks[0]), "end_mask": flag(masks[1])}
    w.emit("slice_by_index", {"x": x, **names}, result)


@family
def joins(w: Writer) -> None:
    x = w.value()
    shape = shape_of(x)
    axis = w.whole(0, len(shape) - 1)
    same = [
        v
        for v in w.pool
        if len(shape_of(v)) == len(shape) and all(a == b for i, (a, b) in enumerate(zip(shape, shape_of(v), strict=True)) if i != axis)
    ]
    values = (x, *(w.one(same) for _ in range(w.whole(0, 2)) if same))
    if w.whole(0, 3) == 0:
        values = (x,) * len(values)
        place = w.whole(0, len(shape))
        w.emit("stack", {"values": values, "axis": whole(place)}, (*shape[:place], len(values), *shape[place:]))
        return
    total = sum(shape_of(value)[axis] for value in values)
    w.emit("concat", {"values": values, "axis": whole(axis), "interleave": flag(False)}, (*shape[:axis], total, *shape[axis + 1 :]))


@family
def reductions(w: Writer) -> None:
    x = w.value()
    shape = shape_of(x)
    axes = sorted(set(w.random.integers(0, len(shape), w.whole(1, len(shape))).tolist()))
    keep = bool(w.whole(0, 1)) or len(axes) == len(shape)
    result = tuple(1 if a in axes else extent for a, extent in enumerate(shape) if keep or a not in axes)
    w.emit(w.one(["reduce_sum", "reduce_mean", "reduce_max", "reduce_min"]), {"x": x, "axes": whole(axes), "keep_dims": flag(keep)}, result)


@family
def choices(w: Writer) -> None:
    x = w.value()
    shape = shape_of(x)
    y = broadcast_partner(w, x)
    both = np.broadcast_shapes(shape, shape_of(y))
    (cond,) = w.emit(w.one(["less", "greater_equal", "equal", "not_equal"]), {"x": x, "y": y}, both, dtype="bool")
    w.emit("select", {"cond": cond, "a": x, "b": y}, both)


@family
def embeddings(w: Writer) -> None:
    rows, width = w.whole(1, 6), w.whole(1, 4)
    table = constant(w.array(rows, width))
    indices = whole(w.random.integers(0, rows, w.whole(1, 3)))
    w.emit("gather", {"x": table, "indices": indices, "axis": whole(0)}, (shape_of(indices)[0], width))


@family
def attention(w: Writer) -> None:
    """Layer norm, projections, heads, scores, softmax, means of values, heads joined, and the residual sum."""
    heads, size, length = w.whole(1, 3), w.whole(1, 3), w.whole(1, 4)
    width = heads * size
    fitting = [v for v in w.pool if len(shape_of(v)) == 3 and shape_of(v)[-1] == width]
    x = w.one(fitting) if fitting else constant(w.array(1, length, width))
    shape = shape_of(x)
    scale = w.one([0.3, 1.0, 3.0])
    parameters = {"gamma": constant(w.array(width, scale=1.0)), "beta": constant(w.array(width, scale=scale))}
    (normal,) = w.emit("layer_norm", {"x": x, "axes": whole([-1]), "epsilon": constant(1e-5, "float32"), **parameters}, shape)
    heads_of = []
    for _ in range(3):
        weight, bias = constant(w.array(width, width, scale=scale)), constant(w.array(width, scale=scale))
        (y,) = w.emit("linear", {"x": normal, "weight": weight, "bias": bias}, shape)
        split = (shape[0], shape[1], heads, size)
        (y,) = w.emit("reshape", {"x": y, "shape": whole(split)}, split)
        (y,) = w.emit("transpose", {"x": y, "perm": whole([0, 2, 1, 3])}, (shape[0], heads, shape[1], size))
        heads_of.append(y)
    query, key, value = heads_of
    square = (shape[0], heads, shape[1], shape[1])
    (scores,) = w.emit("matmul", {"x": query, "y": key, "transpose_x": flag(False), "transpose_y": flag(True)}, square)
    (weights,) = w.emit("softmax", {"x": scores, "axis": whole(-1)}, square)
    (mean,) = w.emit("matmul", {"x": weights, "y": value, "transpose_x": flag(False), "transpose_y": flag(False)}, shape_of(value))
    (mean,) = w.emit("transpose", {"x": mean, "perm": whole([0, 2, 1, 3])}, (shape[0], shape[1], heads, size))
    (mean,) = w.emit("reshape", {"x": mean, "shape": whole(shape)}, shape)
    (mean,) = w.emit("linear", {"x": mean, "weight": constant(w.array(width, width, scale=scale))}, shape)
    w.emit("add", {"x": x, "y": mean}, shape)
