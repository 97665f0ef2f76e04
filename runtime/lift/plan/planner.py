"""Turns a graph into a plan: lowering and arguments of every op, rounding of its results, lifetime of every value."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coreflow.export.package.graph import Graph, Op, Value
from coreflow.export.package.op_facts import facts_of
from coreflow.models.errors import BundleError, UnsupportedError
from coreflow.runtime.lift.limits import refuse_absurd
from coreflow.runtime.lift.numerics.plain import Rounding
from coreflow.runtime.lift.plan.arguments import Constants, convert, plain
from coreflow.runtime.lift.plan.plan import Block, Environment, Plan, Step, not_executable
from coreflow.runtime.lift.plan.policy import Policy
from coreflow.runtime.lift.registry import Form, Lowering, find, load_lowerings, require_all


class Planner:
    """Plans one function.

    >>> plan = Planner(graph, GeneralPolicy(numerics_named("fp32"), torch.device("cpu")), "encoder.mlpackage").plan()

    Constants become tensors once, and ``constexpr_*`` ops are evaluated once. ``constants`` tells which tensors they became.
    ``UnsupportedError`` names what has no lowering, or declares more than memory holds.
    """

    def __init__(self, graph: Graph, policy: Policy, package: str = "program") -> None:
        load_lowerings()
        require_all(graph, package)
        refuse_absurd(graph, package)
        self.constants = Constants(policy.device, package, copies=policy.copies)
        self._graph = graph
        self._policy = policy
        self._package = package
        self._environment: Environment = []
        self._slots: dict[int, int] = {}  # id of a Value -> its slot in the environment

    def plan(self) -> Plan:
        """The plan of the whole function."""
        with torch.no_grad():
            block = self._block(self._graph, outlive={id(value) for value in self._graph.outputs})
        storage = (self._policy.storage(None, value) for value in self._graph.inputs)
        return Plan(
            inputs=block.inputs,
            outputs=block.outputs,
            steps=block.steps,
            constants=self._environment,
            storage=tuple(dtype or self._policy.numerics.dtype for dtype in storage),
        )

    def _block(self, graph: Graph, outlive: set[int]) -> Block:
        """The steps of ``graph``; values whose ids are in ``outlive`` are read after it."""
        inputs = tuple(self._slot(value) for value in graph.inputs)
        outlive = outlive | {id(value) for value in graph.outputs}
        own = {id(value) for value in (*graph.inputs, *(value for op in graph.ops for value in op.outputs))}
        last_use = {id(value): index for index, op in enumerate(graph.ops) for value in (*op.reads(), *op.outputs)}
        steps = []
        for index, op in enumerate(graph.ops):
            dying = [v for v in (*op.reads(), *op.outputs) if last_use[id(v)] == index and id(v) in own and id(v) not in outlive]
            step = self._step(graph.opset, op, tuple(sorted({self._slot(value) for value in dying})))
            if op.type.startswith("constexpr_"):
                self._fold(step)
            else:
                steps.append(step)
        return Block(inputs=inputs, outputs=tuple(self._slot(value) for value in graph.outputs), steps=tuple(steps))

    def _step(self, opset: str, op: Op, frees: tuple[int, ...]) -> Step:
        lowering = find(op.type, opset)
        assert lowering is not None, op.type  # require_all
        self._check_arguments(op, lowering)
        fixed: dict[str, Any] = {}
        reads: list[tuple[str, int]] = []
        converts: list[tuple[str, Form, int | tuple[int, ...]]] = []
        for name, form in lowering.forms.items():  # not the package's order: protobuf maps have another in every process
            if name not in op.inputs:
                continue
            parts = op.argument(name)
            if form == "tensors" or len(parts) > 1:
                converts.append((name, form, tuple(self._slot(part) for part in parts)))
            elif parts[0] in self.constants:
                fixed[name] = self._constant(parts[0], form, op, name)
            elif form in ("tensor", "raw"):
                reads.append((name, self._slot(parts[0])))
            else:
                converts.append((name, form, self._slot(parts[0])))
        surroundings = {"float_dtype": self._policy.numerics.dtype, "device": self._policy.device}
        fixed.update((name, surroundings[name]) for name in lowering.context & surroundings.keys())
        step = Step(
            package=self._package,
            op=op,
            function=self._guarded(lowering, op, fixed),
            fixed=fixed,
            reads=tuple(reads),
            converts=tuple(converts),
            writes=tuple((self._slot(value), self._rounding(op, value)) for value in op.outputs),
            blocks=tuple(self._block(block, outlive=set()) for block in op.blocks),
            frees=frees,
        )
        return self._policy.finish(step)

    def _guarded(self, lowering: Lowering, op: Op, fixed: Mapping[str, Any]) -> Callable[..., Any]:
        """The function of the op: behind its guard if the guard cannot be asked now, because a shape or a number is open."""
        guard, function = lowering.guard, self._policy.numerics.function(op, lowering.function)
        if guard is None:
            return function
        try:
            known = {name: fixed[name] if name in fixed else _stand_in(lowering.forms[name], op.argument(name)) for name in op.inputs}
            if all(argument is not None for argument in known.values()):
                guard(**known)
                return function
        except Exception as error:
            raise not_executable(self._package, op, error) from error

        @wraps(function)
        def guarded(**arguments: Any) -> Any:
            guard(**arguments)
            return function(**arguments)

        return guarded

    def _rounding(self, op: Op, value: Value) -> Rounding | None:
        """The rounding of a result. A product of integers and constant fractions is declared an integer, and loses its fraction."""
        whole = value.dtype == "int32" and facts_of(op.type).mixes_types
        return _truncated if whole else self._policy.numerics.rounding(op, value)

    def _check_arguments(self, op: Op, lowering: Lowering) -> None:
        unknown = sorted(op.inputs.keys() - lowering.forms.keys())
        missing = sorted(lowering.required - op.inputs.keys())
        if unknown or missing:
            problem = "; ".join(f"{what} {', '.join(names)}" for what, names in (("unknown", unknown), ("missing", missing)) if names)
            expected = ", ".join(lowering.forms)
            raise UnsupportedError(f"{self._package}: {op.type} {op.name!r} has arguments {problem}; it takes {expected}")

    def _fold(self, step: Step) -> None:
        """Runs a constant expression now; its result is a constant from here on."""
        computed = [value.name for value in step.op.input_values() if value not in self.constants]
        if computed:
            raise BundleError(f"{self._package}: {step.op.type} {step.op.name!r} reads {computed[0]!r}; it takes constants alone")
        step.call(self._environment)
        for value, result in zip(step.op.outputs, step.results(self._environment), strict=True):
            self.constants.add(value, result)
        step.free(self._environment)

    def _slot(self, value: Value) -> int:
        """The slot of ``value`` in the environment; a constant is put there at once."""
        slot = self._slots.get(id(value))
        if slot is None:
            slot = self._slots[id(value)] = len(self._environment)
            self._environment.append(None)
            if value.data is not None:
                self._environment[slot] = self._constant(value, "tensor" if isinstance(value.data, np.ndarray) else "raw")
        return slot

    def _constant(self, value: Value, form: Form, op: Op | None = None, argument: str = "") -> Any:
        """A constant in the form that ``op`` asks for."""
        if form == "tensor" or value.data is None:
            return convert(form, self.constants.tensor(value, self._policy.storage(op, value), op, argument))
        return value.data if form == "raw" else plain(form, value.data)


def _truncated(tensor: Tensor) -> Tensor:
    return tensor.to(torch.int32)


def _stand_in(form: Form, argument: tuple[Value, ...]) -> Any:
    """For a computed argument a tensor of its declared shape without elements; None where that is open, or the elements are what counts."""
    shapes = [value.shape for value in argument]
    fixed = [tuple(extent for extent in shape if extent is not None) for shape in shapes if shape is not None]
    if form not in ("tensor", "tensors") or fixed != shapes:
        return None
    tensors = tuple(torch.empty(shape, device="meta") for shape in fixed)
    return tensors if form == "tensors" else tensors[0]
