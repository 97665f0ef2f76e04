"""What a rule of ``coreflow lint`` is: a wrong conversion, a case that shows it, what finds it, and the way around it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Literal

import torch
from torch import Tensor, nn

from coreflow.export.lint.calls import Call
from coreflow.export.package.graph import Graph, Op
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Draw
from coreflow.models.spec import TensorSpec

Function = Callable[..., Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A conversion of plain coremltools 9.0 that ends well and is wrong.

    >>> RULE = Rule(id="diagonal", title="...", source="coremltools issue 2565", remedy="...", case=wrong, healthy=right, finds=is_diagonal)

    ``case`` and ``healthy`` are functions of one input, drawn by ``draw``: the first converts wrongly, the second, much the same, does not.
    """

    id: str
    title: str  # what coremltools does, in a line
    source: str  # where that is reported or was seen
    remedy: str  # what coreflow does about it, or what to write instead
    case: Function
    healthy: Function
    draw: Draw
    finds: Callable[[Call], bool] = lambda call: False  # in what a module calls
    finds_in_program: Callable[[Op, Graph], bool] = lambda op, graph: False  # in a saved program
    front_end: Literal["trace", "export"] = "trace"  # by which plain coremltools is wrong
    precision: Literal["fp16", "fp32"] = "fp32"  # at which it is

    def recipe(self, function: Function) -> Recipe:
        """``case`` or ``healthy`` as a recipe."""
        specs = {name: TensorSpec(array.shape, str(array.dtype)) for name, array in self.draw(0).items()}  # type: ignore[arg-type]
        return Recipe(
            name=self.id.replace("-", "_"),
            module=_Applied(function),
            inputs=specs,
            outputs=("y",),
            precision=self.precision,
            draw=self.draw,
        )


class _Applied(nn.Module):
    """A function as a module; truth values come out as 0 and 1."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        result = self.function(x)
        return result.to(torch.int32) if result.dtype == torch.bool else result


def all_rules() -> Iterator[Rule]:
    """The rule of every file, by name."""
    folder = import_module("coreflow.export.lint.rules")
    for module in iter_modules(folder.__path__):
        yield import_module(f"{folder.__name__}.{module.name}").RULE
