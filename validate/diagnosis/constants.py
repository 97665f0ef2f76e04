"""Constants of a program: those that fp16 changes, the ops that this harms, and whether weights are the module's."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import nn

from coreflow.export.package.graph import Graph, Op, Value
from coreflow.export.package.op_facts import facts_of
from coreflow.models import fp16
from coreflow.runtime.lift.registry import find
from coreflow.validate.diagnosis.lossy_ops import MAX_LOCAL_RHO
from coreflow.validate.ladder.walk import Walk
from coreflow.validate.report.model import ConstantReport, Culprit, Origin


def find_fp16_constants(graph: Graph) -> tuple[ConstantReport, ...]:
    """Constants that fp16 changes by more than a rounding; ``graph`` is a conversion in fp32, or, without one, the saved program."""
    reports: dict[tuple[str, str], ConstantReport] = {}
    for op, argument, value in _values_read(graph):
        report = _report(op, argument, value)
        if report is not None and not _is_default(op, argument, report.value, graph.opset):
            reports[report.name, report.op] = report
    return tuple(reports.values())


def find_harmed_ops(constants: Sequence[ConstantReport], walked: Walk, origins: Mapping[int, Origin]) -> tuple[Culprit, ...]:
    """The ops whose results change with their constants in fp16, the worst first; ``walked`` is a program that has them in fp32.

    A constant that fp16 does not hold is no fault by itself: an epsilon may be added to a large number.
    """
    problems: dict[str, list[str]] = {}
    for constant in constants:
        problems.setdefault(constant.op, []).append(f"its constant {constant.value:.3g} {constant.problem}")
    culprits = [
        Culprit(
            kind="constant",
            name=op.name,
            type=op.type,
            ratio=walked.losses[op.name],
            text=", and ".join(problems[op.name]),
            origin=origins.get(place),
        )
        for place, op in enumerate(walked.ops)
        if walked.losses.get(op.name, 0.0) > MAX_LOCAL_RHO
    ]
    return tuple(sorted(culprits, key=lambda culprit: -culprit.ratio))


def has_only_weights_of(graph: Graph, module: nn.Module) -> bool:
    """Whether every floating constant of several elements is a parameter or buffer of ``module``, number for number in its own dtype.

    Laid out alike or transposed. Weights that a converter folded or compressed are not recognised: True means that the weights are those
    of the module, False says little.
    """
    if any(op.type.startswith("constexpr_") for op in graph.walk()):
        return False
    tensors = [tensor.detach().cpu() for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
    layouts = (*tensors, *(tensor.t() for tensor in tensors if tensor.ndim == 2))
    known = [tensor.reshape(-1).float().numpy() for tensor in layouts]
    weights = [
        value.data.reshape(-1)
        for _, _, value in _values_read(graph)
        if isinstance(value.data, np.ndarray) and value.data.dtype.kind == "f" and value.data.size > 1
    ]
    with np.errstate(over="ignore"):
        return all(
            any(np.array_equal(weight, values.astype(weight.dtype)) for values in known if values.size == weight.size) for weight in weights
        )


def _values_read(graph: Graph) -> Iterator[tuple[Op, str, Value]]:
    """Every value that an op reads, with the op and the name of the argument."""
    for op in graph.walk():
        for argument, value in op.inputs.items():
            for part in value if isinstance(value, tuple) else (value,):
                yield op, argument, part


def _is_default(op: Op, argument: str, value: float, opset: str) -> bool:
    """Whether this is the op's default value: the converter writes it down, though the model did not set it."""
    lowering = find(op.type, opset)
    default = None if lowering is None else inspect.signature(lowering.function).parameters[argument].default
    return isinstance(default, float) and math.isclose(value, default, rel_tol=1e-3)


def _report(op: Op, argument: str, value: Value) -> ConstantReport | None:
    """The first problem that fp16 has with a constant; None where it has none."""
    if not isinstance(value.data, np.ndarray) or value.data.dtype.kind != "f" or not value.data.size:
        return None
    with np.errstate(invalid="ignore"):
        sizes = np.abs(value.data.reshape(-1).astype(np.float64))
    name = value.name or f"{op.name}.{argument}"
    # ("subnormal" is worth saying of a number that stands alone: among many weights it is below their rounding.)
    checks = (
        ("overflows", (sizes > fp16.MAX) & np.isfinite(sizes), not facts_of(op.type).is_limit),
        ("is 0 in fp16", (sizes > 0) & (sizes < fp16.SMALLEST_SUBNORMAL / 2), value.data.size == 1),
        ("is subnormal in fp16", (sizes >= fp16.SMALLEST_SUBNORMAL / 2) & (sizes < fp16.SMALLEST_NORMAL), value.data.size == 1),
    )
    for problem, concerned, counts in checks:
        if counts and concerned.any():
            worst = float(value.data.reshape(-1)[int(np.argmax(np.where(concerned, sizes, -1)))])
            return ConstantReport(name=name, op=op.name, problem=problem, value=worst, elements=int(concerned.sum()))
    return None
