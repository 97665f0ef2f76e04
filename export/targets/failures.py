"""The place in the source of a module at which the converter gave up."""

import re
from types import FrameType
from typing import Any

from torch import jit
from torch.export import ExportedProgram

from coreflow.export.capture.calls import INSIDE
from coreflow.export.capture.places import Place, place_in
from coreflow.export.targets.scopes import scope_of

CALL = re.compile(r"^(.+)\((\d+)\): ", re.MULTILINE)  # of a trace, innermost first
_UNSUPPORTED = re.compile(r"fx node (\w+)")
FRAME = re.compile(r'File "(.+)", line (\d+)')  # of an exported program, outermost first


def failing_place(program: jit.ScriptModule | ExportedProgram, error: BaseException) -> Place | None:
    """The line and the submodule of the operation that the converter was at when it raised ``error``; None where it was at none.

    >>> try:
    ...     ct.convert(traced, ...)
    ... except Exception as error:
    ...     print(failing_place(traced, error))
    model.py:12 (encoder.layers.3)
    """
    frame = _frame_of_conversion(error)
    if frame is None:
        return _place_of_unsupported(program, error) if isinstance(program, ExportedProgram) else None
    node, graph = frame.f_locals["node"], frame.f_locals["graph"]
    if isinstance(program, ExportedProgram):
        return _place_of_export(node.meta or {})
    alike = [other for other in graph.nodes if other.kind == node.kind]
    inlined = program.inlined_graph  # which its nodes do not keep alive
    nodes: list[Any] = [traced for traced in inlined.nodes() if kind_of(traced.kind()) == kind_of(node.kind)]
    if len(alike) != len(nodes):  # some were folded or expanded, and which is left is not known
        return None
    traced = nodes[alike.index(node)]
    scope = tuple(node.get_scope_info()[0][:-1])  # without the name of the operation itself
    kinds = {path: str(getattr(module, "original_name", "")) for path, module in program.named_modules()}
    paths = [path for path in kinds if path and scope_of(path, kinds) == scope]
    path = paths[0] if len(paths) == 1 else ".".join(scope)
    return place_in([(file, int(line)) for file, line in CALL.findall(str(traced.sourceRange()))], path.removeprefix(INSIDE))


def _frame_of_conversion(error: BaseException) -> FrameType | None:
    """The innermost frame in which the converter goes through the nodes of a graph."""
    frame, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "convert_nodes" and {"node", "graph"} <= trace.tb_frame.f_locals.keys():
            frame = trace.tb_frame
        trace = trace.tb_next
    return frame


def kind_of(name: str) -> str:
    """An operation without what the converter leaves out: the namespace, and the underscore of an operation in place."""
    return name.rpartition("::")[2].strip("_")


def _place_of_unsupported(program: ExportedProgram, error: BaseException) -> Place | None:
    """Of the operation that the error names, which the converter looks for before it converts any."""
    named = _UNSUPPORTED.search(str(error))
    node = next((node for node in program.graph.nodes if named and node.name == named[1]), None)
    return None if node is None else _place_of_export(node.meta)


def _place_of_export(meta: dict[str, Any]) -> Place | None:
    lines = [(file, int(line)) for file, line in reversed(FRAME.findall(str(meta.get("stack_trace") or "")))]
    stack = list((meta.get("nn_module_stack") or {}).values())
    return place_in(lines, str(stack[-1][0]).removeprefix(INSIDE) if stack else "")
