"""Names, shapes and dtypes at the boundary of a stage. Standard library only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from coreflow.models.errors import ConfigError

Dtype = Literal["float16", "float32", "int32"]
Precision = Literal["fp16", "fp32"]  # of a program: that of its weights and arithmetic
# Where a package records the bounds of its inputs: user-defined metadata, {"input": [lowest, highest], ...} as JSON.
BOUNDS_KEY = "coreflow.bounds"
DTYPES: tuple[Dtype, ...] = ("float16", "float32", "int32")
PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of one tensor; ``bounds`` (lowest, highest, both allowed) where only some values have a meaning.

    >>> TensorSpec((1, 128), "int32", bounds=(0, 29_999))

    Token ids carry ``bounds=(0, vocabulary - 1)``, masks ``(0, 1)``; they are checked before a prediction, recorded in
    the package, and tell validation which inputs to draw.
    """

    shape: tuple[int, ...]
    dtype: Dtype = "float16"
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(extent) for extent in self.shape))
        if any(extent < 1 for extent in self.shape):
            raise ConfigError(f"shape {self.shape} has an extent below 1; fixed shapes are positive")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype {self.dtype!r}; choose one of {', '.join(DTYPES)}", expected=DTYPES)
        if self.bounds is not None:
            low, high = self.bounds
            object.__setattr__(self, "bounds", (float(low), float(high)))
            if not low <= high:
                raise ConfigError(f"bounds {self.bounds}: the lowest value comes first")

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        plain: dict[str, Any] = {"shape": list(self.shape), "dtype": self.dtype}
        return plain if self.bounds is None else {**plain, "bounds": list(self.bounds)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "TensorSpec":
        """Inverse of ``to_json``; unknown keys are refused."""
        unknown = set(plain) - {"shape", "dtype", "bounds"}
        if unknown:
            raise ConfigError(f"tensor spec has unknown keys {sorted(unknown)}")
        bounds: Sequence[float] | None = plain.get("bounds")
        return cls(tuple(plain["shape"]), plain["dtype"], None if bounds is None else (bounds[0], bounds[1]))
