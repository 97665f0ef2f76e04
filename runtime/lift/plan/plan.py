"""A planned graph: its ops as steps that are ready to call, and the one run over them.

>>> plan = Planner(graph, GeneralPolicy(numerics_named("fp32"), torch.device("cpu")), "encoder.mlpackage").plan()
>>> outputs = plan.run(plan.constants.copy(), plan.stored(inputs))

A value lies in a slot of the environment, a list; which slot was decided when the graph was planned.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from coreflow.export.package.graph import Op
from coreflow.models.errors import CoreflowError, UnsupportedError
from coreflow.runtime.lift.numerics.plain import Rounding
from coreflow.runtime.lift.plan.arguments import convert
from coreflow.runtime.lift.registry import Form

Environment = list[Any]
Observer = Callable[[Op, tuple[Any, ...]], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One op, ready to call.

    >>> for step in plan.walk():
    ...     print(step.op.type, sorted(step.fixed), list(step.sources()))

    ``fixed`` holds the arguments that never change; ``reads`` names the slots of those that arrive as they are, ``converts`` of those that
    arrive in another form. ``writes`` has the slot and the rounding of every result, ``frees`` the slots that nothing reads afterwards.
    """

    package: str
    op: Op
    function: Callable[..., Any]
    fixed: dict[str, Any]
    reads: tuple[tuple[str, int], ...]
    converts: tuple[tuple[str, Form, int | tuple[int, ...]], ...]
    blocks: tuple["Block", ...]
    writes: tuple[tuple[int, Rounding | None], ...]
    frees: tuple[int, ...]

    def call(self, environment: Environment, observe: Observer | None = None) -> tuple[Any, ...]:
        """Executes the op, leaves its rounded results in their slots and returns them as they were before rounding.

        ``UnsupportedError`` names an op that cannot be executed.
        """
        try:
            result = self.function(**self.arguments(environment, observe))
            results = result if isinstance(result, tuple) else (result,)
            for (slot, rounding), value in zip(self.writes, results, strict=True):
                environment[slot] = value if rounding is None else rounding(value)
        except CoreflowError:
            raise
        except Exception as error:  # whatever torch or a lowering raises: the op, as this package uses it, cannot be executed
            raise not_executable(self.package, self.op, error) from error
        return results

    def arguments(self, environment: Environment, observe: Observer | None = None) -> dict[str, Any]:
        """The arguments of ``function``, read from ``environment``."""
        arguments = self.fixed.copy()
        for name, slot in self.reads:
            arguments[name] = environment[slot]
        for name, form, source in self.converts:
            value = environment[source] if isinstance(source, int) else tuple(environment[slot] for slot in source)
            arguments[name] = convert(form, value)
        if self.blocks:
            arguments["blocks"] = tuple(partial(_run_block, block, environment, observe) for block in self.blocks)
        return arguments

    def results(self, environment: Environment) -> tuple[Any, ...]:
        """The rounded results of a step that was called on ``environment``."""
        return tuple([environment[slot] for slot, _ in self.writes])  # a list: once an op, and a generator takes longer

    def sources(self) -> Iterator[int]:
        """The slots of the computed values that the step itself reads; those of its blocks are theirs."""
        yield from (slot for _, slot in self.reads)
        for _, _, source in self.converts:
            yield from (source,) if isinstance(source, int) else source

    def free(self, environment: Environment) -> None:
        """Frees the values that nothing reads after this step."""
        for slot in self.frees:
            environment[slot] = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """The steps of a function or of a nested block, which shares the environment of the function around it.

    >>> (outputs,) = block.run(environment, [x])
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: tuple[Step, ...]

    def run(self, environment: Environment, values: Sequence[Any], observe: Observer | None = None) -> tuple[Any, ...]:
        """The outputs for these input values; ``environment`` is written to.

        ``observe`` sees every op right after it ran, with its rounded results, in execution order.
        """
        for slot, value in zip(self.inputs, values, strict=True):
            environment[slot] = value
        for step in self.steps:
            step.call(environment, observe)
            if observe is not None:
                observe(step.op, step.results(environment))
            for slot in step.frees:
                environment[slot] = None
        return tuple(environment[slot] for slot in self.outputs)

    def walk(self) -> Iterator[Step]:
        """Every step, those of nested blocks included, as ``Graph.walk`` gives every op."""
        for step in self.steps:
            yield step
            for block in step.blocks:
                yield from block.walk()


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan(Block):
    """The block of a whole function, with the constants and storage dtypes that a run starts from.

    >>> plan = Planner(graph, GeneralPolicy(numerics_named("fp32"), torch.device("cpu"))).plan()
    >>> plan.run(plan.constants.copy(), plan.stored([x]))
    """

    constants: Environment  # every constant in its slot, None elsewhere
    storage: tuple[torch.dtype, ...]  # the dtype in which every input lies in memory, if it is of floats

    def stored(self, inputs: Sequence[Any]) -> list[Any]:
        """The inputs in the plan's storage dtypes; states, integers and booleans stay as they are."""
        return [
            value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for value, dtype in zip(inputs, self.storage, strict=True)
        ]


def not_executable(package: str, op: Op, error: Exception) -> UnsupportedError:
    """The error to raise when torch, a guard or a lowering refuses ``op`` as this package uses it."""
    return UnsupportedError(f"{package}: {op.type} {op.name!r} cannot be executed: {error}")


def _run_block(block: Block, environment: Environment, observe: Observer | None, *values: Any) -> tuple[Any, ...]:
    return block.run(environment, values, observe)
