"""A stage: a module with fixed inputs and outputs, and a source of inputs like those it meets in use. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from coreflow.models.arrays import Array, Draw
from coreflow.models.draws import draw_inputs
from coreflow.models.errors import ConfigError, first_line
from coreflow.models.spec import TensorSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """A module with fixed inputs and outputs. One stage becomes one package.

    >>> Stage(name="head", module=head, inputs={"x": TensorSpec((1, 64))}, outputs=("y",))

    The inputs are passed to the module's ``forward`` by name where it has their names, else in this order. ``outputs`` pick among what it
    returns by name (a dict, a dataclass), and otherwise name the tensors in order. ``draw`` gives one set of inputs per seed, like those
    that the module meets in use; without it they are drawn by their specs (``draws``): masks are prefixes of tokens.
    """

    name: str
    module: "nn.Module" = field(repr=False)
    inputs: Mapping[str, TensorSpec]
    outputs: tuple[str, ...]
    description: str = ""
    draw: Draw | None = field(default=None, repr=False)

    def inputs_for(self, seed: int) -> dict[str, Array]:
        """One set of inputs in the dtypes of the specs, the same for the same seed."""
        of = f"{type(self).__name__.lower()} {self.name!r}"
        try:
            drawn = draw_inputs(self.inputs, seed) if self.draw is None else dict(self.draw(seed))
        except ConfigError as error:
            raise ConfigError(f"{of}: {error}") from error
        except Exception as error:
            raise ConfigError(f"{of}: draw fails on seed {seed}: {type(error).__name__}: {first_line(error)}") from error
        expected = {name: (spec.shape, spec.dtype) for name, spec in self.inputs.items()}
        actual = {
            name: (array.shape, str(array.dtype)) if isinstance(array, np.ndarray) else type(array).__name__
            for name, array in drawn.items()
        }
        if actual != expected:
            raise ConfigError(f"{of}: draw gives {actual}, the inputs are {expected}")
        return drawn
