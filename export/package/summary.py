"""A package in figures: operations, weights, parameters, multiply-adds. Nothing is executed."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coreflow.export.package.graph import Graph, Interface, Metadata, Op, Program, Value
from coreflow.export.package.mlpackage import package_files
from coreflow.export.package.op_counts import count_elements
from coreflow.export.package.op_facts import facts_of
from coreflow.export.package.weights import BLOB_DTYPES, is_mapped, packed_bytes
from coreflow.models.arrays import Array


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """Weights of one element type, stored in one way; ``compression`` names the constant expressions, and is empty for plain weights.

    >>> for group in weight_groups(graph):
    ...     print(group.dtype, group.compression or "plain", group.parameters, group.stored_bytes)
    """

    dtype: str
    compression: str
    tensors: int
    parameters: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One weight: the name of its constant, or of the constant expression that makes it, and how it is stored.

    >>> [weight.name for weight in stored_weights(graph) if weight.saves_nothing]
    """

    name: str
    dtype: str
    compression: str  # empty for a plain one
    parameters: int
    stored_bytes: int

    @property
    def plain_bytes(self) -> int:
        """Bytes that it would take uncompressed; 0 where its element type has no such form."""
        return packed_bytes(self.dtype, self.parameters) if self.dtype in BLOB_DTYPES else 0

    @property
    def saves_nothing(self) -> bool:
        """Whether it is compressed and takes as many bytes as it would plain, or more."""
        return bool(self.compression) and 0 < self.plain_bytes <= self.stored_bytes


@dataclass(frozen=True, slots=True)
class MultiplyAdds:
    """Multiply-adds of one prediction.

    >>> count_multiply_adds(graph).by_op

    Counted are contractions; every other op has none. The blocks of control flow count once. ``open`` names ops whose shapes are unknown
    before a prediction, which are not in the figures.
    """

    total: int
    by_op: Mapping[str, int]
    open: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one function of a package.

    >>> summary = summarize(read_program("encoder.mlpackage"))
    >>> summary.parameters, summary.ops, summary.multiply_adds.total
    """

    program: Program
    function: str
    interface: Interface
    opset: str
    ops: Mapping[str, int]  # most frequent first; constants are no ops
    weights: tuple[WeightGroup, ...]
    multiply_adds: MultiplyAdds
    size_bytes: int  # of the whole package on disk

    @property
    def parameters(self) -> int:
        """Elements of all weights, compressed ones as many as they stand for."""
        return sum(group.parameters for group in self.weights)

    @property
    def metadata(self) -> Metadata:
        """The descriptive entries of the package."""
        return self.program.metadata


def summarize(program: Program, function_name: str | None = None) -> Summary:
    """The figures of one function, the default one for None."""
    graph, interface = program.function(function_name)
    counts = Counter(op.type for op in graph.walk())
    return Summary(
        program=program,
        function=graph.name,
        interface=interface,
        opset=graph.opset,
        ops=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        weights=weight_groups(graph),
        multiply_adds=count_multiply_adds(graph),
        size_bytes=sum(file.stat().st_size for file in package_files(program.path)),
    )


def weight_groups(graph: Graph) -> tuple[WeightGroup, ...]:
    """The weights of a function by element type and compression, largest group first.

    A weight is a float constant with an axis, or any constant in the weight file; shapes, axes and the like are none. A chain of constant
    expressions is one weight: the result of its last one, in as many bytes as all of them read.
    """
    by_storage: dict[tuple[str, str], list[StoredWeight]] = {}
    for weight in stored_weights(graph):
        by_storage.setdefault((weight.dtype, weight.compression), []).append(weight)
    groups = (
        WeightGroup(
            dtype, kinds, len(weights), sum(weight.parameters for weight in weights), sum(weight.stored_bytes for weight in weights)
        )
        for (dtype, kinds), weights in by_storage.items()
    )
    return tuple(sorted(groups, key=lambda group: (-group.stored_bytes, group.dtype, group.compression)))


def stored_weights(graph: Graph) -> Iterator[StoredWeight]:
    """Every weight, compressed ones first."""
    chains = _constant_chains(graph)
    for chain in chains:
        yield _compressed_weight(chain)
    parts = {id(value) for chain in chains for op in chain for value in op.input_values()}
    for value in _constants(graph):
        if isinstance(value.data, np.ndarray) and id(value) not in parts and _is_weight(value.data):
            yield StoredWeight(value.name, value.dtype, "", value.data.size, _stored_bytes(value))


def count_multiply_adds(graph: Graph) -> MultiplyAdds:
    """The multiply-adds that one prediction takes, from the shapes that the package declares."""
    by_op: Counter[str] = Counter()
    unknown = []
    for op in graph.walk():
        if (count_of := facts_of(op.type).multiply_adds) is not None:
            count = count_of(op)
            if count is None:
                unknown.append(op.name)
            else:
                by_op[op.type] += count
    return MultiplyAdds(by_op.total(), dict(by_op.most_common()), tuple(unknown))


def _constants(graph: Graph) -> Iterator[Value]:
    yield from graph.constants
    for op in graph.ops:
        yield from (value for value in op.input_values() if value.data is not None and not value.name)
        for block in op.blocks:
            yield from _constants(block)


def _is_weight(data: Array) -> bool:
    """Whether a constant is a weight, and not a shape, an axis or the like."""
    return is_mapped(data) or (data.dtype.kind == "f" and data.ndim > 0)


def _constant_chains(graph: Graph) -> list[tuple[Op, ...]]:
    """The constant expressions behind each compressed weight, in execution order; the last one gives the weight."""
    producers = {id(output): op for op in graph.walk() if op.type.startswith("constexpr_") for output in op.outputs}
    expressions = list(dict.fromkeys(producers.values()))
    inner = {id(producers[id(value)]) for op in expressions for value in op.input_values() if id(value) in producers}
    return [tuple(_chain(op, producers)) for op in expressions if id(op) not in inner]


def _chain(op: Op, producers: Mapping[int, Op]) -> Iterator[Op]:
    """The constant expressions that ``op`` reads, directly or not, and then itself."""
    for value in op.input_values():
        if id(value) in producers:
            yield from _chain(producers[id(value)], producers)
    yield op


def _compressed_weight(chain: Sequence[Op]) -> StoredWeight:
    """The result of the last op of a chain, in as many bytes as all of them read."""
    dense = chain[-1].outputs[-1]
    kinds = dict.fromkeys(f"{op.type.removeprefix('constexpr_')}{_bits(op)}" for op in chain)
    parts = {id(value): value for op in chain for value in op.input_values()}
    stored_bytes = sum(_stored_bytes(value) for value in parts.values())
    return StoredWeight(chain[-1].name, dense.dtype, " + ".join(kinds), count_elements(dense.shape) or 0, stored_bytes)


def _bits(op: Op) -> str:
    """`` 4-bit`` for a palette or a quantised weight of that width."""
    for name in ("lut", "quantized_data", "data", "nonzero_data"):
        value = op.inputs.get(name)
        if isinstance(value, Value) and value.shape is not None and value.data is not None:
            if name == "lut":
                entries = value.shape[-2] if len(value.shape) > 1 else value.shape[0]
                return f" {(int(entries or 1) - 1).bit_length()}-bit"
            if value.dtype in BLOB_DTYPES and not value.dtype.startswith("float"):
                return f" {BLOB_DTYPES[value.dtype][1]}-bit"
    return ""


def _stored_bytes(value: Value) -> int:
    if not isinstance(value.data, np.ndarray):
        return 0
    return packed_bytes(value.dtype, value.data.size) if value.dtype in BLOB_DTYPES else value.data.nbytes
