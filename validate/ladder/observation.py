"""One sample on every rung of the ladder."""

from collections.abc import Mapping
from dataclasses import dataclass

from coreflow.models.arrays import Array, Arrays
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.report.model import RungName


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """Outputs and errors of every rung, and the outputs of the reference, for one sample.

    >>> observation = ladder.observe([sample])[0]
    >>> list(observation.rungs), observation.actual["surface"].shape
    (['R3', 'R4'], (1, 64))
    """

    sample: Sample
    rungs: Mapping[RungName, Arrays]  # outputs of the saved program
    squares: Mapping[RungName, tuple[float, ...]]  # sum of squared errors of every output, where the reference is finite
    reference: tuple[Array, ...]
    simulated: tuple[Array, ...]
    margins: tuple[tuple[Array, Array] | None, ...]  # of outputs that are argmaxes: the margins, and fp16's noise in the scores
    reference_margins: Array | None = None  # of the decisions inside the module
    simulated_margins: Array | None = None
    again: tuple[Array, ...] | None = None  # a second run of the reference on the same inputs, of the first sample

    @property
    def actual(self) -> Arrays:
        """Outputs of the last rung, the one under test."""
        return self.rungs[list(self.rungs)[-1]]
