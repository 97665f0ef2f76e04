"""Other shapes that an input of a package may have: a list of them, or ranges of its extents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coreflow.models.errors import ConfigError
from coreflow.models.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Range:
    """Every extent from ``low`` to ``high``, both allowed; ranges of one ``name`` always have the same extent.

    >>> Recipe(..., inputs={"ids": TensorSpec((1, 64), "int32")}, shapes={"ids": (1, Range(1, 512, "length"))})

    Raises ``ConfigError`` for an empty range. An open end is refused, since the converter refuses it.
    """

    low: int
    high: int
    name: str = ""

    def __post_init__(self) -> None:
        if not (isinstance(self.low, int) and isinstance(self.high, int) and 1 <= self.low < self.high):
            raise ConfigError(f"{self}: whole numbers with 1 <= low < high are right")

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


Extents = tuple[int | Range, ...]


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes of one input: those of a list (``enumerated``, the default first), or one shape with ranges (``extents``).

    >>> Shapes.of(TensorSpec((1, 64)), [(1, 64), (1, 128)]).enumerated
    ((1, 64), (1, 128))
    >>> Shapes.of(TensorSpec((1, 64)), (1, Range(1, 512))).extents
    (1, Range(low=1, high=512, name=''))
    """

    enumerated: tuple[tuple[int, ...], ...] = ()
    extents: Extents = ()

    @classmethod
    def of(cls, spec: TensorSpec, given: Any) -> "Shapes":
        """What a recipe gives for an input of this ``spec``, whose own shape is the default; ``ConfigError`` for anything else."""
        items = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
        rank = len(spec.shape)
        if items and all(isinstance(item, Sequence) and not isinstance(item, str) for item in items):
            shapes = tuple(tuple(int(extent) for extent in shape) for shape in items)
            if wrong := [shape for shape in shapes if len(shape) != rank or min(shape, default=1) < 1]:
                raise ConfigError(f"shape {wrong[0]} for an input of shape {spec.shape}; {rank} extents of 1 or more are right")
            listed = tuple(dict.fromkeys((spec.shape, *shapes)))
            if len(listed) < 2:
                raise ConfigError(f"shapes {list(shapes)} give no shape but the default {spec.shape}; leave them out or add one")
            return cls(enumerated=listed)
        if len(items) == rank and any(isinstance(item, Range) for item in items):
            for extent, item in zip(spec.shape, items, strict=True):
                low, high = (item.low, item.high) if isinstance(item, Range) else (item, item)
                if not low <= extent <= high:
                    raise ConfigError(f"the default shape {spec.shape} is outside ({', '.join(map(str, items))})")
            return cls(extents=items)
        raise ConfigError(
            f"{given!r} for an input of shape {spec.shape}; a list of shapes, or one shape of {rank} extents with a Range, is right"
        )

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """(lowest, highest) of every extent; empty for a list of shapes."""
        return tuple((item.low, item.high) if isinstance(item, Range) else (item, item) for item in self.extents)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        if self.enumerated:
            return {"enumerated": [list(shape) for shape in self.enumerated]}
        names = {str(axis): item.name for axis, item in enumerate(self.extents) if isinstance(item, Range) and item.name}
        return {"ranges": [list(ends) for ends in self.ranges], **({"names": names} if names else {})}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Shapes":
        """Inverse of ``to_json``."""
        if "enumerated" in plain:
            return cls(enumerated=tuple(tuple(shape) for shape in plain["enumerated"]))
        names = plain.get("names", {})
        extents = (low if low == high else Range(low, high, names.get(str(axis), "")) for axis, (low, high) in enumerate(plain["ranges"]))
        return cls(extents=tuple(extents))


def shape_choices(shapes: Mapping[str, Shapes], inputs: Mapping[str, TensorSpec]) -> tuple[dict[str, tuple[int, ...]], ...]:
    """The shapes in which a program of several shapes is tried: the default, every listed one, the least and the greatest of its ranges.

    Inputs of several shapes change together, in the order of their lists. The default comes first.
    """
    default = {name: spec.shape for name, spec in inputs.items()}
    count = max((len(choice.enumerated) for choice in shapes.values()), default=0)
    choices = [default]
    choices += [
        default | {name: choice.enumerated[min(place, len(choice.enumerated) - 1)] for name, choice in shapes.items() if choice.enumerated}
        for place in range(count)
    ]
    choices += [
        default | {name: tuple(ends[end] for ends in choice.ranges) for name, choice in shapes.items() if choice.ranges} for end in (0, 1)
    ]
    return tuple(choice for place, choice in enumerate(choices) if choice not in choices[:place])
