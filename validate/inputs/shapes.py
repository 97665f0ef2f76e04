"""The shapes in which a package of several is compared: its default, every enumerated one, and the least and the greatest of its ranges.

An open end of a range stands for twice the default, and one beyond 1024 for 1024, or for twice the default if that is more: a package may
allow what no machine has room for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from coreflow.export.package.graph import Feature, Interface
from coreflow.models.spec import TensorSpec
from coreflow.validate.inputs.samples import Specs

_FAR = 1024  # elements along one axis


def other_shapes(specs: Specs, interface: Interface) -> tuple[dict[str, TensorSpec], ...]:
    """``specs`` in every shape to compare beside the default; inputs of several shapes change together, in the order of their lists."""
    features = {feature.name: feature for feature in interface.inputs if feature.name in specs}
    listed = max((len(feature.enumerated) for feature in features.values()), default=0)
    choices = [{name: _listed(feature, place) for name, feature in features.items()} for place in range(listed)]
    choices += [{name: ends(feature) for name, feature in features.items()} for ends in (_least, _greatest)]
    unlike = [dict(specs)]
    for choice in choices:
        shaped = {name: _in_shape(spec, choice.get(name)) for name, spec in specs.items()}
        if shaped not in unlike:
            unlike.append(shaped)
    return tuple(unlike[1:])


def describe_shapes(shapes: Mapping[str, Sequence[int]]) -> str:
    """``x [1, 32]``, a shape for every input."""
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def _listed(feature: Feature, place: int) -> tuple[int, ...]:
    return feature.enumerated[place] if place < len(feature.enumerated) else feature.shape


def _least(feature: Feature) -> tuple[int, ...]:
    return tuple(max(1, low) for low, _ in feature.ranges) or feature.shape


def _greatest(feature: Feature) -> tuple[int, ...]:
    if not feature.ranges:
        return feature.shape
    return tuple(_end(high, default) for (_, high), default in zip(feature.ranges, feature.shape, strict=True))


def _end(high: int | None, default: int) -> int:
    return 2 * default if high is None else min(high, max(_FAR, 2 * default))


def _in_shape(spec: TensorSpec, extents: tuple[int, ...] | None) -> TensorSpec:
    """``spec`` in another shape; an image keeps its batch and its channels."""
    return spec if extents is None else replace(spec, shape=(*spec.shape[: len(spec.shape) - len(extents)], *extents))
