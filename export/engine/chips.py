"""Chips that ``coreflow lint`` speaks of, by name, with what is published of them."""

import re
from dataclasses import dataclass

from coreflow.export.engine.features import Features
from coreflow.export.engine.support import Support, support
from coreflow.export.engine.targets import Target, all_targets, find_targets, table_of
from coreflow.models.errors import ConfigError

CHIPS = ("M1", "M2", "M3", "M4", "M5", "M6")
_FAMILY = re.compile(r"(M\d+)(Pro|Max|Ultra)?(/.*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Chip:
    """A chip by the name that the user gave, its family, and its table, or those of its neighbours.

    >>> find_chip("M3").family, [target.key for target in find_chip("M3").targets]
    ('M3', ['M2/macOS27', 'M4/macOS27'])
    """

    name: str
    family: str  # M1 to M6, or Apple's name where it is no M
    targets: tuple[Target, ...]

    def refusal(self, features: Features) -> tuple[Target, Support] | None:
        """Why the engine does not take an op, by the table of a target; a chip without a table takes what all its neighbours take."""
        refusals = ((target, support(features, target)) for target in self.targets)
        return next((refusal for refusal in refusals if not refusal[1].engine), None)


def find_chip(name: str) -> Chip:
    """The chip of that name, as ``M4``, ``M4Pro`` or ``M4/macOS27``; ``ConfigError`` for one that nothing is published of."""
    matched = _FAMILY.fullmatch(name.replace(" ", ""))
    table = table_of(name)
    if table is not None:
        return Chip(name, table.key.partition("/")[0][:2] if table.key.startswith("M") else table.chip, (table,))
    if matched is None or matched[1].upper() not in CHIPS:
        raise ConfigError(f"no chip {name!r}; {', '.join(CHIPS)} are right, or a target with a table: {', '.join(all_targets())}")
    return Chip(name, matched[1].upper(), find_targets(name))
