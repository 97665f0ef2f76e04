"""Ranges in which ops misbehave in fp16, and whether the samples ever reached them. A check that met no such value has not checked it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from coreflow.export.package.graph import Op, Value
from coreflow.validate.gates.tolerance import FP16_MAX

_TINY = 2.0**-14  # smallest normal fp16 number


class Seen(Protocol):
    """The values that an argument had."""

    low: float
    high: float
    smallest: float

    @property
    def largest(self) -> float:
        """Magnitude."""


@dataclass(frozen=True, slots=True)
class Risk:
    """An argument's range in which an op may go wrong."""

    argument: str
    text: str
    reached: Callable[[Seen], bool]


def _above(limit: float, text: str) -> Risk:
    return Risk("x", f"x above {limit:g}, {text}", lambda seen: seen.high > limit)


def _beyond(limit: float, text: str) -> Risk:
    return Risk("x", f"|x| above {limit:g}, {text}", lambda seen: seen.largest > limit)


def _near_zero(argument: str, text: str) -> Risk:
    return Risk(argument, f"|{argument}| below {_TINY:.2g}, {text}", lambda seen: seen.low <= 0 <= seen.high or seen.smallest < _TINY)


_SQUARE = math.floor(math.sqrt(FP16_MAX))
_OVERFLOWS = "where the result overflows fp16"
RISKS: Mapping[str, tuple[Risk, ...]] = {
    "exp": (_above(round(math.log(FP16_MAX), 2), _OVERFLOWS),),
    "exp2": (_above(round(math.log2(FP16_MAX), 2), _OVERFLOWS),),
    "sinh": (_beyond(round(math.asinh(FP16_MAX), 2), _OVERFLOWS),),
    "cosh": (_beyond(round(math.acosh(FP16_MAX), 2), _OVERFLOWS),),
    "square": (_beyond(_SQUARE, _OVERFLOWS),),
    "pow": (_beyond(_SQUARE, "whose square overflows fp16"),),
    "softplus": (_above(10.4, "where 0 has been seen on a device (coremltools issue 2687)"),),
    "softplus_parametric": (_above(10.4, "where 0 has been seen on a device (coremltools issue 2687)"),),
    "layer_norm": (_beyond(_SQUARE, "whose square overflows fp16"),),
    "instance_norm": (_beyond(_SQUARE, "whose square overflows fp16"),),
    "l2_norm": (_beyond(_SQUARE, "whose square overflows fp16"),),
    "reduce_sum_square": (_beyond(_SQUARE, "whose square overflows fp16"),),
    "reduce_l2_norm": (_beyond(_SQUARE, "whose square overflows fp16"),),
    "log": (_near_zero("x", "of which fp16 holds few digits or none"),),
    "rsqrt": (_near_zero("x", "of which fp16 holds few digits or none"),),
    "inverse": (_near_zero("x", "of which fp16 holds few digits or none"),),
    "real_div": (_near_zero("y", "a divisor of which fp16 holds few digits or none"),),
}


def never_exercised(op: Op, ranges: Mapping[int, Seen]) -> tuple[str, ...]:
    """The risks of ``op`` that no sample met; ``ranges`` by the id of the value. Constants are what they are, and never a risk."""
    found = []
    for risk in RISKS.get(op.type, ()):
        value = op.inputs.get(risk.argument)
        seen = ranges.get(id(value)) if isinstance(value, Value) else None
        if seen is not None and not risk.reached(seen):
            found.append(risk.text)
    return tuple(found)
