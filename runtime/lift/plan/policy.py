"""Policies: how a plan stores values in memory, and which functions its steps call."""

from typing import Protocol

import torch

from coreflow.export.package.graph import Op, Value
from coreflow.runtime.lift.numerics.plain import Numerics
from coreflow.runtime.lift.plan.plan import Step


class Policy(Protocol):
    """Decides how a plan stores values and which functions its steps call; the planner does the rest.

    >>> class OnCuda(GeneralPolicy):
    ...     def finish(self, step):  # one step in place of another
    ...         return replace(step, function=fused) if step.op.type == "linear" else step
    """

    @property
    def numerics(self) -> Numerics:
        """The arithmetic after each op."""

    @property
    def device(self) -> torch.device:
        """The device on which values lie."""

    @property
    def copies(self) -> bool:
        """Whether constants are copies, so that a change of the weight file affects no prediction."""

    def storage(self, op: Op | None, value: Value) -> torch.dtype | None:
        """The dtype in which a floating ``value`` lies in memory; of a constant, the dtype in which ``op`` takes it.

        None leaves a constant in its stored dtype, for ``finish`` to convert.
        """

    def finish(self, step: Step) -> Step:
        """The step to run in place of ``step``, which calls the lowering and rounds as the numerics do."""


class GeneralPolicy:
    """Every floating value in the dtype of the numerics, and every step as it was planned.

    >>> plan = Planner(graph, GeneralPolicy(numerics_named("fp64"), torch.device("cuda"))).plan()
    """

    copies = False

    def __init__(self, numerics: Numerics, device: torch.device) -> None:
        self.numerics = numerics
        self.device = device

    def storage(self, op: Op | None, value: Value) -> torch.dtype:
        """The dtype of the numerics."""
        return self.numerics.dtype

    def finish(self, step: Step) -> Step:
        """``step`` itself."""
        return step
