"""A stage: a module with fixed inputs and outputs, and a source of inputs like those it meets in use. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from coreflow.models.arrays import Array, Draw
from coreflow.models.errors import ConfigError
from coreflow.models.spec import TensorSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """A module with fixed inputs and outputs. One stage becomes one package.

    >>> Stage(name="head", module=head, inputs={"x": TensorSpec((1, 64))}, outputs=("y",))

    The inputs are passed to the module's ``forward`` in this order. ``draw`` gives one set of inputs per seed, like those
    that the module meets in use; without it, standard normal floats and whole numbers are drawn within the bounds.
    """

    name: str
    module: "nn.Module" = field(repr=False)
    inputs: Mapping[str, TensorSpec]
    outputs: tuple[str, ...]
    description: str = ""
    draw: Draw | None = field(default=None, repr=False)

    def inputs_for(self, seed: int) -> dict[str, Array]:
        """One set of inputs in the dtypes of the specs, the same for the same seed."""
        if self.draw is None:
            random = np.random.default_rng(seed)
            return {name: draw_tensor(spec, random) for name, spec in self.inputs.items()}
        drawn = dict(self.draw(seed))
        expected = {name: (spec.shape, spec.dtype) for name, spec in self.inputs.items()}
        actual = {name: (array.shape, str(array.dtype)) for name, array in drawn.items()}
        if actual != expected:
            raise ConfigError(f"{type(self).__name__.lower()} {self.name!r}: draw gives {actual}, the inputs are {expected}")
        return drawn


def draw_tensor(spec: TensorSpec, random: np.random.Generator) -> Array:
    """Random values for one tensor: standard normal, or uniform within the bounds; integers without bounds are refused."""
    if spec.dtype == "int32":
        if spec.bounds is None:
            raise ConfigError(f"an int32 input of shape {spec.shape} has no bounds; give TensorSpec(..., bounds=(0, vocabulary - 1))")
        return random.integers(int(spec.bounds[0]), int(spec.bounds[1]) + 1, spec.shape).astype(np.int32)
    if spec.bounds is None:
        return random.standard_normal(spec.shape).astype(spec.dtype)
    return random.uniform(*spec.bounds, spec.shape).astype(spec.dtype)
