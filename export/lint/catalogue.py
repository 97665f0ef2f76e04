"""Every rule of ``coreflow lint``, of the converter and of the engine, as one list."""

from dataclasses import dataclass

from coreflow.export.engine.finding import SEVERITIES, Known, Severity, Strength
from coreflow.export.engine.rule import engine_rules
from coreflow.export.lint.rule import all_rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A rule as users read of it.

    >>> [entry.id for entry in catalogue() if entry.severity == "error"]
    """

    id: str
    about: str  # converter or engine
    severity: Severity
    strength: Strength
    chips: tuple[str, ...]  # empty: all, or no matter of chips
    title: str
    known: Known
    remedy: str


def catalogue() -> list[Entry]:
    """Every rule, the worst first, then by id."""
    converter = [
        Entry(
            id=rule.id,
            about="converter",
            severity="error",
            strength="static",
            chips=(),
            title=rule.title,
            known=rule.known,
            remedy=rule.remedy,
        )
        for rule in all_rules()
    ]
    engine = [
        Entry(
            id=rule.id,
            about="engine",
            severity=rule.severity,
            strength=rule.strength,
            chips=rule.chips,
            title=rule.title,
            known=rule.known.spelled(),
            remedy=rule.remedy,
        )
        for rule in engine_rules()
    ]
    return sorted((*converter, *engine), key=lambda entry: (SEVERITIES.index(entry.severity), entry.id))
