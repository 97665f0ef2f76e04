"""Differences that a caller accepts: what every conversion of a module changes at a named op, with the reason why it does not matter."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from coreflow.validate.judgement import Judgement
from coreflow.validate.report.model import AcceptedDifference, Culprit, OutputReport, Report


def accept(judgement: Judgement, culprits: Sequence[Culprit], reasons: Mapping[str, str]) -> Judgement:
    """``judgement`` in which gates of translation pass if ``reasons`` has every op that a fresh conversion leaves torch at.

    Errors of the saved program alone, of its weights and its arithmetic have gates of their own, and fail as before.

    >>> accept(judgement, explanation.culprits, {"input_1_abs": "rows are never as small as epsilon"}).accepted
    """
    ops = dict.fromkeys(culprit.name for culprit in culprits if culprit.kind == "translation")
    errors = [gate.value for output in judgement.outputs.values() for gate in output.gates if _is_open(gate.name, gate.outcome)]
    if not errors or not ops or not ops.keys() <= reasons.keys():
        return judgement
    accepted = tuple(AcceptedDifference(op=op, reason=reasons[op], relative_rms=max(errors)) for op in ops)
    outputs = {name: _accepted(output, accepted) for name, output in judgement.outputs.items()}
    return replace(judgement, outputs=outputs, accepted=accepted)


def unseen(reasons: Mapping[str, str], reports: Sequence[Report]) -> tuple[str, ...]:
    """A note on every op that was accepted and shows no difference in any of ``reports``."""
    if not any(report.ops for report in reports):
        return ()  # no op was looked at
    seen = {difference.op for report in reports for difference in report.accepted}
    seen |= {culprit.name for report in reports for culprit in report.culprits if culprit.kind == "translation"}
    return tuple(f"accepted at {op} ({reason}): no difference was found there" for op, reason in reasons.items() if op not in seen)


def _accepted(output: OutputReport, accepted: Sequence[AcceptedDifference]) -> OutputReport:
    text = "accepted at " + ", ".join(f"{difference.op} ({difference.reason})" for difference in accepted)
    gates = tuple(replace(gate, outcome="pass", text=text) if _is_open(gate.name, gate.outcome) else gate for gate in output.gates)
    return replace(output, gates=gates)


def _is_open(name: str, outcome: str) -> bool:
    return name == "translation" and outcome != "pass"
