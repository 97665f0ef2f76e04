"""The operations that a captured module calls, alike for traces and exported programs."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram


@dataclass(frozen=True, slots=True)
class Call:
    """An operation, its arguments by name, those computed as None, and the line that calls it.

    >>> [call.place for call in calls(captured.program) if call.operation == "aten::diagonal"]
    ['model.py:12']
    """

    operation: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""  # FILE:LINE
    dtype: str = ""  # of the first argument, as torch spells it


def calls(program: torch.jit.ScriptModule | ExportedProgram) -> Iterator[Call]:
    """Every call, in the order of execution; those of nested blocks are left out, which a trace of a module does not have."""
    if isinstance(program, ExportedProgram):
        for node in program.graph.nodes:
            if schema := getattr(node.target, "_schema", None):
                given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
                tensor = getattr(node.args[0], "meta", {}).get("val") if node.args else None
                place = _place(str(node.meta.get("stack_trace", "")), r'File "([^"]+)", line (\d+)')
                yield Call(schema.name, given, place, _dtype(getattr(tensor, "dtype", None)))
        return
    for node in program.inlined_graph.nodes():
        if node.schema() != "(no schema)":
            names = [argument.name for argument in torch._C.parse_schema(node.schema()).arguments]
            inputs = list(node.inputs())
            given = dict(zip(names, map(_constant, inputs), strict=False))
            tensor = inputs[0].type() if inputs else None
            dtype = tensor.dtype() if isinstance(tensor, torch._C.TensorType) else None
            yield Call(node.kind(), given, _place(str(node.sourceRange()), r"(\S+)\((\d+)\)"), _dtype(dtype))


def _dtype(dtype: Any) -> str:
    return "" if dtype is None else str(dtype).removeprefix("torch.")


def _constant(value: Any) -> Any:
    """The value of a constant, a tensor of one element as the number, or of a list of them; None for what is computed."""
    if value.node().kind() == "prim::ListConstruct":
        return [_constant(part) for part in value.node().inputs()]
    constant = value.toIValue() if value.node().kind() == "prim::Constant" else None
    return constant.item() if isinstance(constant, torch.Tensor) and constant.numel() == 1 else constant


def _place(text: str, pattern: str) -> str:
    """The innermost line outside of torch: a trace names it first, an exported program last."""
    places = [f"{file.rpartition('/')[2]}:{line}" for file, line in re.findall(pattern, text) if "/torch/" not in file]
    return "" if not places else places[-1 if pattern.startswith("File") else 0]
