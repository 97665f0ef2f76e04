"""The torch operations that coreflow converts and coremltools does not, or not rightly: what ``coreflow export --ops`` lists."""

from dataclasses import dataclass
from typing import Literal

from coreflow.export.capture.decompositions import safe_decompositions
from coreflow.export.targets.lowerings.registry import LOWERINGS, load_families

FrontEnd = Literal["trace", "export"]


@dataclass(frozen=True, slots=True)
class Operation:
    """A torch operation, what it becomes, and the front ends from which it does.

    >>> [operation.becomes for operation in list_operations() if operation.name == "aten::roll"]
    """

    name: str
    becomes: str
    front_ends: tuple[FrontEnd, ...]


def list_operations() -> list[Operation]:
    """Every lowering, those of loaded user files included, and every rewrite of exported programs, by name."""
    load_families()
    lowered = [Operation(name, lowering.summary, ("trace", "export")) for name, lowering in LOWERINGS.items()]
    rewritten = {operation._schema.name for operation in safe_decompositions()} - LOWERINGS.keys()
    return sorted(
        [*lowered, *(Operation(name, "other torch operations, before conversion", ("export",)) for name in rewritten)],
        key=lambda operation: operation.name,
    )
