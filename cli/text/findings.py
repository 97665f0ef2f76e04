"""Text of ``coreflow lint``: findings by severity, folded by rule, with a column a chip; and the table of rules."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from coreflow.cli.console import out

if TYPE_CHECKING:
    from coreflow.export.engine.bounds.hazards import Proofs
    from coreflow.export.engine.finding import Finding
    from coreflow.export.lint.catalogue import Entry

_SHOWN = 3  # places of one rule
_TITLES = {
    "error": "errors: a wrong result, or nothing that can be compiled or run",
    "warning": "warnings: work that leaves the engine, or a result that is wrong for some values",
    "note": "notes: slower, larger, or less sure than need be",
}


def show_findings(
    source: str,
    findings: "Sequence[Finding]",
    suppressed: "Sequence[tuple[Finding, str]]",
    chips: Sequence[str],
    proofs: "Mapping[str, Proofs]",
) -> None:
    """Print a table a severity, the ops proved safe, and the reasons of what is suppressed."""
    from coreflow.export.engine.chips import CHIPS

    columns = tuple(chips) or CHIPS
    for severity, title in _TITLES.items():
        of_severity = [finding for finding in findings if finding.severity == severity]
        if of_severity:
            _line(title)
            out().print(_table(of_severity, columns))
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in _TITLES}
    total = ", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items() if count)
    _line(f"{source}: {total or 'nothing known to go wrong'}{f'; {len(suppressed)} suppressed' if suppressed else ''}")
    for label, proof in proofs.items():
        seen, unknown = proof.count("seen"), proof.count("open")
        _line(f"{label}: {proof.count('proved')} of {proof.ops} ops proved safe, {seen} seen, {unknown} open")
    for rule, reason in dict.fromkeys((finding.rule, reason) for finding, reason in suppressed):
        _line(f"suppressed: {rule}, {reason}")
    if findings:
        _line("Nothing of this was measured by coreflow; coreflow place --targets has the sources in full")


def show_rules(entries: "Sequence[Entry]") -> None:
    """Print every rule with its severity, its chips, and what to do."""
    table = Table("id", "severity", "strength", "chips", "what happens", "what to do", box=None, pad_edge=False, header_style="dim")
    for entry in entries:
        chips = ", ".join(entry.chips) or ("all" if entry.about == "engine" else "-")
        table.add_row(*map(Text, (entry.id, entry.severity, entry.strength, chips, entry.title, entry.remedy)))
    out().print(table)


def _table(findings: "Sequence[Finding]", chips: Sequence[str]) -> Table:
    """A row a rule: how many places on each chip, the first places, and what is known; findings that are wrong everywhere count on all."""
    table = Table("rule", *chips, "strength", "what, how it is known, what to do", box=None, pad_edge=False, header_style="dim")
    for column in table.columns[1 : len(chips) + 1]:
        column.justify, column.min_width = "right", 2
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.rule, finding.strength, finding.remedy), []).append(finding)
    for (rule, strength, remedy), group in groups.items():
        counts = [sum(not finding.chips or chip in finding.chips for finding in group) for chip in chips]
        table.add_row(Text(rule), *(Text(str(count or "-")) for count in counts), Text(strength), Text(_story(group, remedy)))
    return table


def _story(group: "Sequence[Finding]", remedy: str) -> str:
    """Title, places, evidence and remedy of one rule."""
    first = group[0]
    places = [
        f"{finding.name}: {', '.join(filter(None, (finding.place, finding.file and finding.op, finding.detail)))}" for finding in group
    ]
    lines = [first.title, *(f"  {place}" for place in places[:_SHOWN])]
    if len(places) > _SHOWN:
        lines.append(f"  and {len(places) - _SHOWN} more; --json has all")
    evidence = first.known.evidence
    return "\n".join([*lines, f"{evidence.label}: {first.known.text} ({evidence.source})", f"instead: {remedy}", ""])


def _line(text: str) -> None:
    out().print(text, markup=False, soft_wrap=True)
