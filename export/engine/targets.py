"""Targets of the placement: what is published of a chip under a system, with label and source; others by their neighbours."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from coreflow.models.errors import ConfigError

Backend = Literal["ane", "bnns", "classic"]
BACKENDS: tuple[Backend, ...] = ("ane", "bnns", "classic")
DEFAULT_TARGET = "M4/macOS27"
_TABLES = Path(__file__).parent / "tables.toml"
_KEY = re.compile(r"(?P<chip>[MH]\d+)(?P<tier>Pro|Max|Ultra)?/(?P<system>macOS|iOS|iPadOS)(?P<version>\d+(\.\d+)*)", re.IGNORECASE)
_TIERS = ("", "pro", "max", "ultra")


@dataclass(frozen=True, slots=True)
class Evidence:
    """How a table is known, and from whom; the labels are explained in ``labels()``, the letters in ``sources()``.

    >>> find_targets("M4/macOS27")[0].evidence["graph"].label
    'measured'
    """

    label: str
    source: str
    borrowed_from: str = ""  # the target whose table it is, where it is another's


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Rates of some ops in 10^9 a second, by back end; a back end without one follows the default rule.

    >>> Row(ops=("relu",), work="elements", rates={"ane": 50.0, "bnns": 50.0, "classic": 50.0})

    ``where`` holds the ranges, both ends included, in which the row was seen.
    """

    ops: tuple[str, ...]
    work: str
    rates: Mapping[Backend, float]
    where: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    is_borrowed: bool = False  # of another chip, among rows of this one


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the engine takes at most; extents in elements.

    >>> find_targets("M4/macOS27")[0].limits.extent
    65536
    """

    never: tuple[str, ...]  # ops beyond those that no target takes
    edge_casts: bool  # between fp16 and fp32
    conv_3d: bool
    run_time_weight: bool
    rank: int
    extent: int
    outer_extent: int  # of the batch and the channels
    conv_width: int
    conv_square: int
    conv_height: int
    pool_window: int
    matmul_inner: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is published of one chip family under one system.

    >>> target = find_targets("M4/macOS27")[0]
    >>> target.chip, target.launch_ms, target.peak["ane"]
    ('H16G', 0.125, 19400.0)

    Times are milliseconds, ``peak`` 10^9 operations a second, ``bandwidth`` 2^30 bytes a second. ``second_launch_ms`` is what a later
    segment of the engine costs: the published constant; the one published program with two such segments says less.
    """

    key: str
    chip: str
    note: str
    switch_ms: float
    launch_ms: float
    second_launch_ms: float
    peak: Mapping[Backend, float]
    bandwidth: Mapping[Backend, float]
    rows: Mapping[str, tuple[Row, ...]]
    limits: Limits
    evidence: Mapping[str, Evidence]  # graph, peak, bandwidth, rates, limits
    borrowed_ops: frozenset[str]  # whose rows are those of another target

    def with_second_launch(self, milliseconds: float) -> "Target":
        """This target with another price of a later segment of the engine."""
        return replace(self, second_launch_ms=milliseconds)


def all_targets() -> Mapping[str, Target]:
    """Every target with a table, by key."""
    return _tables()[0]


def labels() -> Mapping[str, str]:
    """What the labels of evidence mean."""
    return dict(_tables()[1]["labels"])


def sources() -> Mapping[str, str]:
    """Whom the letters of the sources stand for."""
    return dict(_tables()[1]["sources"])


@cache
def op_evidence(section: Literal["never", "taken", "unsure", "remark"]) -> Mapping[str, tuple[str, Evidence]]:
    """By op: the text of a section of the tables, and how it is known.

    ``never``: no target takes the op, with the reason; ``taken``: seen on the engine; ``unsure``: in no plan that was read; ``remark``:
    where the planner is known to be wrong.
    """
    return {
        op: (entry.get("reason", entry.get("text", "")), Evidence(entry["label"], entry["source"]))
        for entry in _tables()[1][section]
        for op in entry["ops"]
    }


def instead_of(op_type: str) -> str:
    """What to write instead of an op that the engine does not take; empty where nothing is known."""
    return next((entry["text"] for entry in _tables()[1]["instead"] if op_type in entry["ops"]), "")


def find_targets(name: str) -> tuple[Target, ...]:
    """The target of that name, or the neighbours of one that has no table; ``ConfigError`` for a name that is no chip with a system."""
    if (own := table_of(name)) is not None:
        return (own,)
    targets, plain = all_targets(), name.replace(" ", "").lower()
    matched = _KEY.fullmatch(plain if "/" in plain else f"{plain}/macOS27")
    if matched is None or matched["chip"][0].upper() != "M":
        known = ", ".join(targets)
        raise ConfigError(
            f"no target {name!r}; tables exist for {known}. Another M chip or system, as in M3/macOS27, is told by its neighbours"
        )
    return _neighbours(targets, matched)


def table_of(name: str) -> Target | None:
    """The target with a table that a name stands for, as in ``M4/macOS27``; None where there is no such table.

    A chip alone (``M4``, or Apple's name ``H16G``) stands for its newest system, a version for the one of its major number with a table.
    """
    targets = all_targets()
    plain = name.replace(" ", "").lower()
    by_name = {key.lower(): key for key in targets} | {targets[key].chip.replace(" ", "").lower(): key for key in reversed(list(targets))}
    same_chip = [key for key in targets if key.lower().startswith(f"{plain.partition('/')[0]}/")]
    same_system = [key for key in same_chip if key.lower().partition(".")[0] == plain.partition(".")[0]]
    if chosen := by_name.get(plain) or next(iter(same_system), None):
        return targets[chosen]
    return targets[max(same_chip, key=_version)] if "/" not in plain and same_chip else None


def _neighbours(targets: Mapping[str, Target], matched: re.Match[str]) -> tuple[Target, ...]:
    """The nearest targets of the same generation, or else the nearest below and above."""
    generation, version, tier = int(matched["chip"][1:]), _number(matched["version"]), _TIERS.index((matched["tier"] or "").lower())
    known = {key: place for key in targets if (place := _place(key)) is not None}

    def nearest(keys: Sequence[str]) -> list[str]:
        return sorted(keys, key=lambda key: (abs(known[key][0] - generation), abs(known[key][1] - version), abs(known[key][2] - tier)))

    same = nearest([key for key, place in known.items() if place[0] == generation])
    below = nearest([key for key, place in known.items() if place[0] < generation])
    above = nearest([key for key, place in known.items() if place[0] > generation])
    return tuple(targets[key] for key in (same[:2] or (*below[:1], *above[:1])))


def _place(key: str) -> tuple[int, float, int] | None:
    """Generation, system and tier of a target's key; None for a chip that is no M."""
    matched = _KEY.fullmatch(key)
    if matched is None or matched["chip"][0] != "M":
        return None
    return int(matched["chip"][1:]), _number(matched["version"]), _TIERS.index((matched["tier"] or "").lower())


def _version(key: str) -> float:
    matched = _KEY.fullmatch(key)
    return _number(matched["version"]) if matched else 0.0


def _number(version: str) -> float:
    major, _, rest = version.partition(".")
    return float(f"{major}.{rest.split('.')[0] or 0}")


@cache
def _tables() -> tuple[Mapping[str, Target], Mapping[str, Any]]:
    plain = tomllib.loads(_TABLES.read_text(encoding="utf-8"))
    return {key: _target(plain, key) for key in plain["targets"]}, plain


def _target(plain: Mapping[str, Any], key: str) -> Target:
    """One target, what it lacks from its bases."""
    line = [key]
    while base := plain["targets"][line[-1]].get("base"):
        line.append(base)
    same, note = plain["targets"][key].get("same", ()), plain["targets"][key].get("note", "")
    evidence: dict[str, Evidence] = {}

    def section(name: str) -> Mapping[str, Any]:
        owner = next((owner for owner in line if name in plain["targets"][owner]), None)
        table: Mapping[str, Any] = plain["targets"][owner][name] if owner else plain[name]
        borrowed = "" if owner in (key, None) or name in same else str(owner)
        label, source = ("assumed", f"the table of {owner}") if borrowed else (table["label"], note if name in same else table["source"])
        evidence[name] = Evidence(label, source, borrowed)
        return table

    graph, peak, bandwidth = section("graph"), section("peak"), section("bandwidth")
    limits: dict[str, Any] = {**plain["limits"], **section("limits")}
    section("rates")
    rows: dict[str, tuple[Row, ...]] = {}
    own: set[str] = set()
    for owner in line:
        table = plain["targets"][owner].get("rates", {"rows": []})
        made = [_row(row, table.get("bnns_per_classic", 1.0)) for row in table["rows"]]
        for op in {op for row in made for op in row.ops}:
            rows.setdefault(op, tuple(row for row in made if op in row.ops))
            own |= {op} if owner == key or "rates" in same else set()
    return Target(
        key=key,
        chip=plain["targets"][key]["chip"],
        note=note,
        switch_ms=graph["switch_ms"],
        launch_ms=graph["launch_ms"],
        second_launch_ms=graph["launch_ms"],
        peak={backend: peak[backend] for backend in BACKENDS},
        bandwidth={backend: bandwidth[backend] for backend in BACKENDS},
        rows=rows,
        limits=_limits(limits),
        evidence=evidence,
        borrowed_ops=frozenset(rows) - own,
    )


def _limits(plain: Mapping[str, Any]) -> Limits:
    figures = {name: value for name, value in plain.items() if name not in ("label", "source", "never")}
    return Limits(never=tuple(plain["never"]), **figures)


def _row(plain: Mapping[str, Any], bnns_per_classic: float) -> Row:
    rates: dict[Backend, float] = {backend: plain[backend] for backend in BACKENDS if backend in plain}
    if "classic" in rates:
        rates.setdefault("bnns", rates["classic"] * bnns_per_classic)
    where = {name: (float(low), float(high)) for name, (low, high) in plain.get("where", {}).items()}
    return Row(ops=tuple(plain["ops"]), work=plain["work"], rates=rates, where=where, is_borrowed=plain.get("borrowed", False))
