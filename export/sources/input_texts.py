"""Inputs as they are written at a prompt: ``NAME:SHAPE``, ``NAME:SHAPE:DTYPE``, ``NAME:SHAPE:int32:LOW..HIGH``."""

import re
from collections.abc import Sequence

from coreflow.models.errors import ConfigError
from coreflow.models.spec import DTYPES, Dtype, TensorSpec

_FORM = re.compile(
    r"(?P<name>[A-Za-z_]\w*):(?P<shape>\d+(x\d+)*)(:(?P<dtype>[a-z0-9]+))?(:(?P<low>-?\d+(\.\d+)?)\.\.(?P<high>-?\d+(\.\d+)?))?", re.ASCII
)


def parse_inputs(texts: Sequence[str]) -> dict[str, TensorSpec]:
    """``ids:1x128:int32:0..29999`` as a spec by name, in the order given; ``ConfigError`` shows the form.

    >>> parse_inputs(["x:1x3x224x224", "ids:1x128:int32:0..29999"])["ids"].bounds
    (0.0, 29999.0)
    """
    specs: dict[str, TensorSpec] = {}
    for text in texts:
        match = _FORM.fullmatch(text)
        if match is None or (match["dtype"] or "float16") not in DTYPES:
            raise ConfigError(f"input {text!r}; NAME:SHAPE, as in x:1x3x224x224 or ids:1x128:int32:0..29999, is right")
        if match["name"] in specs:
            raise ConfigError(f"input {match['name']!r} is given twice")
        dtype: Dtype = match["dtype"] or "float16"  # type: ignore[assignment]
        bounds = None if match["low"] is None else (float(match["low"]), float(match["high"]))
        try:
            specs[match["name"]] = TensorSpec(tuple(int(extent) for extent in match["shape"].split("x")), dtype, bounds)
        except ConfigError as error:
            raise ConfigError(f"input {text!r}: {error}") from error
    return specs
