"""Findings that a user has looked at and accepts: by rule and place, always with a reason."""

import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from coreflow.export.engine.finding import Finding
from coreflow.models.errors import ConfigError

_FORM = "RULE:REASON or RULE@PLACE:REASON is right, as in 'softplus:inputs are below 4' or 'gather-guard@main/words*:...'"


@dataclass(frozen=True, slots=True)
class Suppression:
    """Findings of ``rule`` at places that match ``place`` are accepted for ``reason``.

    >>> Suppression("softplus", "main/*", "inputs are below 4").covers(finding)
    True
    """

    rule: str
    place: str  # * and ? stand for any letters
    reason: str

    def covers(self, finding: Finding) -> bool:
        """Whether it is about ``finding``."""
        return finding.rule == self.rule and fnmatchcase(finding.place, self.place)


def read_suppressions(options: Iterable[str], file: Path | None, rules: Collection[str]) -> tuple[Suppression, ...]:
    """Those of ``--suppress`` and of a TOML file, whose table ``[lint.suppress]`` maps RULE or RULE@PLACE to the reason.

    ``ConfigError`` for a file that cannot be read, a rule that is none of ``rules``, and a suppression without a reason.
    """
    given: list[tuple[str, str, object]] = [("--suppress", *option.partition(":")[::2]) for option in options]
    if file is not None:
        given += [(str(file), target, reason) for target, reason in _table(file).items()]
    return tuple(_suppression(source, target, reason, rules) for source, target, reason in given)


def split(findings: Sequence[Finding], suppressions: Sequence[Suppression]) -> tuple[list[Finding], list[tuple[Finding, str]]]:
    """The findings that stay, and those that are suppressed with the reason."""
    kept: list[Finding] = []
    suppressed: list[tuple[Finding, str]] = []
    for finding in findings:
        reason = next((suppression.reason for suppression in suppressions if suppression.covers(finding)), None)
        if reason is None:
            kept.append(finding)
        else:
            suppressed.append((finding, reason))
    return kept, suppressed


def _table(file: Path) -> Mapping[str, object]:
    try:
        plain = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as TOML: {error}", path=file) from error
    table = plain.get("lint", {}).get("suppress") if isinstance(plain.get("lint", {}), dict) else None
    if not isinstance(table, dict):
        raise ConfigError(f'{file} has no table [lint.suppress]; lines in it such as softplus = "inputs are below 4" are right', path=file)
    return table


def _suppression(source: str, target: str, reason: object, rules: Collection[str]) -> Suppression:
    rule, _, place = target.strip().partition("@")
    if rule not in rules:
        raise ConfigError(f"{source}: no rule {rule!r}; coreflow lint --rules lists them", expected=sorted(rules))
    if not isinstance(reason, str) or not reason.strip():
        raise ConfigError(f"{source}: the suppression of {target.strip()} has no reason; {_FORM}")
    return Suppression(rule, place or "*", reason.strip())
