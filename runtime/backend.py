"""The protocol of a loaded model, and the options that every backend may be asked for. Loads neither torch nor coremltools."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy.typing as npt

from coreflow.models.arrays import Array
from coreflow.models.errors import UnsupportedError
from coreflow.models.spec import TensorSpec

Backend = Literal["auto", "coreml", "lifted"]
# Arithmetic of the lifted backend; that of the Neural Engine is a published model, exact or with errors drawn by their size ("fast").
EngineNumericsName = Literal["engine-m1", "engine-m2", "engine-m4", "engine-m5", "engine-m6"]
FastNumericsName = Literal["engine-m1-fast", "engine-m2-fast", "engine-m4-fast", "engine-m5-fast", "engine-m6-fast"]
NumericsName = Literal["fp64", "fp32", "fp16", EngineNumericsName, FastNumericsName]
PUBLISHED_MODEL = "published model of the Neural Engine, not measured"  # the label of everything that those numerics give
EngineName = Literal["auto", "interpreter", "module", "onnxruntime"]  # of the lifted backend
ComputeUnits = Literal["all", "cpu_only", "cpu_and_gpu", "cpu_and_ne"]  # of Core ML
BACKENDS: tuple[str, ...] = get_args(Backend)
ENGINES: tuple[str, ...] = get_args(EngineName)
COMPUTE_UNITS: tuple[str, ...] = get_args(ComputeUnits)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a package is executed; the keywords of ``load_model`` as one value.

    >>> LoadOptions(backend="lifted", numerics="fp64", engine="interpreter")

    Raises ``UnsupportedError`` for a backend or compute units that do not exist; the lifted backend checks its own options.
    """

    backend: Backend = "auto"
    numerics: NumericsName = "fp16"
    device: str = "cpu"
    engine: EngineName = "auto"
    compute_units: ComputeUnits = "all"
    function_name: str | None = None  # None: the package's default function

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UnsupportedError(f"backend {self.backend!r}; choose one of {', '.join(BACKENDS)}", expected=BACKENDS)
        if self.compute_units not in COMPUTE_UNITS:
            text = f"compute units {self.compute_units!r}; choose one of {', '.join(COMPUTE_UNITS)}"
            raise UnsupportedError(text, expected=COMPUTE_UNITS)


DEFAULT = LoadOptions()


class State(Protocol):
    """The tensors that a program keeps between predictions; one object per conversation.

    >>> state = model.make_state()
    >>> model.predict({"token": token}, state=state)
    >>> state.read("cache")
    """

    def read(self, name: str) -> Array:
        """A copy of the state ``name``."""

    def write(self, name: str, value: npt.ArrayLike) -> None:
        """Replaces the state ``name``; shape and dtype are checked."""


class Model(Protocol):
    """One function of a package, ready to predict.

    >>> model: Model = load_model("encoder.mlpackage")
    >>> model.predict({"ids": ids, "mask": mask})["surface"]
    """

    @property
    def backend(self) -> str:
        """``coreml`` or ``lifted``: the backend that really executes."""

    @property
    def inputs(self) -> dict[str, TensorSpec]:
        """The inputs of ``predict``, by name."""

    @property
    def outputs(self) -> dict[str, TensorSpec]:
        """The outputs of ``predict``, by name."""

    @property
    def states(self) -> dict[str, TensorSpec]:
        """The tensors of a state, by name."""

    @property
    def metadata(self) -> dict[str, Any]:
        """Description, author, licence, versions and user-defined entries of the package, as plain data."""

    def predict(self, inputs: Mapping[str, Any], state: State | None = None) -> dict[str, Any]:
        """The outputs by name; ``InputError`` for what the program cannot take. The caller's arrays are left as they are."""

    def make_state(self) -> State:
        """A fresh state, all zeros; ``UnsupportedError`` when the program keeps none."""
