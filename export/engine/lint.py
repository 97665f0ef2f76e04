"""Applies the rules of the engine to every function of a saved program."""

from collections.abc import Iterator, Mapping, Sequence

from coreflow.export.engine.bounds.hazards import Seen
from coreflow.export.engine.chips import CHIPS, Chip, find_chip
from coreflow.export.engine.finding import Finding
from coreflow.export.engine.rule import Context, EngineRule, Hit, engine_rules
from coreflow.export.package.graph import Program

Data = Mapping[str, Mapping[str, Seen]]  # by function and name of an op, what it had over the user's data


def contexts_of(program: Program, chips: Sequence[str] = (), data: Data | None = None) -> list[Context]:
    """What rules look at, a function each; ``chips`` by name, all that are known where there is none.

    ``ConfigError`` for an unknown chip.
    """
    asked = tuple(map(find_chip, chips or CHIPS))
    return [Context(program, function, asked, (data or {}).get(function)) for function in program.functions]


def lint_program(program: Program, chips: Sequence[str] = (), rules: Sequence[EngineRule] | None = None) -> list[Finding]:
    """Where the rules apply, in the order of rules, functions and ops; ``chips`` as in ``contexts_of``.

    >>> lint_program(read_program("encoder.mlpackage"), chips=["M4"])
    """
    return lint_contexts(contexts_of(program, chips), rules)


def lint_contexts(contexts: Sequence[Context], rules: Sequence[EngineRule] | None = None) -> list[Finding]:
    """Where the rules apply, in the order of rules, functions and ops."""
    return [
        finding
        for rule in (engine_rules() if rules is None else rules)
        for context in contexts
        for hit in rule.finds(context)
        if (finding := _finding(rule, context, hit)) is not None
    ]


def _finding(rule: EngineRule, context: Context, hit: Hit) -> Finding | None:
    """The finding of a hit; None where it is on none of the chips that were asked about."""
    chips = tuple(_concerned(rule, hit, context.chips))
    if not chips:
        return None
    op = hit.op
    return Finding(
        name=context.program.path.name,
        rule=rule.id,
        place=context.function if op is None else f"{context.function}/{op.name}",
        title=rule.title,
        remedy=hit.remedy or rule.remedy,
        severity=hit.severity or rule.severity,
        strength=hit.strength or rule.strength,
        function=context.function,
        op="" if op is None else op.name,
        op_type="" if op is None else op.type,
        detail=hit.detail,
        known=(hit.known or rule.known).spelled(),
        chips=chips,
    )


def _concerned(rule: EngineRule, hit: Hit, chips: Sequence[Chip]) -> Iterator[str]:
    for chip in chips:
        if (not rule.chips or chip.family in rule.chips) and (hit.chips is None or chip.name in hit.chips):
            yield chip.name
