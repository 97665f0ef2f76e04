"""Tolerances: how far a package may be from its reference, as frozen values with their reasons. Standard library only."""

import math
from dataclasses import dataclass
from functools import cache
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
SEEDS = 8
QUICK_SEEDS = 2  # of a quick look
MAX_SEEDS = 64
MIN_DECIDED = 4  # samples whose decisions are all clear, without which the verdict is incomplete
MAX_AMBIGUOUS_SHARE = 0.5
# Share of healthy packages that a few-element factor lets pass.
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
    atol: float  # the contract: RMS(error) <= atol + rtol * RMS(reference)
    rtol: float
    unit_roundoff: float
    why: str

    def contract(self, reference_rms: float) -> float:
        """The RMS error that the contract allows for an output of this RMS, in the output's unit.

        Not the largest error: that of a healthy 12-layer transformer is 6e-3 of the RMS, 4.5 times its RMS error, in torch's own
        fp16 as well (d = 256, random weights), so that 3e-3 would refuse every conversion of it.
        """
        return self.atol + self.rtol * reference_rms


LIFTED = Tolerance(
    rms_pass=1.5,
    rms_warn=1.5,
    max_ratio=3.0,
    slice_ratio=3.0,
    floor=0.5,
    ceiling=1e-2,
    atol=3e-3,
    rtol=3e-3,
    unit_roundoff=UNIT_ROUNDOFF["fp16"],
    why="Executed with fp16 storage and wide accumulation, a healthy transformer of 1 to 24 layers stays below 1.1 in RMS, 2.3 in its "
    "largest error and 2.0 in its worst row (random weights, d = 256, torch on a CPU); the least of the faults worth finding, bf16 "
    "weights, begins at 2.6.",
)
DEVICE = Tolerance(
    rms_pass=2.0,
    rms_warn=4.0,
    max_ratio=6.0,
    slice_ratio=6.0,
    floor=0.5,
    ceiling=1e-2,
    atol=3e-3,
    rtol=3e-3,
    unit_roundoff=UNIT_ROUNDOFF["fp16"],
    why="A device may accumulate in fp16 and evaluate activations by tables: twice the budget passes, up to four times is a warning. "
    "The other ratios are those of the lifted program, doubled.",
)
HEURISTIC = Tolerance(
    rms_pass=2.0,
    rms_warn=2.0,
    max_ratio=math.inf,
    slice_ratio=math.inf,
    floor=0.5,
    ceiling=math.inf,
    atol=3e-3,
    rtol=3e-3,
    unit_roundoff=UNIT_ROUNDOFF["fp16"],
    why="Where nothing can be simulated, twice the error that healthy transformers of that depth have: u * sqrt(0.7 + 0.4 n).",
)
FP32 = Tolerance(
    rms_pass=4.0,
    rms_warn=8.0,
    max_ratio=12.0,
    slice_ratio=12.0,
    floor=2.0,
    ceiling=1e-4,
    atol=1e-4,
    rtol=1e-4,
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
        atol=0.0,
        rtol=share,
        unit_roundoff=UNIT_ROUNDOFF["fp16"],
        why="The caller's own limit.",
    )


@cache
def few_elements_factor(elements: int) -> float:
    """Limit of a ratio of two RMS errors over so many elements in 99.9 % of healthy cases: the quantile of sqrt(F(N, N)).

    With as many degrees of freedom above as below, F is a monotone function of Student's t with N degrees of freedom:
    sqrt(F) = x + sqrt(x * x + 1), where x = t / sqrt(N) (Cacoullos 1965, JASA 60, 528-531).
    """
    if elements < 1:
        return math.inf
    x = _student_quantile(_CONFIDENCE, elements) / math.sqrt(elements)
    return x + math.sqrt(x * x + 1)


def _student_quantile(probability: float, freedom: int) -> float:
    """Quantile above 0.5 of Student's t."""
    if freedom > 200:
        # Cornish and Fisher's expansion (Abramowitz and Stegun 26.7.5), right to 1e-8 here.
        z = NormalDist().inv_cdf(probability)
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_two_sided(middle, freedom) < 2 * probability - 1 else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _student_two_sided(angle: float, freedom: int) -> float:
    """P(|t| <= sqrt(N) tan(angle)) for N degrees of freedom: a finite sum, Abramowitz and Stegun 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
