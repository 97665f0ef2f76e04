"""Weights that are not finite, of a module and of a package: whatever they meet is infinite or NaN, or hides in a saturation."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from coreflow.export.package.graph import Graph
from coreflow.export.package.op_facts import facts_of
from coreflow.runtime.lift.plan.arguments import as_tensor, release
from coreflow.validate.gates.structure import Obstacle

_NORMALISES = frozenset({"batch_norm", "instance_norm", "layer_norm"})
_ADDED = frozenset({"bias", "attn_mask"})  # arguments in which minus infinity masks
_SHOWN = 3


def find_infinite_weights(module: nn.Module | None, graph: Graph) -> Obstacle | None:
    """Weights of ``module`` and of the program that are infinite or NaN, by name; None where there are none.

    Minus infinity may be meant, as it is where it masks: in a buffer, in a parameter of zeros and minus infinities, in what is added or
    selected, and in a table that is looked up or compressed, unless ``module`` has none.
    """
    problems = [*(() if module is None else _of_module(module)), *_of_program(graph, module)]
    if not problems:
        return None
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return Obstacle(cause="non-finite", problems=tuple(problems), text="; ".join(problems[:_SHOWN]) + more)


def _of_module(module: nn.Module) -> Iterator[str]:
    statistics = {id(buffer) for part in module.modules() if isinstance(part, _NormBase) for buffer in part.buffers(recurse=False)}
    for name, parameter in module.named_parameters():
        if not _is_finite(parameter) and not bool(((parameter == 0) | (parameter == -torch.inf)).all()):
            yield f"parameter {name!r} of the reference holds {_counts(parameter)}"
    for name, buffer in module.named_buffers():
        if not _is_finite(buffer) and (id(buffer) in statistics or not _may_mask(buffer)):
            yield f"buffer {name!r} of the reference holds {_counts(buffer)}"


def _of_program(graph: Graph, module: nn.Module | None) -> Iterator[str]:
    seen: set[int] = set()
    for op in graph.walk():
        facts = facts_of(op.type)
        is_table = facts.looks_up or op.type.startswith("constexpr_")
        if not (facts.is_contraction or is_table or op.type in _NORMALISES):
            continue
        for argument, value in ((name, value) for name in op.inputs for value in op.argument(name)):
            if id(value) in seen or not isinstance(value.data, np.ndarray) or value.data.dtype.kind != "f":
                continue
            seen.add(id(value))
            tensor = as_tensor(value.data, None)
            if not _is_finite(tensor) and not (_may_mask(tensor) and (argument in _ADDED or (is_table and _has_mask(module)))):
                yield f"constant {value.name or f'{op.name}.{argument}'!r} of {op.type} {op.name!r} in the package holds {_counts(tensor)}"
            release(value)


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _may_mask(tensor: Tensor) -> bool:
    """Whether minus infinity is the only value that is not finite."""
    return not bool((torch.isnan(tensor) | (tensor == torch.inf)).any())


def _has_mask(module: nn.Module | None) -> bool:
    """Whether some parameter or buffer holds minus infinity, or may."""
    return module is None or any(bool((tensor == -torch.inf).any()) for tensor in (*module.parameters(), *module.buffers()))


def _counts(tensor: Tensor) -> str:
    counts = {"infinite": int(torch.isinf(tensor).sum()), "NaN": int(torch.isnan(tensor).sum())}
    return f"{' and '.join(f'{count} {kind}' for kind, count in counts.items() if count)} of {tensor.numel()} values"
