"""Everything that decides the bytes of one package."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from coreflow.export.capture.modules import as_module
from coreflow.models.errors import ConfigError
from coreflow.models.spec import PRECISIONS, Precision
from coreflow.models.stage import Stage

Target = Literal["iOS16", "iOS17", "iOS18"]
TARGETS: tuple[Target, ...] = ("iOS16", "iOS17", "iOS18")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe(Stage):
    """A stage and how it is converted: what a user says of one package.

    >>> Recipe(name="head", module=head, inputs={"x": TensorSpec((1, 64))}, outputs=("y",))

    ``name``, ``module``, ``inputs``, ``outputs``, ``description`` and ``draw`` are those of a ``Stage``. ``source`` is set by
    ``load_recipes``. ``ConfigError`` lists everything that could not be converted as it is named.
    """

    target: Target = "iOS17"  # iOS18 where states, several functions or grouped palettes need it
    precision: Precision = "fp16"  # fp32 is for looking for faults; it never runs on the engine
    source: str = ""  # FILE.py:NAME that it was loaded from

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", tuple(self.outputs))
        object.__setattr__(self, "inputs", dict(self.inputs))
        problems = []
        if (module := as_module(self.module)) is None:
            problems.append(f"module is a {type(self.module).__name__}, neither an nn.Module nor an object that is called and holds some")
        else:
            object.__setattr__(self, "module", module)
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

    def to_json(self) -> dict[str, Any]:
        """The entry of the manifest; the weights are covered by the fingerprint."""
        return {"name": self.name, "target": self.target, "precision": self.precision, "description": self.description}
