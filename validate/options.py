"""Options of a validation: one value from the public functions down to the ladder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from coreflow.models.errors import ConfigError
from coreflow.runtime.backend import Backend, ComputeUnits, LoadOptions, NumericsName
from coreflow.validate.gates.tolerance import QUICK_SEEDS, SEEDS, Limits, Tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Where a failure leaves the files that replay it.

    >>> Evidence(folder=Path("artifacts/replays"), reference="recipes.py:ENCODER")
    """

    folder: Path
    reference: str | Path | None = None  # how the reference was named, FILE.py:NAME or a path: a replay needs it


PhaseName = Literal[
    "opening", "converting anew", "saved program", "reference", "fresh conversion", "unrounded program", "gates", "ops", "chain"
]
# Shares of the time on a package, or on a chain, that are past when a phase begins and when it ends, about.
_SPANS: Mapping[PhaseName, tuple[float, float]] = {
    "opening": (0.0, 0.05),
    "converting anew": (0.05, 0.35),
    "saved program": (0.35, 0.65),
    "reference": (0.65, 0.80),
    "fresh conversion": (0.80, 0.85),
    "unrounded program": (0.85, 0.90),
    "gates": (0.90, 0.92),
    "ops": (0.92, 1.0),
    "chain": (0.0, 1.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What a validation is doing, and the share of its time that is past, about.

    >>> options = Options(progress=lambda phase: print(f"{phase.share:.0%} {phase.part}: {phase.name}"))
    """

    part: str  # the package, or "cascade"
    name: PhaseName
    share: float  # 0 to 1


def _ignore(phase: Phase) -> None:
    """Nobody watches."""


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
    limits: Limits = field(default_factory=Limits)  # of every output, instead of the tolerance's
    output_limits: Mapping[str, Limits] = field(default_factory=dict)  # by output, instead of those
    sweep: bool = False  # whether extreme inputs join the samples
    evidence: Evidence | None = None
    accepted: Mapping[str, str] = field(default_factory=dict)  # op -> why what a conversion changes there does not matter
    fp32_package: Path | None = None  # the module converted at FLOAT32 (R2); None: it is converted anew
    quick: bool = False  # two seeds, and no op is looked at
    function_name: str | None = None  # one of several in a package; None: its default
    seeds: int | None = None  # samples that are drawn, more where too few are decided; None: 8, or 2 if ``quick``
    progress: Callable[[Phase], None] = _ignore

    def __post_init__(self) -> None:
        if self.first_seeds < 1:
            raise ConfigError(f"{self.first_seeds} seeds; at least 1 is right")
        if missing := [op or "an op without a name" for op, reason in self.accepted.items() if not (op.strip() and reason.strip())]:
            raise ConfigError(f"{', '.join(missing)} cannot be accepted without a reason; give OP:REASON")

    @property
    def first_seeds(self) -> int:
        """Number of samples that are drawn at first."""
        return self.seeds if self.seeds is not None else QUICK_SEEDS if self.quick else SEEDS

    @property
    def omissions(self) -> str:
        """What these options leave out of a whole validation, in words; empty where they do not."""
        parts = [f"{self.first_seeds} of {SEEDS} seeds were drawn"] if self.first_seeds < SEEDS else []
        parts += ["no op was looked at, so that none is named and no range that was never reached"] if self.quick else []
        return f"{' and '.join(parts)}: less than a whole validation looks at" if parts else ""

    def as_part(self, place: int, parts: int) -> "Options":
        """These options for one of several parts: its shares are announced as those of the whole."""
        return replace(self, progress=lambda phase: self.progress(replace(phase, share=(place + phase.share) / parts)))

    def announce(self, part: str, name: PhaseName, done: float = 0.0) -> None:
        """Tell ``progress`` which phase of ``part`` runs, and which share of it is done."""
        start, end = _SPANS[name]
        self.progress(Phase(part=part, name=name, share=start + done * (end - start)))

    @property
    def loading(self) -> LoadOptions:
        """How the package is loaded: by the interpreter, whose results are the same bits in every run and whose ops can be observed."""
        return LoadOptions(backend=self.backend, numerics=self.numerics, engine="interpreter", compute_units=self.compute_units)
