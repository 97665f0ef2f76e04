"""What is known of a program when it is repaired: the target, the bounds of its inputs, and magnitudes that were seen in data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from coreflow.export.engine.targets import Target
from coreflow.export.package.graph import Program
from coreflow.models.spec import BOUNDS_KEY, VALUES_KEY


@dataclass(frozen=True, slots=True)
class Magnitude:
    """How large the elements of a value were in calibration data.

    >>> facts.magnitudes["scores"].largest

    ``norms`` has the largest length (root of the sum of squares) of a row along every axis.
    """

    largest: float
    rms: float
    norms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What passes may rely on beside the program itself; values are named as in the program.

    >>> Facts(target=find_targets("M4/macOS27")[0], bounds={"ids": (0, 29_999)})

    ``bounds`` are those of inputs, which a prediction has to keep; ``magnitudes`` were seen and may be exceeded.
    """

    target: Target
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    magnitudes: Mapping[str, Magnitude] = field(default_factory=dict)


def recorded_bounds(program: Program, function: str) -> dict[str, tuple[float, float]]:
    """Bounds of the inputs of a function that the package records, by name; what is not to be read is left out."""
    bounds: dict[str, tuple[float, float]] = {}
    for key in (BOUNDS_KEY, VALUES_KEY):
        try:
            recorded = json.loads(program.recorded(key, function) or "{}")
            bounds |= {str(name): (float(min(numbers)), float(max(numbers))) for name, numbers in recorded.items()}
        except (ValueError, TypeError, AttributeError):
            continue
    return bounds
