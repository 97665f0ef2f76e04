"""The protocol that all engines share.

They are called alike: tensors (floats in the numerics' dtype) and states by name in, outputs by name out, states replaced in their buffers.
"""

from collections.abc import Mapping
from typing import Any, Protocol


class Engine(Protocol):
    """Executes one function of a program.

    >>> engine: Engine = Interpreter(graph, numerics_named("fp32"))
    >>> outputs = engine.run({"ids": ids, "mask": mask})
    """

    @property
    def name(self) -> str:
        """Its name, as ``load_model(engine=...)`` takes it."""

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name. States are replaced in their buffers."""
