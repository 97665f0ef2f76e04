"""The lines of a module from which the ops of a converted program come."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import jit
from torch.export import ExportedProgram

from coreflow.export.capture.places import Place, place_in
from coreflow.export.targets.failures import CALL, FRAME, kind_of

Origins = Mapping[str, Place]  # by name of an op


def origins(program: jit.ScriptModule | ExportedProgram, converted: Any) -> Origins:
    """The place of every op of a converted program (the converter's own form of it) that is known to come from one line.

    >>> str(origins(traced, model._mil_program)["softplus_0"])
    'model.py:12 (encoder.layers.3)'

    The converter notes the stack of an exported program beside each op. Of a trace it notes the name of the value, which the trace has too
    unless it is a number: numbers are counted anew, and are told by their order among operations of one kind, where there are as many.
    """
    ops = [op for function in converted.functions.values() for op in _walk(function)]
    if isinstance(program, ExportedProgram):
        return {op.name: place for op in ops if (place := _by_stack(op)) is not None}
    lines = _lines_of_values(program, [scope for op in ops if (scope := _scope(op)) is not None])
    return {op.name: place for op in ops if (place := _by_scope(op, lines)) is not None}


def _walk(block: Any) -> Iterator[Any]:
    for op in block.operations:
        if op.op_type != "const":
            yield op
            for inner in op.blocks:
                yield from _walk(inner)


def _note(op: Any, source: str) -> list[Any]:
    return next((list(notes) for name, notes in op.scopes.items() if name.name == source), [])


def _by_stack(op: Any) -> Place | None:
    stack = next((str(note) for note in _note(op, "EXIR_STACK_TRACE") if note), "")
    return place_in([(file, int(line)) for file, line in reversed(FRAME.findall(stack))], "")


def _scope(op: Any) -> tuple[str, str, str] | None:
    """Path of the module, name of the value, and kind of the operation, as the converter notes them of a trace."""
    names, kinds = _note(op, "TORCHSCRIPT_MODULE_NAME"), _note(op, "TORCHSCRIPT_MODULE_TYPE")
    return (".".join(names[:-1]), str(names[-1]), str(kinds[-1])) if names and kinds else None


def _by_scope(op: Any, lines: Mapping[tuple[str, str], Sequence[tuple[str, int]]]) -> Place | None:
    scope = _scope(op)
    return None if scope is None else place_in(lines.get(scope[1:], ()), scope[0])


def _lines_of_values(traced: jit.ScriptModule, scopes: Sequence[tuple[str, str, str]]) -> dict[tuple[str, str], Sequence[tuple[str, int]]]:
    """By name and kind of the value: the lines that were at work, innermost first."""
    inlined = traced.inlined_graph  # which its nodes do not keep alive
    nodes: dict[str, dict[str, Sequence[tuple[str, int]]]] = {}
    for node in inlined.nodes():
        calls = [(file, int(line)) for file, line in CALL.findall(str(node.sourceRange()))]
        for output in node.outputs():
            nodes.setdefault(kind_of(node.kind()), {})[output.debugName()] = calls
    lines: dict[tuple[str, str], Sequence[tuple[str, int]]] = {}
    for kind, of_kind in nodes.items():
        names = {name for _, name, other in scopes if other == kind}
        counted = sorted((name for name in names if name.isdigit()), key=int)
        others = [calls for name, calls in of_kind.items() if name not in names or name.isdigit()]
        lines |= {(name, kind): of_kind[name] for name in names if name in of_kind and not name.isdigit()}
        if len(counted) == len(others):
            lines |= {(name, kind): calls for name, calls in zip(counted, others, strict=True)}
    return lines
