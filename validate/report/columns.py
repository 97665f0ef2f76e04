"""Columns of the report's tables, stated once for the terminal, HTML and Markdown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from coreflow.validate.report.model import ChainRow, Element, OpReport, Outcome, OutputReport
from coreflow.validate.report.wording import (
    contract,
    flips,
    headroom,
    jump,
    non_finite,
    number,
    outcome_word,
    precise_number,
    shape_text,
    source_line,
)

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[Row]):
    """One column of a table: its heading, and the text of a row in it.

    >>> column: Column[OutputReport] = Column(key="flips", title="flips", format=flips)
    >>> [column.format(output) for output in report.by_headroom]
    ['-', '4']
    """

    key: str
    title: str
    format: Callable[[Row], str]
    essential: bool = False  # stays where a line has no room for all
    left: bool = False  # text, set to the left; numbers are set to the right
    short: str = ""  # heading in a terminal, where it differs
    outcome: Callable[[Row], Outcome] | None = None  # of a column of verdicts; renderers add a sign or a colour


def pick(columns: Sequence[Column[Row]], *keys: str) -> tuple[Column[Row], ...]:
    """The columns named ``keys``, in that order."""
    named = {column.key: column for column in columns}
    return tuple(named[key] for key in keys)


def _ulps_of_limit(op: OpReport) -> str:
    return f"{number(op.ulps)} of {number(op.ulps_limit)}" + (" ✗" if not op.ulps <= op.ulps_limit else "")


OUTPUTS: tuple[Column[OutputReport], ...] = (
    Column(key="output", title="output", format=lambda output: output.name, essential=True, left=True),
    Column(key="reference_rms", title="RMS(ref)", format=lambda output: number(output.reference_rms)),
    Column(key="relative_rms", title="relative RMS", short="rel. RMS", format=lambda output: number(output.relative_rms)),
    Column(key="snr_db", title="SNR dB", format=lambda output: number(output.snr_db, 1), essential=True),
    Column(key="budget", title="budget", format=lambda output: number(output.budget)),
    Column(key="rho_rms", title="rho_rms", format=lambda output: number(output.rho_rms), essential=True),
    Column(key="rho_max", title="rho_max", format=lambda output: number(output.rho_max), essential=True),
    Column(key="rho_slice", title="rho_slice", format=lambda output: number(output.rho_slice), essential=True),
    Column(key="worst_slice", title="worst slice", format=lambda output: output.worst_slice, left=True),
    Column(key="contract", title="contract", format=contract),
    Column(key="flips", title="flips", format=flips),
    Column(key="non_finite", title="non-finite", format=non_finite),
    Column(key="headroom", title="headroom", format=headroom, essential=True),
    Column(key="verdict", title="verdict", format=outcome_word, outcome=lambda output: output.outcome, essential=True, left=True),
)
LARGEST_JUMP: Column[OutputReport] = Column(key="largest_jump", title="largest jump", format=jump, left=True)

ELEMENTS: tuple[Column[Element], ...] = (
    Column(key="sample", title="sample", format=lambda element: element.sample, left=True),
    Column(key="index", title="index", format=lambda element: str(list(element.index)), left=True),
    Column(key="reference", title="reference", format=lambda element: precise_number(element.reference)),
    Column(key="simulated", title="simulated", format=lambda element: precise_number(element.simulated)),
    Column(key="actual", title="package", format=lambda element: precise_number(element.actual)),
)

CHAIN: tuple[Column[ChainRow], ...] = (
    Column(key="stage", title="stage", format=lambda row: row.stage, left=True),
    Column(key="teacher_forced", title="teacher-forced", format=lambda row: number(row.teacher_forced)),
    Column(key="alone", title="alone", format=lambda row: row.alone.upper(), outcome=lambda row: row.alone, left=True),
    Column(key="cascaded", title="cascaded", format=lambda row: number(row.cascaded)),
    Column(key="outcome", title="up to here", format=lambda row: row.outcome.upper(), outcome=lambda row: row.outcome, left=True),
    Column(key="output", title="at", format=lambda row: row.output, left=True),
)

OPS: tuple[Column[OpReport], ...] = (
    Column(key="op", title="op", format=lambda op: op.name, left=True),
    Column(key="index", title="index", format=lambda op: str(op.index)),
    Column(key="type", title="type", format=lambda op: op.type, left=True),
    Column(key="shape", title="shape", format=lambda op: shape_text(op.shape), left=True),
    Column(key="local_rho", title="local rho", format=lambda op: number(op.local_rho)),
    Column(key="ulps", title="ulps of limit", format=_ulps_of_limit),
    Column(key="accumulated", title="accumulated", format=lambda op: number(op.accumulated)),
    Column(key="amplification", title="amplification", format=lambda op: number(op.amplification)),
    Column(key="largest", title="largest", format=lambda op: number(op.largest)),
    Column(key="smallest", title="smallest", format=lambda op: number(op.smallest)),
    Column(key="overflowed", title="overflowed", format=lambda op: str(op.overflowed)),
    Column(key="underflowed", title="underflowed", format=lambda op: f"{op.underflowed:.1%}"),
    Column(key="source", title="torch source", format=lambda op: source_line(op.origin), left=True),
    Column(key="never_exercised", title="never exercised", format=lambda op: "; ".join(op.never_exercised), left=True),
)
