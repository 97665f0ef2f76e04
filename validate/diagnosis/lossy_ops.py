"""The ops whose own fp16 arithmetic explains an error: they overflow, vanish, round too much, or amplify."""

from collections.abc import Iterator, Sequence

from coreflow.models import fp16
from coreflow.validate.report.model import Culprit, OpReport

# A local error of so many roundings is more than rounding; healthy ops are at 0.5 to 1.3.
MAX_LOCAL_RHO = 3.0
# Above this an op is said to amplify. A softmax of sharp scores reaches 20 in healthy transformers, and harms nothing.
_MAX_AMPLIFICATION = 25.0
_KINDS = ("non-finite", "underflow", "rounding", "amplification")


def find_lossy_ops(reports: Sequence[OpReport]) -> tuple[Culprit, ...]:
    """The ops whose own arithmetic explains an error, the worst first within each kind."""
    culprits = [culprit for report in reports for culprit in _culprits_of(report)]
    return tuple(sorted(culprits, key=lambda culprit: (_KINDS.index(culprit.kind), -culprit.ratio)))


def _culprits_of(op: OpReport) -> Iterator[Culprit]:
    def culprit(kind: str, ratio: float, text: str) -> Culprit:
        return Culprit(kind=kind, name=op.name, type=op.type, ratio=ratio, text=text, origin=op.origin)  # type: ignore[arg-type]

    if op.overflowed:
        text = f"{op.overflowed} of its results are beyond {fp16.MAX:.0f}, or not a number, and its inputs are finite"
        yield culprit("non-finite", float(op.overflowed), text)
    elif op.local_rho > MAX_LOCAL_RHO and op.underflowed > 0:
        text = f"{op.underflowed:.0%} of its results are below {fp16.SMALLEST_NORMAL:.2g}, of which fp16 holds few digits or none"
        yield culprit("underflow", op.local_rho, text)
    elif op.local_rho > MAX_LOCAL_RHO or op.ulps > op.ulps_limit:
        yield culprit("rounding", max(op.local_rho, op.ulps / op.ulps_limit), f"loses {op.local_rho:.1f} times a rounding by itself")
    if op.amplification > _MAX_AMPLIFICATION:
        text = f"makes the error of what it reads {op.amplification:.0f} times as large, relative to the values"
        yield culprit("amplification", op.amplification, text)
