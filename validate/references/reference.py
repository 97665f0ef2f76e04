"""The protocol of references: executions that a package is compared with."""

from collections.abc import Sequence
from typing import Protocol

from coreflow.models.arrays import Array, Arrays
from coreflow.validate.references.choices import Choice


class Reference(Protocol):
    """An execution that a package is compared with. Inputs are given by name in the package's order, outputs come in the package's order.

    >>> reference = open_reference(Path("published.mlpackage"), outputs=["y"])
    >>> (y,) = reference.outputs({"x": x})
    """

    @property
    def label(self) -> str:
        """Name of the reference in a report."""

    @property
    def budget(self) -> str:
        """Name of the budget, the error by which the package's error is divided."""

    @property
    def has_margins(self) -> bool:
        """Whether ``margins`` and ``simulated_margins`` can be called: the reference takes hard decisions and tells how clear they are."""

    @property
    def choices(self) -> Sequence[Choice]:
        """Scores behind the argmaxes of the latest call, where it recorded them."""

    def outputs(self, inputs: Arrays) -> tuple[Array, ...]:
        """R0: the outputs at the highest precision of this reference, float64 where there is a choice."""

    def simulated_outputs(self, inputs: Arrays) -> tuple[Array, ...] | None:
        """The outputs of an independent execution in the package's precision; None where there can be none."""

    def fp32_outputs(self, inputs: Arrays) -> tuple[Array, ...] | None:
        """R1; None where there is none."""

    def margins(self, inputs: Arrays) -> Array:
        """Distances of the decisions from their borders, in float64."""

    def simulated_margins(self, inputs: Arrays) -> Array:
        """The same distances in the package's precision."""


class WithoutMargins:
    """Base of references that take no hard decisions, or do not tell their margins.

    >>> class Constant(WithoutMargins):
    ...     label, budget = "zeros", "drawn rounding"
    ...     def outputs(self, inputs): return (np.zeros((1, 4)),)
    ...     def simulated_outputs(self, inputs): return None
    """

    has_margins = False
    choices: Sequence[Choice] = ()

    def fp32_outputs(self, inputs: Arrays) -> tuple[Array, ...] | None:
        """None: such a reference has no R1."""
        return None

    def margins(self, inputs: Arrays) -> Array:
        """Never called, since ``has_margins`` is False."""
        raise NotImplementedError

    simulated_margins = margins
