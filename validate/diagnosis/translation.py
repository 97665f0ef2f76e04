"""The ops at which a program leaves torch: their inputs are torch's, their results are not."""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from coreflow.export.package.graph import Graph, Op
from coreflow.export.package.op_facts import facts_of
from coreflow.validate.diagnosis.matching import Matches
from coreflow.validate.diagnosis.tracing import TracedValue
from coreflow.validate.report.model import Culprit

# Operations of torch that compute nothing new.
_MOVING = (
    *("_reshape_alias", "_unsafe_view", "_to_copy", "alias", "clone", "copy_", "detach", "expand", "permute", "repeat", "select", "slice"),
    *("squeeze", "t", "transpose", "unsqueeze", "view"),
)


_WRITE = "write_state"  # replaces a whole state, and gives nothing


@dataclass(frozen=True, slots=True)
class DataFlow:
    """For every op, by its place: the places of the ops whose results it reads, and of those that read its results.

    >>> DataFlow.of(graph.ops).readers[0]
    (1, 2)
    """

    sources: tuple[tuple[int, ...], ...]
    readers: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(ops: Sequence[Op]) -> "DataFlow":
        """The data flow among ``ops``, in the order of execution."""
        producers: dict[int, int] = {}  # of a state it is the op that wrote to it last
        sources = []
        for place, op in enumerate(ops):
            read = tuple(value for value in op.input_values() if id(value) in producers)
            sources.append(tuple(producers[id(value)] for value in read if not (op.type == _WRITE and value.kind == "state")))
            written = tuple(value for value in op.input_values() if op.type == _WRITE and value.kind == "state")
            producers |= {id(value): place for value in (*op.outputs, *written)}
        readers: tuple[list[int], ...] = tuple([] for _ in ops)
        for place, places in enumerate(sources):
            for source in places:
                readers[source].append(place)
        return DataFlow(tuple(sources), tuple(map(tuple, readers)))


def find_translation_errors(
    graph: Graph, ops: Sequence[Op], matches: Matches, traced: Sequence[TracedValue], ratio: float
) -> tuple[Culprit, ...]:
    """The ops at which a program leaves torch: what they read matches torch, their results do not, and nothing after them does any more.

    An op whose result torch does not have, but some later one does, is another way to compute the same. ``ratio`` is how far the
    program's outputs are off, in budgets.
    """
    flow = DataFlow.of(ops)
    lost: set[int] = set()
    for place in range(len(ops) - 1, -1, -1):
        if place not in matches.values and all(reader in lost for reader in flow.readers[place]):
            lost.add(place)
    return tuple(first_culprits(graph, ops, flow, lost, matches, traced, ratio))


def first_culprits(
    graph: Graph, ops: Sequence[Op], flow: DataFlow, lost: Collection[int], matches: Matches, traced: Sequence[TracedValue], ratio: float
) -> Iterator[Culprit]:
    """The ops among the ``lost`` that read nothing lost, with what torch computes there."""
    used = {value.index for value in matches.values.values()}
    for place in sorted(lost):
        sources = flow.sources[place]
        if any(source in lost for source in sources):
            continue
        before = max((matches.values[source].index for source in sources if source in matches.values), default=-1)
        unused = (value for value in traced[before + 1 :] if value.index not in used)
        yield _culprit(ops[place], matches.values.get(place) or _expected_value(ops[place], graph, unused), ratio)


def _expected_value(op: Op, graph: Graph, candidates: Iterable[TracedValue]) -> TracedValue | None:
    """The first value of torch that may have been meant: one of the same size, computed by torch if the op computes."""
    size = math.prod(extent or 1 for extent in op.outputs[0].shape or ()) if op.outputs else 0
    alike = (value for value in candidates if value.fingerprint.count == size)
    return next((value for value in alike if _computes(value) or facts_of(op.type).rounds_nothing), None)


def _culprit(op: Op, expected: TracedValue | None, ratio: float) -> Culprit:
    instead = f"; torch computes {expected.origin.operation} there" if expected is not None else ""
    return Culprit(
        kind="translation",
        name=op.name,
        type=op.type,
        ratio=ratio,
        text=f"what it reads is what torch has there, its result is not{instead}",
        origin=None if expected is None else expected.origin,
    )


def _computes(value: TracedValue) -> bool:
    """Whether the torch operation makes new values; a program may move them in other ways."""
    return value.origin.operation.split(".")[1] not in _MOVING
