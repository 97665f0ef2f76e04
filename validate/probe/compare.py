"""Two reports side by side, reading by reading."""

from collections.abc import Iterator
from dataclasses import dataclass

from coreflow.validate.probe.check import Reading
from coreflow.validate.probe.report import ProbeReport


@dataclass(frozen=True, slots=True)
class Pair:
    """One reading of two reports; None where one has none of that name.

    >>> [pair.name for pair in compare_reports(one, other) if pair.differs]
    """

    check: str
    one: Reading | None
    other: Reading | None

    @property
    def name(self) -> str:
        """The name of the reading."""
        reading = self.one or self.other
        assert reading is not None
        return reading.name

    @property
    def differs(self) -> bool:
        """Whether the two differ in a value that does not vary from run to run: one that something is expected of."""
        if self.one is None or self.other is None:
            return True
        return self.one.agrees is not None and (self.one.value, self.one.agrees) != (self.other.value, self.other.agrees)


def compare_reports(one: ProbeReport, other: ProbeReport) -> Iterator[Pair]:
    """Pairs of the checks that both have done; those that one has not done are left out."""
    done = {result.name: result for result in other.results if result.status == "done"}
    for result in one.results:
        if result.status != "done" or result.name not in done:
            continue
        mine, theirs = ({reading.name: reading for reading in part.readings} for part in (result, done[result.name]))
        for name in dict.fromkeys([*mine, *theirs]):
            yield Pair(result.name, mine.get(name), theirs.get(name))
