"""Options of a validation: one value from the public functions down to the ladder."""

from dataclasses import dataclass
from pathlib import Path

from coreflow.runtime.backend import Backend, ComputeUnits, LoadOptions, NumericsName
from coreflow.validate.gates.tolerance import Tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Where a failure leaves the files that replay it.

    >>> Evidence(folder=Path("artifacts/replays"), reference="recipes.py:ENCODER")
    """

    folder: Path
    reference: str | Path | None = None  # how the reference was named, FILE.py:NAME or a path: a replay needs it


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a validation: execution, limits, inputs, and the evidence that a failure leaves.

    >>> options = Options(backend="lifted", sweep=True)
    >>> options = replace(options, tolerance=by_share(0.05))
    """

    backend: Backend = "auto"
    numerics: NumericsName = "fp16"
    compute_units: ComputeUnits = "all"
    tolerance: Tolerance | None = None  # None: the one for the package's precision and the backend
    sweep: bool = False  # whether extreme inputs join the samples
    evidence: Evidence | None = None
    fp32_package: Path | None = None  # the module converted at FLOAT32 (R2); None: it is converted anew

    @property
    def loading(self) -> LoadOptions:
        """How the package is loaded: by the interpreter, whose results are the same bits in every run and whose ops can be observed."""
        return LoadOptions(backend=self.backend, numerics=self.numerics, engine="interpreter", compute_units=self.compute_units)
