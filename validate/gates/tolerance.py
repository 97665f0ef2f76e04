"""Tolerances: how far a package may be from its reference, as frozen values with their reasons. Standard library only."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

from coreflow.models import fp16
from coreflow.models.errors import ConfigError

# Unit roundoff: the most that one rounding changes a number, relative to it.
UNIT_ROUNDOFF = {"fp16": fp16.UNIT_ROUNDOFF, "fp32": 2.0**-24}
# A decision nearer to its border than this many times the noise may fall either way: six standard deviations of the
# difference of two executions that are each off by the noise.
DECISION_FACTOR = 6 * math.sqrt(2)
# What two executions in fp32 of the same module may differ by, relative RMS. fp32 noise of deep networks stays below 5e-6; the
# smallest fault worth finding, fp16 rounding of the weights, begins at 2e-4.
FP32_NOISE = 5e-5
# Relative RMS error of a fresh conversion at FLOAT32 above which something was translated wrongly.
TRANSLATION = 1e-6
# Share of the budget up to which what a fresh conversion is off by is a warning: fp16 hides it, and the converter is to blame.
CONVERTERS_SHARE = 0.1
# Largest RMS error of a package, and of torch's own fp16, as shares of the output's RMS. On natural inputs fp16 costs pretrained networks
# 0.02 to 0.5 % (MobileNetV2 most), and they are shipped everywhere; the same networks with weights in bf16 lose 0.7 to 6 %.
CONTRACT = CEILING = 1e-2
SEEDS = 8
QUICK_SEEDS = 2  # of a quick look
MAX_SEEDS = 64
MIN_DECIDED = 4  # samples whose decisions are all clear, without which the verdict is incomplete
MAX_AMBIGUOUS_SHARE = 0.5
# Share of healthy outputs that a few-element factor lets pass.
_CONFIDENCE = 0.999


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Limits for one output. Ratios are errors divided by the budget: the error of an independent fp16 execution of the same module.

    >>> validate("encoder.mlpackage", recipe, tolerance=replace(LIFTED, rms_pass=2.0, rms_warn=2.0))
    >>> validate("small.mlpackage", recipe, tolerance=by_share(0.05))  # 5 % of the output, for compressed packages
    """

    rms_pass: float  # ratio of the RMS errors
    rms_warn: float  # above ``rms_pass`` and up to here: a warning
    max_ratio: float  # ratio of the largest errors
    slice_ratio: float  # ratio of the RMS errors within any row, channel or sample
    floor: float  # smallest budget, in unit roundoffs of RMS(reference)
    ceiling: float  # largest budget, as a share of RMS(reference), with which a package can pass
    # The contract: the largest RMS error, as a share of RMS(reference), whatever the unit of the output. Not the largest error of an
    # element, which is 4.5 times the RMS error in a healthy 12-layer transformer, in torch's own fp16 as well (d = 256, random weights).
    contract: float
    unit_roundoff: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of outputs that a caller sets, as shares of RMS(reference); None where the default is right.

    >>> validate("detector.mlpackage", DETECTOR, output_limits={"boxes": Limits(contract=0.02)})
    """

    contract: float | None = None
    ceiling: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("contract", self.contract), ("ceiling", self.ceiling)):
            if value is not None and not 0 < value < 1:
                raise ConfigError(f"a {name} of {value:g}; a share of the output's RMS is right, 0.01 for 1 %")

    def on(self, tolerance: Tolerance) -> Tolerance:
        """``tolerance`` with these limits. A contract above the ceiling raises it: who accepts 2 % of error accepts it from fp16, too."""
        contract = tolerance.contract if self.contract is None else self.contract
        ceiling = self.ceiling
        if ceiling is None:
            ceiling = tolerance.ceiling if self.contract is None else max(tolerance.ceiling, self.contract)
        return replace(tolerance, contract=contract, ceiling=ceiling)


LIFTED = Tolerance(
    rms_pass=1.5,
    rms_warn=1.5,
    max_ratio=3.0,
    slice_ratio=2.5,
    floor=0.5,
    ceiling=CEILING,
    contract=CONTRACT,
    unit_roundoff=UNIT_ROUNDOFF["fp16"],
    why="Executed with fp16 storage and wide accumulation, a healthy transformer of 1 to 24 layers stays below 1.1 in RMS, 2.3 in its "
    "largest error and 2.0 in its worst row (random weights, d = 256, torch on a CPU), pretrained networks below 1.2, 1.6 and, few "
    "elements allowed for, 1.4; the least of the faults worth finding, bf16 weights, begins at 2.6.",
)
DEVICE = Tolerance(
    rms_pass=2.0,
    rms_warn=4.0,
    max_ratio=6.0,
    slice_ratio=5.0,
    floor=0.5,
    ceiling=CEILING,
    contract=CONTRACT,
    unit_roundoff=UNIT_ROUNDOFF["fp16"],
    why="A device may accumulate in fp16 and evaluate activations by tables: twice the budget passes, up to four times is a warning. "
    "The other ratios are those of the lifted program, doubled.",
)
FP32 = Tolerance(
    rms_pass=4.0,
    rms_warn=8.0,
    max_ratio=12.0,
    slice_ratio=10.0,
    floor=2.0,
    ceiling=1e-4,
    contract=1e-4,
    unit_roundoff=UNIT_ROUNDOFF["fp32"],
    why="For packages in fp32. The budget is the error of torch's own fp32, whose order of summation is one of many.",
)


def by_share(share: float) -> Tolerance:
    """Limits for a package that is meant to differ, as a compressed one: the RMS error may be ``share`` of the output's RMS, and only that
    counts.
    """
    if not 0 < share < 1:
        raise ConfigError(f"a share of {share:g}; between 0 and 1 is right, 0.05 for 5 %")
    return Tolerance(
        rms_pass=math.inf,
        rms_warn=math.inf,
        max_ratio=math.inf,
        slice_ratio=math.inf,
        floor=0.5,
        ceiling=math.inf,
        contract=share,
        unit_roundoff=UNIT_ROUNDOFF["fp16"],
        why="The caller's own limit.",
    )


@lru_cache(maxsize=4096)
def few_elements_factor(freedom: float, comparisons: int = 1) -> float:
    """Limit that the largest of ``comparisons`` ratios of two healthy RMS errors, of N degrees of freedom each, keeps in 99.9 % of cases.

    The quantile of sqrt(F(N, N)) at 1 - 0.001 / comparisons (Bonferroni: at most 0.1 % of false alarms, however the ratios depend on one
    another). The two errors come from independent executions of one module, so that numerator and denominator have the same N, which
    need be no whole number (``metrics.independent_share``). P(F > f) is the incomplete beta function I_y(N/2, N/2) at y = 1 / (1 + f).
    """
    if freedom <= 0:
        return math.inf
    freedom, tail = max(freedom, 1.0), (1 - _CONFIDENCE) / comparisons
    if freedom > 200:
        # F is a function of Student's t: sqrt(F) = x + sqrt(x * x + 1), where x = t / sqrt(N) (Cacoullos 1965, JASA 60, 528-531), and
        # t one of the normal quantile z (Cornish and Fisher's expansion, Abramowitz and Stegun 26.7.5, right to 3e-5).
        z = NormalDist().inv_cdf(1 - tail)
        t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        x = t / math.sqrt(freedom)
        return x + math.sqrt(x * x + 1)
    low, high = 0.0, 100.0  # of log F
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_tail(1 / (1 + math.exp(middle)), freedom / 2) > tail else (low, middle)
    return math.exp(low / 2)


def _beta_tail(y: float, a: float) -> float:
    """I_y(a, a) for y up to 1/2: a series whose terms are all positive, DLMF 8.17.8 with 15.8.1."""
    total = term = 1.0
    place = 0
    while term > 1e-17 * total:
        term *= (2 * a + place) / (a + 1 + place) * y
        total += term
        place += 1
    return total / a * math.exp(a * (math.log(y) + math.log1p(-y)) + math.lgamma(2 * a) - 2 * math.lgamma(a))
