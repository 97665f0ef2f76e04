"""What every backend gives back, and what it may be asked for."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args

import numpy.typing as npt

from coreflow.models.arrays import Array
from coreflow.models.errors import UnsupportedError
from coreflow.models.spec import TensorSpec

Backend = Literal["auto", "coreml", "lifted"]
Engine = Literal["auto", "interpreter", "module", "onnxruntime"]
ComputeUnits = Literal["all", "cpu_only", "cpu_and_gpu", "cpu_and_ne"]
COMPUTE_UNITS: tuple[str, ...] = get_args(ComputeUnits)


class State(Protocol):
    """The tensors that a program keeps between predictions; one object a conversation."""

    def read(self, name: str) -> Array:
        """A copy of the state ``name``."""

    def write(self, name: str, value: npt.ArrayLike) -> None:
        """Replaces the state ``name``; shape and dtype are checked."""


class Model(Protocol):
    """One function of a package, ready to predict."""

    @property
    def backend(self) -> str:
        """``coreml`` or ``lifted``: what really executes."""

    @property
    def inputs(self) -> dict[str, TensorSpec]:
        """What ``predict`` takes."""

    @property
    def outputs(self) -> dict[str, TensorSpec]:
        """What ``predict`` gives."""

    @property
    def states(self) -> dict[str, TensorSpec]:
        """What ``make_state`` holds."""

    @property
    def metadata(self) -> dict[str, Any]:
        """What the package says about itself."""

    def predict(self, inputs: Mapping[str, Any], state: State | None = None) -> dict[str, Any]:
        """The outputs by name; ``InputError`` for what the program cannot take. The caller's arrays are left as they are."""

    def make_state(self) -> State:
        """A fresh state, all zeros; ``UnsupportedError`` when the program keeps none."""


def check_compute_units(name: str) -> None:
    """``UnsupportedError`` for compute units that do not exist."""
    if name not in COMPUTE_UNITS:
        raise UnsupportedError(f"compute units {name!r}; choose one of {', '.join(COMPUTE_UNITS)}")
