"""Everything that decides the bytes of one package."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import nn

from coreflow.models.arrays import Array, Draw
from coreflow.models.errors import ConfigError
from coreflow.models.spec import PRECISIONS, Precision, TensorSpec

Target = Literal["iOS16", "iOS17", "iOS18"]
TARGETS: tuple[Target, ...] = ("iOS16", "iOS17", "iOS18")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """A module, its inputs and outputs, and how it is converted.

    >>> Recipe(name="head", module=head, inputs={"x": TensorSpec((1, 64))}, outputs=("y",))

    The inputs are passed to the module's ``forward`` in this order. ``draw`` gives one set of inputs per seed, like those
    that the module meets in use; without it, standard normal floats and whole numbers are drawn within the bounds.
    """

    name: str
    module: nn.Module = field(repr=False)
    inputs: Mapping[str, TensorSpec]
    outputs: tuple[str, ...]
    target: Target = "iOS17"  # iOS18 where states, several functions or grouped palettes need it
    precision: Precision = "fp16"  # fp32 is for looking for faults; it never runs on the engine
    description: str = ""
    draw: Draw | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", tuple(self.outputs))
        object.__setattr__(self, "inputs", dict(self.inputs))
        problems = []
        if not isinstance(self.module, nn.Module):
            problems.append(f"module is a {type(self.module).__name__}, not an nn.Module")
        if self.target not in TARGETS:
            problems.append(f"target {self.target!r}; choose one of {', '.join(TARGETS)}")
        if self.precision not in PRECISIONS:
            problems.append(f"precision {self.precision!r}; choose {' or '.join(PRECISIONS)}")
        if not self.inputs or not self.outputs:
            problems.append("at least one input and one output are needed")
        names = [self.name, *self.inputs, *self.outputs]
        # The converter renames others without a word: "x-1" becomes "x_1".
        problems += [f"name {name!r}; letters, digits and _ only, no digit first" for name in names if not _NAME.fullmatch(name)]
        if repeated := sorted({name for name in names[1:] if names[1:].count(name) > 1}):
            problems.append(f"{', '.join(repeated)} named twice; inputs and outputs need names of their own")
        if problems:
            raise ConfigError(f"recipe {self.name!r}: {'; '.join(problems)}")

    def inputs_for(self, seed: int) -> dict[str, Array]:
        """One set of inputs in the dtypes of the specs, the same for the same seed."""
        if self.draw is None:
            random = np.random.default_rng(seed)
            return {name: draw_tensor(spec, random) for name, spec in self.inputs.items()}
        drawn = dict(self.draw(seed))
        expected = {name: (spec.shape, spec.dtype) for name, spec in self.inputs.items()}
        actual = {name: (array.shape, str(array.dtype)) for name, array in drawn.items()}
        if actual != expected:
            raise ConfigError(f"recipe {self.name!r}: draw gives {actual}, the inputs are {expected}")
        return drawn

    def to_json(self) -> dict[str, Any]:
        """The entry of the manifest; the weights are covered by the fingerprint."""
        return {"name": self.name, "target": self.target, "precision": self.precision, "description": self.description}


def draw_tensor(spec: TensorSpec, random: np.random.Generator) -> Array:
    """Random values for one tensor: standard normal, or uniform within the bounds; integers without bounds are refused."""
    if spec.dtype == "int32":
        if spec.bounds is None:
            raise ConfigError(f"an int32 input of shape {spec.shape} has no bounds; give TensorSpec(..., bounds=(0, vocabulary - 1))")
        return random.integers(int(spec.bounds[0]), int(spec.bounds[1]) + 1, spec.shape).astype(np.int32)
    if spec.bounds is None:
        return random.standard_normal(spec.shape).astype(spec.dtype)
    return random.uniform(*spec.bounds, spec.shape).astype(spec.dtype)
