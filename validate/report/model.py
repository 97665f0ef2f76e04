"""Reports of a validation, as frozen values. Standard library only; ``terminal`` and ``formats`` render them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["pass", "warn", "fail", "fp16-unsafe", "incomplete"]
RungName = Literal["R0", "R1", "R2", "R2s", "R3", "R4", "R5"]  # see ``ladder``
Cause = Literal["translation", "weights", "fp16", "device", "non-finite", "structure"]
# From the worst to the best: the outcome of a whole is the worst of its parts'.
SEVERITY: tuple[Outcome, ...] = ("fail", "fp16-unsafe", "incomplete", "warn", "pass")
# From the one that explains most to the one that explains least.
CAUSES: tuple[Cause, ...] = ("structure", "non-finite", "translation", "weights", "fp16", "device")


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The worst of ``outcomes``; incomplete where there are none."""
    return min(outcomes, key=SEVERITY.index, default="incomplete")


def exit_code_of(verdict: Outcome, cause: Cause | None, *, strict: bool = False) -> int:
    """0 pass, 1 tolerance, 3 structure or non-finite, 4 translation, 5 incomplete, 6 FP16-UNSAFE; 2 is the usage's."""
    if verdict == "fail":
        return {"structure": 3, "non-finite": 3, "translation": 4}.get(cause or "", 1)
    return {"pass": 0, "warn": 1 if strict else 0, "incomplete": 5, "fp16-unsafe": 6}[verdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One condition and how it came out; ``value <= limit`` passes.

    >>> Gate(name="rho_rms", outcome="pass", value=1.2, limit=1.5).used
    0.8
    """

    name: str  # finite, reference, reacts, rho_rms, rho_max, rho_slice, ceiling, contract, translation, program, exact, cosine, neighbours
    outcome: Outcome
    value: float
    limit: float
    text: str = ""  # what was found, in words, where the numbers do not say it

    @property
    def used(self) -> float:
        """Share of the limit that is used up."""
        return self.value / self.limit if self.limit > 0 else 0.0 if self.value == 0 else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """How far one execution of the ladder is from R0 at one output.

    >>> output.rungs["R4"].rho
    1.02
    """

    relative_rms: float  # RMS(error) / RMS(reference)
    rho: float  # RMS(error) / budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One element of an output, in the reference, the simulation and the package.

    >>> element = output.worst_elements[0]
    >>> f"{element.sample} {element.index}: {element.actual} instead of {element.reference}"
    'seed 3 (0, 17): 1.49 instead of 1.5'
    """

    sample: str
    index: tuple[int, ...]
    reference: float
    simulated: float  # by torch's own fp16
    actual: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plots:
    """Data of one output's pictures; a fixed choice of elements where there are too many.

    >>> list(zip(output.plots.reference, output.plots.error))  # points of the scatter plot
    [(0.5, 0.0001), ...]
    """

    reference: tuple[float, ...] = ()  # |reference| and |error| of the same elements
    error: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()  # log10 |error|: borders of the bins, one more than there are counts
    actual_counts: tuple[int, ...] = ()
    simulated_counts: tuple[int, ...] = ()
    margin: tuple[float, ...] = ()  # of rows: the reference's largest minus its second largest value,
    perturbation: tuple[float, ...] = ()  # and how much the package moved the two against each other


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputReport:
    """One output over all samples. Errors are against float64; the unit is the output's.

    >>> output = report.outputs["surface"]
    >>> output.outcome, output.headroom, [gate.name for gate in output.failed_gates]
    ('fail', -0.4, ['rho_rms'])
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    elements: int  # compared, all samples together
    reference_rms: float
    relative_rms: float  # RMS(error) / RMS(reference)
    snr_db: float
    budget: float  # RMS error of torch's own fp16
    rho_rms: float  # RMS(error) / budget
    rho_max: float  # largest error / the largest of torch's own fp16
    rho_slice: float  # of the worst row, channel or sample
    worst_slice: str
    max_abs: float
    contract: float  # the RMS error that the contract allows
    mean_drift: float  # mean(actual) - mean(reference)
    std_drift: float
    non_finite: int  # where the reference is finite
    overflowed: int  # of these, beyond what fp16 holds
    flips: int  # of integers
    rungs: Mapping[RungName, Rung]  # R1 to R5, in this order, those that ran
    gates: tuple[Gate, ...]
    worst_elements: tuple[Element, ...] = ()  # three at most, the worst first
    plots: Plots = Plots()

    @property
    def largest_jump(self) -> RungName | None:
        """The rung whose error grows most over that of the rung before it; None where none grows."""
        before: float = 0.0
        jumps: dict[RungName, float] = {}
        for name, rung in self.rungs.items():
            jumps[name] = rung.relative_rms - before
            before = rung.relative_rms
        largest = max(jumps, key=lambda name: jumps[name] if jumps[name] == jumps[name] else float("inf"), default=None)
        return largest if largest is not None and not jumps[largest] <= 0 else None

    @property
    def outcome(self) -> Outcome:
        """The worst outcome of the gates."""
        return worst(gate.outcome for gate in self.gates)

    @property
    def headroom(self) -> float:
        """Share of the tightest limit that is left; below 0 when it is exceeded."""
        return 1 - max((gate.used for gate in self.gates if gate.used == gate.used), default=0.0)

    @property
    def failed_gates(self) -> tuple[Gate, ...]:
        """Gates that did not pass, the worst first."""
        return tuple(sorted((gate for gate in self.gates if gate.outcome != "pass"), key=lambda gate: SEVERITY.index(gate.outcome)))


@dataclass(frozen=True, slots=True, kw_only=True)
class AmbiguousSample:
    """A sample in which a hard decision lies within fp16 noise of its border.

    >>> [sample.label for sample in report.samples.ambiguous if sample.left_out]
    ['seed 3']
    """

    label: str
    left_out: bool  # a decision fell otherwise in the package or in torch's own fp16: not in the ratios
    nearness: float  # distance of the nearest decision from its border, in multiples of what counts as clear
    differing: int  # elements that differ by more than fp16 noise, as they may
    elements_left_out: int = 0  # elements that are not in the ratios although their sample is: their own decision fell otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Counts of the samples that were compared.

    >>> Samples(seeds=(0, 1), drawn=2, given=3).total
    5
    """

    seeds: tuple[int, ...]
    drawn: int  # samples made from the seeds
    given: int  # golden samples and the caller's
    ambiguous: tuple[AmbiguousSample, ...] = ()

    @property
    def total(self) -> int:
        """Count of all samples."""
        return self.drawn + self.given

    @property
    def left_out(self) -> int:
        """Count of ambiguous samples that are not in the ratios."""
        return sum(sample.left_out for sample in self.ambiguous)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where in the torch source a value of the program comes from.

    >>> f"{origin.module}, {origin.file}:{origin.line}"
    'layers.0.attention, model.py:31'
    """

    module: str  # path in the module tree, "layers.0.attention"; empty for the module itself
    operation: str  # of torch: "aten.gelu.default"
    file: str  # as Python knows it, shortened to what lies below the working folder or site-packages
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpReport:
    """One op of the program over all samples; sizes are of its first output that holds floats.

    >>> [op.name for op in report.ops if op.overflowed]
    ['scores']
    """

    index: int  # place in execution order
    name: str
    type: str
    shape: tuple[int, ...]
    origin: Origin | None  # None where no torch operation gives the same numbers
    local_rho: float  # RMS error against a float64 evaluation on the same inputs, in roundings of the result: about 1 is healthy
    ulps: float  # the largest local error, in units of the last place of the largest result
    ulps_limit: float
    accumulated: float  # relative RMS error against the program in fp64
    amplification: float  # accumulated error of the result / the largest one among the inputs (at least one rounding)
    largest: float  # |result|, finite values only
    smallest: float  # smallest |result| that is not zero
    overflowed: int  # results that are not finite where the float64 evaluation is
    underflowed: float  # share of results below 6.1e-5, the smallest normal fp16 number, where the float64 evaluation is not zero
    never_exercised: tuple[str, ...] = ()  # ranges in which such an op misbehaves and that no input reached


@dataclass(frozen=True, slots=True, kw_only=True)
class Culprit:
    """An op that explains an error.

    >>> report.culprits[0].kind, report.culprits[0].module, report.culprits[0].line
    ('rounding', 'layers.0.attention', 31)
    """

    kind: Literal["translation", "weights", "non-finite", "constant", "underflow", "rounding", "amplification"]
    name: str  # of the op in the program
    type: str
    ratio: float  # how many times more than is healthy
    text: str
    origin: Origin | None = None

    @property
    def module(self) -> str | None:
        """Path in the module tree."""
        return None if self.origin is None else self.origin.module

    @property
    def file(self) -> str | None:
        """Python source file."""
        return None if self.origin is None else self.origin.file

    @property
    def line(self) -> int | None:
        """Line in ``file``."""
        return None if self.origin is None else self.origin.line


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantReport:
    """A constant that fp16 does not hold well.

    >>> [f"{constant.name} {constant.problem}" for constant in report.constants]
    ['eps is 0 in fp16']
    """

    name: str
    op: str  # that reads it
    problem: str  # "overflows", "is 0 in fp16", "is subnormal in fp16"
    value: float  # the worst of its elements
    elements: int  # how many of them


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedDifference:
    """An op that every conversion of the module changes, and why that does not matter; a caller said so.

    >>> [f"{difference.op}: {difference.reason}" for difference in report.accepted]
    ['input_1_abs: rows are never as small as epsilon']
    """

    op: str
    reason: str
    relative_rms: float  # of a fresh conversion at FLOAT32, at the output that it changes most


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The verdict on one package.

    >>> report = validate("encoder.mlpackage", recipe)
    >>> report.verdict, report.cause, report.exit_code
    ('fail', 'weights', 1)
    """

    name: str
    package: str
    digest: str
    weights_digest: str | None
    backend: str  # the one really used
    numerics: str
    compute_units: str
    precision: str
    verdict: Outcome
    cause: Cause | None
    text: str  # the verdict in one line
    outputs: Mapping[str, OutputReport]
    samples: Samples
    versions: Mapping[str, str]
    seconds: float
    problems: tuple[str, ...] = ()  # structure, and what could not be judged
    reference: str = "torch in float64"
    budget: str = "torch's own fp16"  # whose error the errors are divided by; "heuristic" in reports of earlier releases
    notes: tuple[str, ...] = ()  # what a reader should know and no gate judges
    ops: tuple[OpReport, ...] = ()  # in execution order; empty when they were not looked at
    culprits: tuple[Culprit, ...] = ()  # the worst first
    constants: tuple[ConstantReport, ...] = ()
    accepted: tuple[AcceptedDifference, ...] = ()  # whose gates of translation pass
    compute_unit_rho: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # compute unit -> output -> rho_rms
    replay: str | None = None  # file that reproduces the worst sample alone
    replay_package: str | None = None  # where its package is, if a replay has to be told

    @property
    def exit_code(self) -> int:
        """Exit code of the command; see ``exit_code_of``."""
        return exit_code_of(self.verdict, self.cause)

    def exit_code_for(self, *, strict: bool) -> int:
        """Exit code of the command; ``strict`` makes a warning a failure."""
        return exit_code_of(self.verdict, self.cause, strict=strict)

    @property
    def by_headroom(self) -> tuple[OutputReport, ...]:
        """The outputs, the tightest first."""
        return tuple(sorted(self.outputs.values(), key=lambda output: (SEVERITY.index(output.outcome), output.headroom)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAgreement:
    """Greedy decoding by the packages against greedy decoding in float64.

    >>> TokenAgreement(sentences=1, tokens=9, equal=8, explained=("'a b', token 3",), unexplained=()).share
    0.8888888888888888
    """

    sentences: int
    tokens: int
    equal: int
    explained: tuple[str, ...]  # sentences that differ where the reference itself is undecided
    unexplained: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of equal tokens."""
        return self.equal / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainRow:
    """One stage fed with the reference's inputs, beside the chain up to and with it.

    >>> [(row.stage, row.teacher_forced, row.cascaded) for row in report.cascade.rows]
    [('encoder', 1.0, 1.1), ...]
    """

    stage: str
    output: str  # of the chain
    alone: Outcome
    teacher_forced: float  # the worst rho_rms of the stage alone
    cascaded: float  # rho_rms of the chain's output, against the budget of the whole chain up to there
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """The stages wired together, against torch wired the same way.

    >>> report.cascade.verdict, report.cascade.tokens.share
    ('pass', 1.0)
    """

    verdict: Outcome
    cause: Cause | None
    text: str
    outputs: Mapping[str, OutputReport]
    rows: tuple[ChainRow, ...]
    tokens: TokenAgreement
    samples: Samples
    seconds: float
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleReport:
    """The verdict on a bundle: the worst of its stages and of the cascade.

    >>> report = validate_bundle("artifacts/demo")
    >>> report.verdict, report.failing_stages, report.stages["classifier"].verdict
    ('fail', ('mapper_out',), 'pass')
    """

    bundle: str
    name: str
    kind: str
    created: str
    verdict: Outcome
    cause: Cause | None
    text: str
    stages: Mapping[str, Report]
    cascade: ChainReport | None
    versions: Mapping[str, str]
    seconds: float
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """Exit code of the command; see ``exit_code_of``."""
        return exit_code_of(self.verdict, self.cause)

    def exit_code_for(self, *, strict: bool) -> int:
        """Exit code of the command; ``strict`` makes a warning a failure."""
        return exit_code_of(self.verdict, self.cause, strict=strict)

    @property
    def failing_stages(self) -> tuple[str, ...]:
        """Stages that fail on their own; the cascade is not a stage."""
        return tuple(name for name, stage in self.stages.items() if stage.verdict == "fail")


def first_cause(causes: Sequence[Cause | None]) -> Cause | None:
    """The cause that explains most, structure before arithmetic; None where there is none."""
    return min((cause for cause in causes if cause is not None), key=CAUSES.index, default=None)
