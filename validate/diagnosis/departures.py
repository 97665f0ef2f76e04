"""The ops at which a saved program with unrounded weights leaves a fresh conversion of its module."""

import math
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import replace

from torch import nn

from coreflow.export.package.graph import Graph, Op
from coreflow.models.arrays import Arrays
from coreflow.validate.diagnosis.matching import Matcher, match_for, match_ops
from coreflow.validate.diagnosis.results import Execution, Likeness, find_likenesses
from coreflow.validate.diagnosis.tracing import trace_values
from coreflow.validate.diagnosis.translation import DataFlow, first_culprits
from coreflow.validate.ladder.ladder import Ladder
from coreflow.validate.report.model import Culprit

# How near results have to be, as a share of what the outputs are off by: a fault that amplifies further on may be small before. Two
# programs of one converter agree to 1e-14, and to 1e-7 where one of them has folded fp32 weights that the other has not.
_SHARE, _LEAST, _MOST = 1e-3, 1e-9, 1e-7
# The same for results that depend on a constant which has no unrounded weight, and is off by a rounding at least.
_ROUNDED_SHARE, _ROUNDED = 1 / 8, 1e-3


def find_departures(ladder: Ladder, module: nn.Module, inputs: Arrays, ratio: float, error: float) -> tuple[Culprit, ...]:
    """The ops whose results are wrong, though what they read is right; those that read a constant of their own come first.

    ``ratio`` is how far the program's outputs are off in budgets, ``error`` relative to them.
    """
    assert ladder.pairing is not None
    fresh = _fresh_execution(ladder, inputs)
    traced = trace_values(module, inputs)
    model = ladder.open_unrounded()
    saved, graph = Execution.of(model, inputs), model.interpreter.graph
    tolerances = _tolerances(saved.ops, ladder.pairing.unknown, error)
    likenesses = find_likenesses(saved, fresh, tolerances)
    matches = match_ops(saved.ops, saved.fingerprints, Matcher(traced, match_for(error)))
    of_torch = match_ops(saved.ops, saved.fingerprints, Matcher(traced, min(tolerances, default=_LEAST))) if fresh.ops else matches
    flow, last = DataFlow.of(saved.ops), _last(graph, saved.ops)
    right = {place for place in _right(likenesses, last, of_torch.values.keys()) if saved.ops[place].outputs}  # writes give nothing
    lost = _lost(flow, last, right)
    texts = {
        op.name: f"its constant {constant} is no weight of the reference, and its result is not what the reference has there"
        for op, constant in _readers(ladder.pairing.unknown, saved.ops)
    }
    texts |= {weight.op: weight.text for weight in ladder.pairing.altered}
    culprits = [
        replace(culprit, kind="weights", text=texts[culprit.name]) if culprit.name in texts else culprit
        for culprit in first_culprits(graph, saved.ops, flow, lost, matches, traced, ratio)
    ]
    named = {culprit.name for culprit in culprits}
    culprits += [
        Culprit(kind="weights", name=weight.op, type=weight.op_type, ratio=ratio, text=weight.text)
        for weight in ladder.pairing.altered
        if weight.op not in named
    ]
    return tuple(sorted(culprits, key=lambda culprit: culprit.kind != "weights"))


def _fresh_execution(ladder: Ladder, inputs: Arrays) -> Execution:
    """R2 on one sample; without ops where there is none, or where it takes another shape."""
    if ladder.program_fp32 is not None:
        model = ladder.open_fp32()
        if [array.shape for array in inputs.values()] == [spec.shape for spec in model.inputs.values()]:
            return Execution.of(model, dict(zip(model.inputs, inputs.values(), strict=True)))
    return Execution(inputs=(), ops=(), results=())


def _last(graph: Graph, ops: Sequence[Op]) -> set[int]:
    """The places of the ops that give the program's outputs."""
    outputs = {id(value) for value in graph.outputs}
    return {place for place, op in enumerate(ops) if any(id(value) in outputs for value in op.outputs)}


def _right(likenesses: Sequence[Likeness], last: Set[int], of_torch: Set[int]) -> set[int]:
    """The places of the ops whose results are right; ``of_torch`` are those whose numbers torch has, in whatever order.

    Numbers that the fresh conversion lacks are right if torch has them: one of the two programs may be fused further than the other.
    Numbers that it has in another order are wrong, unless most are, up to the outputs, as in a program that another converter has laid
    out.
    """
    has_other_layout = likenesses.count("reordered") > likenesses.count("same") and all(likenesses[place] != "reordered" for place in last)
    if has_other_layout:
        return {place for place, likeness in enumerate(likenesses) if likeness != "unknown" or place in of_torch}
    return {place for place, likeness in enumerate(likenesses) if likeness == "same" or (likeness == "unknown" and place in of_torch)}


def _lost(flow: DataFlow, last: Set[int], right: Set[int]) -> set[int]:
    """The places of the ops whose wrong results reach an output by wrong results alone; others are another way to compute the same."""
    lost = set[int]()
    for place in range(len(flow.readers) - 1, -1, -1):
        is_end = place in last or not flow.readers[place]
        if place not in right and (is_end or any(reader in lost for reader in flow.readers[place])):
            lost.add(place)
    return lost


def _readers(constants: Collection[str], ops: Sequence[Op]) -> Iterator[tuple[Op, str]]:
    """The ops that read some of these ``constants``, each with the first of them; one without a name has that of its op."""
    for op in ops:
        name = next((value.name or op.name for value in op.reads() if (value.name or op.name) in constants), None)
        if name is not None:
            yield op, name


def _tolerances(ops: Sequence[Op], constants: Collection[str], error: float) -> list[float]:
    """By op, how near its results have to be; those that depend on some of these ``constants`` may be off by roundings."""
    error = error if error > 0 else math.inf  # NaN, too
    strict = min(_MOST, max(_LEAST, _SHARE * error))
    readers = {id(op) for op, _ in _readers(constants, ops)}
    dependent: set[int] = set()
    tolerances = []
    for op in ops:
        depends = any(id(value) in dependent for value in op.reads())
        tolerances.append(_ROUNDED if id(op) in readers else min(_ROUNDED, _ROUNDED_SHARE * error) if depends else strict)
        if depends or id(op) in readers:
            dependent.update(map(id, op.outputs))
    return tolerances
