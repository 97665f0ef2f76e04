"""A finding of ``coreflow lint``: what is wrong where, on which chips, how that is known, and what to do instead."""

import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from coreflow.export.engine.targets import Evidence, sources

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # the worst first
# Of a hazard that depends on values: ``proved`` by bounds, ``seen`` in data, ``open`` where neither says; all else is ``static``.
Strength = Literal["static", "proved", "seen", "open"]

_LETTER = re.compile(r"\b[A-Z]\b")


def _name(letter: re.Match[str]) -> str:
    return sources().get(letter[0], letter[0]).partition(",")[0]


@dataclass(frozen=True, slots=True)
class Known:
    """A sentence on the hardware or the converter, and how it is known.

    >>> Known("0 comes out above 10.4", Evidence("measured", "coremltools issue 2687; M4"))
    """

    text: str
    evidence: Evidence

    def spelled(self) -> "Known":
        """The same with the letters of sources, as the tables have them, as names."""
        evidence = replace(self.evidence, source=_LETTER.sub(_name, self.evidence.source))
        return Known(_LETTER.sub(_name, self.text), evidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One place of a module or of a saved program at which a rule applies.

    >>> [(finding.rule, finding.op, finding.chips) for finding in lint_package(Path("encoder.mlpackage"))]
    [('softplus', 'softplus_0', ('M4', 'M5'))]

    ``chips`` is empty where the finding is not about the engine: a known wrong conversion is wrong everywhere.
    """

    name: str  # of the recipe or package
    rule: str
    place: str  # FILE:LINE of a module, FUNCTION/OP of a package
    title: str
    remedy: str
    severity: Severity
    strength: Strength = "static"
    function: str = ""
    op: str = ""
    op_type: str = ""
    file: str = ""  # of the module, as far as it is known
    line: int = 0  # from 1; 0 where it is not known
    detail: str = ""  # the figures of this place
    known: Known
    chips: tuple[str, ...] = ()


def is_at_least(severity: Severity, least: Severity) -> bool:
    """Whether ``severity`` is ``least`` or worse."""
    return SEVERITIES.index(severity) <= SEVERITIES.index(least)
