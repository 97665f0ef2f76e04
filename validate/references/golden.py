"""Recorded outputs as the reference: those of golden samples, and those of a replay file."""

from collections.abc import Sequence

import numpy as np

from coreflow.models.arrays import Array, Arrays
from coreflow.models.errors import InputError
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.references.drawn_errors import DrawnErrors
from coreflow.validate.references.reference import WithoutMargins


class GoldenReference(WithoutMargins):
    """Outputs that were recorded with the samples.

    >>> reference = GoldenReference([Sample(label="golden 0", inputs={"x": x}, expected={"y": y})], ["y"])
    >>> reference.outputs({"x": x})
    """

    label, budget = "recorded outputs", DrawnErrors.label

    def __init__(self, samples: Sequence[Sample], outputs: Sequence[str]) -> None:
        self._outputs = list(outputs)
        self._samples = list(samples)
        for sample in samples:
            missing = [name for name in outputs if name not in (sample.expected or {})]
            if missing:
                raise InputError(f"{sample.label} records no {', '.join(missing)}; an array for every output is needed")

    def outputs(self, inputs: Arrays) -> tuple[Array, ...]:
        """The outputs recorded for these inputs."""
        for sample in self._samples:
            if all(np.array_equal(np.asarray(sample.inputs[name]).astype(array.dtype), array) for name, array in inputs.items()):
                expected: Arrays = sample.expected or {}
                return tuple(np.asarray(expected[name]) for name in self._outputs)
        raise InputError("no outputs were recorded for these inputs")

    def simulated_outputs(self, inputs: Arrays) -> None:
        """None: nothing was simulated."""


class ReplayReference(WithoutMargins):
    """The outputs of one sample: those of the reference and, where it was recorded, its simulation.

    >>> record = read_replay("artifacts/replays/encoder.safetensors")
    >>> reference = ReplayReference(record.outputs, record.simulated, list(model.outputs))
    """

    label = "recorded outputs of the reference"

    def __init__(self, reference: Arrays, simulated: Arrays | None, outputs: Sequence[str]) -> None:
        self.budget = DrawnErrors.label if simulated is None else "recorded fp16 of the reference"
        self._reference, self._simulated, self._outputs = reference, simulated, list(outputs)

    def outputs(self, inputs: Arrays) -> tuple[Array, ...]:
        """R0 as it was recorded, whatever the inputs."""
        return tuple(self._reference[name] for name in self._outputs)

    def simulated_outputs(self, inputs: Arrays) -> tuple[Array, ...] | None:
        """The simulation as it was recorded."""
        return None if self._simulated is None else tuple(self._simulated[name] for name in self._outputs)
