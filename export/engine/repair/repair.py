"""Applies the passes of this room to a saved program, and says what each of them did."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from coreflow.export.engine.placement import place
from coreflow.export.engine.repair.attention import separate_attention
from coreflow.export.engine.repair.facts import Facts, Magnitude, recorded_bounds
from coreflow.export.engine.repair.finite_masks import finite_masks
from coreflow.export.engine.repair.gather_guards import without_gather_guards
from coreflow.export.engine.repair.heads import split_heads
from coreflow.export.engine.repair.integers import integers_as_fp16
from coreflow.export.engine.repair.log_sums import stable_log_sums
from coreflow.export.engine.repair.norms import rms_as_layer_norm, safe_epsilons, scaled_layer_norms
from coreflow.export.engine.repair.order import cpu_ops_first
from coreflow.export.engine.repair.prefix_sums import prefix_sums_as_products
from coreflow.export.engine.repair.scales import scaled_products
from coreflow.export.engine.repair.softplus import stable_softplus
from coreflow.export.engine.targets import DEFAULT_TARGET, find_targets
from coreflow.export.package.graph import Graph, Program

Pass = Callable[[Graph, Facts], Graph]  # gives the graph itself where it has nothing to do

# In the order in which they are applied: a pass may make what a later one takes.
PASSES: tuple[Pass, ...] = (
    without_gather_guards,
    integers_as_fp16,
    finite_masks,
    separate_attention,
    stable_softplus,
    stable_log_sums,
    rms_as_layer_norm,
    scaled_layer_norms,
    safe_epsilons,
    prefix_sums_as_products,
    split_heads,
    scaled_products,
    cpu_ops_first,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one pass did to one function.

    >>> for change in repair_program(program).changes:
    ...     print(change.repair, change.ops, change.engine)

    ``ops`` names those that were replaced or read another constant; ``engine`` and ``cpu`` count the ops that are predicted there, before
    and after.
    """

    repair: str
    function: str
    ops: tuple[str, ...]
    engine: tuple[int, int]
    cpu: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """A program after all passes, and what they did; without changes the program is the one that was given.

    >>> repaired = repair_program(read_program("encoder.mlpackage"))
    >>> write_program(repaired.program, "repaired.mlpackage")
    """

    program: Program
    target: str
    changes: tuple[Change, ...]


def repair_program(
    program: Program,
    target: str = DEFAULT_TARGET,
    magnitudes: Mapping[str, Mapping[str, Magnitude]] | None = None,
    passes: Sequence[Pass] = PASSES,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> Repaired:
    """``program`` with every function repaired for the engine of ``target``.

    ``magnitudes``, by function and by value, were seen in calibration data; without them nothing is scaled. ``bounds`` of inputs go before
    those that the package records. ``ConfigError`` for a name that is no target.
    """
    nearest = find_targets(target)[0]
    changes: list[Change] = []
    for name in program.functions:
        facts = Facts(
            target=nearest, bounds=recorded_bounds(program, name) | dict(bounds or {}), magnitudes=(magnitudes or {}).get(name, {})
        )
        graph, counts = program.functions[name], None
        for repair in passes:
            changed = repair(graph, facts)
            if changed is graph:
                continue
            before, counts = counts or _counts(graph, facts), _counts(changed, facts)
            changes.append(
                Change(
                    repair=repair.__name__,
                    function=name,
                    ops=_replaced_ops(graph, changed),
                    engine=(before[0], counts[0]),
                    cpu=(before[1], counts[1]),
                )
            )
            graph = changed
        program = program.with_function(graph)
    return Repaired(program=program, target=nearest.key, changes=tuple(changes))


@cache
def repair_digest() -> str:
    """SHA-256 of everything that decides what a repair makes of a program: the code and the tables of the engine's room."""
    folder = Path(__file__).parent.parent
    digest = sha256()
    for file in sorted((*folder.rglob("*.py"), *folder.rglob("*.toml"))):
        digest.update(f"{file.relative_to(folder)}\n{file.read_text(encoding='utf-8')}".encode())
    return digest.hexdigest()


def _counts(graph: Graph, facts: Facts) -> tuple[int, int]:
    placement = place(graph, facts.target)
    return placement.count("engine"), placement.count("cpu")


def _replaced_ops(before: Graph, after: Graph) -> tuple[str, ...]:
    """Ops that are not in ``after`` as they were."""
    kept = {(op.type, op.name, tuple(map(id, op.input_values())), tuple(map(id, op.outputs))) for op in after.walk()}
    return tuple(
        op.name for op in before.walk() if (op.type, op.name, tuple(map(id, op.input_values())), tuple(map(id, op.outputs))) not in kept
    )
