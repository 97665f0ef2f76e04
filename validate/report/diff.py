"""Changes between two reports, and whether anything got worse. Reports are plain data, as ``read_report`` returns them."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from coreflow.models.errors import InputError
from coreflow.validate.report.model import SEVERITY
from coreflow.validate.report.wording import gate_number, number

Plain = Mapping[str, Any]
Direction = Literal["worse", "better", "changed"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """A ratio got worse when it grew by more than both: the share lets large ratios move, the step small ones.

    >>> Growth(share=0.10, step=0.05).exceeded(1.0, 1.2)
    True
    """

    share: float
    step: float

    def exceeded(self, before: float | None, after: float | None) -> bool:
        """Whether ``after`` is worse; None is a number that is not finite, worse than any other and no worse than itself."""
        if before is None or after is None:
            return before is not None
        return after > before * (1 + self.share) and after > before + self.step


# The largest element and the worst slice are single draws, which move by themselves with the version of a kernel: their limits are wider.
GROWTH: Mapping[str, Growth] = {
    "rho_rms": Growth(share=0.10, step=0.05),
    "rho_max": Growth(share=0.50, step=0.50),
    "rho_slice": Growth(share=0.50, step=0.50),
}
ACCEPTED_GROWTH = Growth(share=0.10, step=0.0)  # of what was accepted: nothing in it is drawn but the inputs
COUNTS = ("flips", "non_finite", "overflowed")  # any growth is worse


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference between the reports.

    >>> f"{change.direction}: {change.part}: {change.what}: {change.before} -> {change.after}"
    'worse: encoder: surface: rho_rms: 1.02 -> 1.40'
    """

    part: str  # a package of the bundle, "cascade", or the name of the whole
    what: str  # "verdict", an output, an output and its gate, ...
    before: str
    after: str
    direction: Direction


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputChange:
    """Errors of an output that both reports have; None is a number that is not finite.

    >>> [output.output for output in diff.outputs if output.worse]
    ['surface']
    """

    part: str
    output: str
    rho_before: float | None
    rho_after: float | None
    relative_rms_before: float | None
    relative_rms_after: float | None
    worse: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportDiff:
    """All changes, what got worse first.

    >>> diff = compare(read_report(old), read_report(new))
    >>> diff.exit_code, [change.what for change in diff.worse]
    (1, ['surface: rho_rms'])
    """

    old_verdict: str
    new_verdict: str
    changes: tuple[Change, ...]
    outputs: tuple[OutputChange, ...]

    @property
    def worse(self) -> tuple[Change, ...]:
        """Changes for the worse."""
        return tuple(change for change in self.changes if change.direction == "worse")

    @property
    def exit_code(self) -> int:
        """0 when nothing got worse, 1 when something did."""
        return 1 if self.worse else 0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"worse": len(self.worse), **asdict(self)}


def compare(old: Plain, new: Plain) -> ReportDiff:
    """Changes from ``old`` to ``new``; an ``InputError`` where one is of a bundle and the other of a package."""
    if old["report"] != new["report"]:
        raise InputError("one of the reports is of a bundle and the other of a package; give two of a kind")
    before, after = _parts(old), _parts(new)
    changes = [*_verdict(new["name"], old, new), *_versions(old, new), *_presence(before, after, "not judged")]
    outputs: list[OutputChange] = []
    for name, old_part, new_part in _both(before, after):
        if old_part is not old:  # of a package the part is the whole
            changes += _verdict(name, old_part, new_part)
        changes += _run(name, old_part, new_part)
        changes += _presence(old_part["outputs"], new_part["outputs"], "not compared", part=name)
        for output, one, other in _both(old_part["outputs"], new_part["outputs"]):
            of_output = [*_gates(name, output, one, other), *_numbers(name, output, one, other)]
            changes += of_output
            outputs.append(_output(name, output, one, other, any(change.direction == "worse" for change in of_output)))
        changes += _culprits(name, old_part, new_part)
        changes += _accepted(name, old_part, new_part)
        changes += _tokens(name, old_part, new_part)
    order = ("worse", "changed", "better")
    return ReportDiff(
        old_verdict=old["verdict"],
        new_verdict=new["verdict"],
        changes=tuple(sorted(changes, key=lambda change: order.index(change.direction))),
        outputs=tuple(outputs),
    )


def direction_of(before: str, after: str) -> Direction:
    """Direction of a change of outcomes. An outcome that became incomplete is not better, even where it was a failure."""
    if before == after:
        return "changed"
    if SEVERITY.index(after) < SEVERITY.index(before):
        return "worse"
    return "changed" if after == "incomplete" else "better"


def _parts(report: Plain) -> dict[str, Plain]:
    """Name to package, or name to stage and the chain, which reports call cascade."""
    if "stages" not in report:
        return {report["name"]: report}
    return {**report["stages"], **({} if report["cascade"] is None else {"cascade": report["cascade"]})}


def _both(old: Mapping[str, _T], new: Mapping[str, _T]) -> Iterator[tuple[str, _T, _T]]:
    return ((name, old[name], new[name]) for name in new if name in old)


def _verdict(part: str, old: Plain, new: Plain) -> Iterator[Change]:
    before, after = (report["verdict"] if report["cause"] is None else f"{report['verdict']} ({report['cause']})" for report in (old, new))
    if before != after:
        yield Change(part=part, what="verdict", before=before, after=after, direction=direction_of(old["verdict"], new["verdict"]))


def _presence(old: Mapping[str, Plain], new: Mapping[str, Plain], missing: str, part: str | None = None) -> Iterator[Change]:
    """Packages or outputs that are gone, which is worse, or new, which is worse unless they pass."""
    for name in old:
        if name not in new:
            yield Change(part=part or name, what=name, before=_outcome(old[name]), after=f"gone: {missing}", direction="worse")
    for name in new:
        if name not in old:
            outcome = _outcome(new[name])
            yield Change(part=part or name, what=name, before="new", after=outcome, direction="changed" if outcome == "pass" else "worse")


def _outcome(part: Plain) -> str:
    return str(part.get("verdict", part.get("outcome")))


def _run(part: str, old: Plain, new: Plain) -> Iterator[Change]:
    """Other circumstances: ratios of different executions are not alike."""
    for key in ("backend", "numerics", "compute_units", "precision", "reference", "budget", "digest", "weights_digest"):
        if old.get(key) != new.get(key):
            before, after = (str(report.get(key))[: 12 if key.endswith("digest") else None] for report in (old, new))
            yield Change(part=part, what=key, before=before, after=after, direction="changed")
    before, after = (report["samples"]["total"] - report["samples"]["left_out"] for report in (old, new))
    if before != after:
        yield Change(part=part, what="samples judged", before=str(before), after=str(after), direction="changed")


def _versions(old: Plain, new: Plain) -> Iterator[Change]:
    for name in {**old["versions"], **new["versions"]}:
        before, after = (report["versions"].get(name, "absent") for report in (old, new))
        if before != after:
            yield Change(part=new["name"], what=f"version of {name}", before=before, after=after, direction="changed")


def _gates(part: str, output: str, old: Plain, new: Plain) -> Iterator[Change]:
    before, after = ({gate["name"]: gate for gate in report["gates"]} for report in (old, new))
    for name, old_gate, new_gate in _both(before, after):
        if old_gate["outcome"] != new_gate["outcome"]:
            yield Change(
                part=part,
                what=f"{output}: {name}",
                before=f"{old_gate['outcome']} at {_gate_number(old_gate['value'])}",
                after=f"{new_gate['outcome']} at {_gate_number(new_gate['value'])}, limit {_gate_number(new_gate['limit'])}",
                direction=direction_of(old_gate["outcome"], new_gate["outcome"]),
            )
    for name, gate in before.items():
        if name not in after:  # a check that passed and is no longer made
            direction: Direction = "worse" if gate["outcome"] == "pass" else "changed"
            yield Change(part=part, what=f"{output}: {name}", before=gate["outcome"], after="gone: not checked", direction=direction)
    for name, gate in after.items():
        if name not in before:
            direction = "changed" if gate["outcome"] == "pass" else "worse"
            yield Change(part=part, what=f"{output}: {name}", before="new", after=gate["outcome"], direction=direction)


def _numbers(part: str, output: str, old: Plain, new: Plain) -> Iterator[Change]:
    for key, growth in GROWTH.items():
        before, after = old[key], new[key]
        worse, better = growth.exceeded(before, after), growth.exceeded(after, before)
        if worse or better:
            direction: Direction = "worse" if worse else "better"
            yield Change(part=part, what=f"{output}: {key}", before=_number(before), after=_number(after), direction=direction)
    for key in COUNTS:
        if old[key] != new[key]:
            direction = "worse" if new[key] > old[key] else "better"
            yield Change(part=part, what=f"{output}: {key}", before=str(old[key]), after=str(new[key]), direction=direction)


def _output(part: str, output: str, old: Plain, new: Plain, worse: bool) -> OutputChange:
    return OutputChange(
        part=part,
        output=output,
        rho_before=old["rho_rms"],
        rho_after=new["rho_rms"],
        relative_rms_before=old["relative_rms"],
        relative_rms_after=new["relative_rms"],
        worse=worse,
    )


def _culprits(part: str, old: Plain, new: Plain) -> Iterator[Change]:
    """New culprits and constants. None is worse by itself, since an op that is renamed is new too; the gates that it breaks are."""
    for kind, key in (("culprit", "culprits"), ("constant", "constants")):
        known = {_identity(item) for item in old.get(key, ())}
        for item in new.get(key, ()):
            if _identity(item) not in known:
                text = item.get("text") or item.get("problem", "")
                yield Change(part=part, what=f"{kind} {item['name']}", before="new", after=text, direction="changed")


def _accepted(part: str, old: Plain, new: Plain) -> Iterator[Change]:
    """Differences that are newly accepted, and those that grew since."""
    known = {item["op"]: item["relative_rms"] for item in old.get("accepted", ())}
    for item in new.get("accepted", ()):
        what, size = f"accepted at {item['op']}", item["relative_rms"]
        if item["op"] not in known:
            yield Change(part=part, what=what, before="not accepted", after=item["reason"], direction="changed")
        elif ACCEPTED_GROWTH.exceeded(known[item["op"]], size):
            yield Change(part=part, what=what, before=_number(known[item["op"]]), after=_number(size), direction="worse")


def _identity(item: Plain) -> tuple[str, ...]:
    """Name, kind and problem of a culprit or constant."""
    return item["name"], item.get("kind", ""), item.get("problem", "")


def _tokens(part: str, old: Plain, new: Plain) -> Iterator[Change]:
    if "tokens" not in old:
        return
    before, after = (len(report["tokens"]["unexplained"]) for report in (old, new))
    if before != after:
        direction: Direction = "worse" if after > before else "better"
        yield Change(part=part, what="unexplained tokens", before=str(before), after=str(after), direction=direction)
    old_share, new_share = (f"{report['tokens']['equal']} of {report['tokens']['tokens']}" for report in (old, new))
    if old_share != new_share:
        yield Change(part=part, what="equal tokens", before=old_share, after=new_share, direction="changed")


def _number(value: float | None) -> str:
    return "not finite" if value is None else number(value)


def _gate_number(value: float | None) -> str:
    return "not finite" if value is None else gate_number(value)
