"""The bounds that a package records of its inputs."""

import json

from coreflow.export.engine.bounds.analysis import Interval
from coreflow.export.package.graph import Program
from coreflow.models.errors import BundleError
from coreflow.models.spec import BOUNDS_KEY, VALUES_KEY


def recorded_intervals(program: Program, function: str) -> dict[str, Interval]:
    """By name of an input of one function, its least and greatest value; pixels of an image are 0 to 255.

    >>> recorded_intervals(read_program("encoder.mlpackage"), "main")
    {'ids': (0.0, 29999.0), 'mask': (0.0, 1.0)}

    An input without a record is left out. ``BundleError`` for a record that cannot be read.
    """
    _, interface = program.function(function)
    intervals: dict[str, Interval] = {feature.name: (0.0, 255.0) for feature in interface.inputs if feature.kind == "image"}
    for key in (BOUNDS_KEY, VALUES_KEY):
        recorded = program.recorded(key, function)
        try:
            for name, numbers in json.loads(recorded or "{}").items():
                intervals[str(name)] = min(map(float, numbers)), max(map(float, numbers))
        except (AttributeError, TypeError, ValueError) as error:
            raise BundleError(f"{program.path.name}: the record {key} of function {function} cannot be read ({error})") from error
    return intervals
