"""Ranges in which ops misbehave in fp16, and whether the samples reached them: a range that none reached is untested."""

from collections.abc import Mapping

from coreflow.export.package.graph import Op, Value
from coreflow.export.package.op_facts import Range, facts_of


def never_exercised(op: Op, ranges: Mapping[int, Range]) -> tuple[str, ...]:
    """The risks of ``op`` that no sample met; ``ranges`` by the id of the value. Constants are no risk: no sample changes them."""
    texts = []
    for risk in facts_of(op.type).risks:
        value = op.inputs.get(risk.argument)
        values = ranges.get(id(value)) if isinstance(value, Value) else None
        if values is not None and not risk.reached(values):
            texts.append(risk.text)
    return tuple(texts)
