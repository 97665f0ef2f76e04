"""The order of ops: what only the CPU takes, and needs nothing of the engine, comes first."""

from dataclasses import replace

from coreflow.export.engine.features import features_of
from coreflow.export.engine.repair.facts import Facts
from coreflow.export.engine.support import support
from coreflow.export.package.graph import Graph, Op

_STATE_OPS = ("read_state", "write_state", "coreml_update_state")


def cpu_ops_first(graph: Graph, facts: Facts) -> Graph:
    """Look-ups before the ops that the engine takes.

    Given::

        %hidden = (1 - %mask) * -3e4
        %x = gather(x=%table, indices=%ids)
        %y = softmax(x=%x + %hidden)

    Result::

        %x = gather(x=%table, indices=%ids)
        %hidden = (1 - %mask) * -3e4
        %y = softmax(x=%x + %hidden)

    The planner takes the ops in their order, and every change of the device costs (751K; measured on an M4): what stands before a look-up
    runs on the CPU with it. Ops that read nothing but inputs, constants and one another may stand anywhere; no op is changed.
    """
    first = _independent(graph, facts)
    read = {id(value) for op in first for value in op.input_values()}
    moved = {id(op) for op in first} | {id(op) for op in graph.ops if any(id(value) in read for value in op.outputs)}
    ops = tuple(sorted(graph.ops, key=lambda op: id(op) not in moved))  # stable
    return graph if all(one is other for one, other in zip(ops, graph.ops, strict=True)) else replace(graph, ops=ops)


def _independent(graph: Graph, facts: Facts) -> list[Op]:
    """Ops that the engine does not take and that read inputs, constants and one another alone."""
    refused = {id(op) for op, features in features_of(graph) if not support(features, facts.target).engine}
    behind: set[int] = set()  # values that need an op which stays where it is
    first: list[Op] = []
    for op in graph.ops:
        is_free = not op.blocks and op.type not in _STATE_OPS and not any(id(value) in behind for value in op.input_values())
        if is_free and id(op) in refused:
            first.append(op)
        elif not op.type.startswith("constexpr_"):
            behind |= {id(value) for value in op.outputs}
    return first
