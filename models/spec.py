"""Names, shapes and dtypes at the boundary of a stage. Standard library only."""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from coreflow.models import fp16
from coreflow.models.errors import ConfigError

Dtype = Literal["float16", "float32", "int32"]
Precision = Literal["fp16", "fp32"]  # of a program: that of its weights and arithmetic
# Where a package records the bounds of its inputs: user-defined metadata, {"input": [lowest, highest], ...} as JSON; and the only values of
# those that take a few, which have bounds too.
BOUNDS_KEY, VALUES_KEY = "coreflow.bounds", "coreflow.values"
RECIPE_KEY = "coreflow.recipe"  # what a package was made of, as JSON
DTYPES: tuple[Dtype, ...] = ("float16", "float32", "int32")
_LARGEST: Mapping[Dtype, float] = {"float16": fp16.MAX, "float32": (2 - 2.0**-23) * 2.0**127, "int32": 2.0**31 - 1}
PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32")


def key_of(key: str, function: str) -> str:
    """The ``key`` of one function in the metadata of a package that has several."""
    return f"{key}/{function}"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of one tensor, and which values have a meaning: ``bounds`` (lowest, highest, both allowed), or a few ``values``.

    >>> TensorSpec((1, 128), "int32", bounds=(0, 29_999))
    >>> TensorSpec((1, 128), values=(0, 1))

    Token ids carry ``bounds=(0, vocabulary - 1)``, masks and flags ``values=(0, 1)``, whose bounds are the least and the greatest. Both are
    checked before a prediction, recorded in the package, and tell validation which inputs to draw.
    """

    shape: tuple[int, ...]
    dtype: Dtype = "float16"
    bounds: tuple[float, float] | None = None
    values: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "shape", tuple(operator.index(extent) for extent in self.shape))
        except TypeError:
            raise ConfigError(f"shape {self.shape!r}; whole numbers are right, as in (1, 128)") from None
        if any(extent < 1 for extent in self.shape):
            raise ConfigError(f"shape {self.shape} has an extent below 1; fixed shapes are positive")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype {self.dtype!r}; choose one of {', '.join(DTYPES)}", expected=DTYPES)
        if self.bounds is not None:
            try:
                low, high = map(float, self.bounds)
            except (TypeError, ValueError):
                raise ConfigError(f"bounds {self.bounds!r}; the lowest and the highest value are right, as in (0, 1)") from None
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ConfigError(f"bounds {self.bounds}; two finite numbers, the lowest first, are right")
            object.__setattr__(self, "bounds", (low, high))
        if self.values is not None:
            self._check_values(tuple(sorted({float(value) for value in self.values})))

    def _check_values(self, values: tuple[float, ...]) -> None:
        """Keep ``values`` in their order, and their bounds."""
        largest = _LARGEST[self.dtype]
        if not values or not all(math.isfinite(value) and abs(value) <= largest for value in values):
            raise ConfigError(f"values {values}; one or more that {self.dtype} holds are right")
        if self.dtype == "int32" and not all(value.is_integer() for value in values):
            raise ConfigError(f"values {values} of an int32 tensor; whole numbers are right")
        ends = values[0], values[-1]
        if self.bounds not in (None, ends):
            raise ConfigError(f"bounds {self.bounds} beside values from {ends[0]:g} to {ends[1]:g}; give the values alone")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "bounds", ends)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        plain: dict[str, Any] = {"shape": list(self.shape), "dtype": self.dtype}
        if self.values is not None:
            return {**plain, "values": list(self.values)}
        return plain if self.bounds is None else {**plain, "bounds": list(self.bounds)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "TensorSpec":
        """Inverse of ``to_json``; unknown keys are refused."""
        unknown = set(plain) - {"shape", "dtype", "bounds", "values"}
        if unknown:
            raise ConfigError(f"tensor spec has unknown keys {sorted(unknown)}")
        bounds: Sequence[float] | None = plain.get("bounds")
        values: Sequence[float] | None = plain.get("values")
        return cls(
            tuple(plain["shape"]),
            plain["dtype"],
            None if bounds is None else (bounds[0], bounds[1]),
            None if values is None else tuple(values),
        )
