"""The same package on every set of compute units of Core ML, whose results differ."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from coreflow.models.arrays import Array, Bools
from coreflow.models.errors import CoreflowError
from coreflow.runtime.backend import Model
from coreflow.validate.gates.metrics import as_float64, ratio
from coreflow.validate.ladder.observation import Observation
from coreflow.validate.report.model import OutputReport


def rho_by_unit(
    units: Mapping[str, Callable[[], Model]],
    observations: Sequence[Observation],
    kept: Bools,
    outputs: Mapping[str, OutputReport],
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """rho_rms per unit and floating output, over the samples that are ``kept``; and why a unit has none.

    A unit is opened when it is its turn and closed before the next. A value that is not finite, in a reference or in a prediction, makes
    the ratio of that output NaN or inf.
    """
    rho: dict[str, dict[str, float]] = {}
    refused = []
    samples = [seen for seen, fine in zip(observations, kept, strict=True) if fine]
    for unit, open_unit in units.items():
        try:
            model = open_unit()
            predictions = [model.predict(seen.sample.inputs) for seen in samples]
        except CoreflowError as error:  # a machine without that unit, or a program that it refuses
            refused.append(f"compute units {unit} were not compared: {error}")
            continue
        rho[unit] = {
            name: _rho(
                [outputs_on_unit[name] for outputs_on_unit in predictions], [seen.reference[place] for seen in samples], report.budget
            )
            for place, (name, report) in enumerate(outputs.items())
            if samples and samples[0].reference[place].dtype.kind == "f"
        }
    return rho, refused


def _rho(values: Sequence[Array], references: Sequence[Array], budget: float) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        squares = [
            np.square(as_float64(value).reshape(-1) - as_float64(reference).reshape(-1))
            for value, reference in zip(values, references, strict=True)
        ]
    return ratio(float(np.sqrt(np.concatenate(squares).mean())), budget)
