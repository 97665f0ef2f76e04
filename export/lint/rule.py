"""What a rule of ``coreflow lint`` is: a wrong conversion, a case that shows it, what finds it, and the way around it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Literal

from coreflow.export.engine.finding import Known
from coreflow.export.engine.rule import Context
from coreflow.export.engine.targets import Evidence
from coreflow.export.package.graph import Op
from coreflow.models.arrays import Draw
from coreflow.models.spec import TensorSpec

if TYPE_CHECKING:
    from torch import nn

    from coreflow.export.lint.calls import Call
    from coreflow.export.recipe import Recipe

Function = Callable[..., Any]  # of tensors; torch is loaded where a module is looked at, and not for packages


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
    finds: Callable[["Call"], bool] = lambda call: False  # in what a module calls
    finds_in_program: Callable[[Op, Context], bool] = lambda op, context: False  # in a saved program
    front_end: Literal["trace", "export"] = "trace"  # by which plain coremltools is wrong
    precision: Literal["fp16", "fp32"] = "fp32"  # at which it is

    @property
    def known(self) -> Known:
        """How the conversion is known to be wrong: by the test of ``case``."""
        return Known(self.title, Evidence("tested", self.source))

    def recipe(self, function: Function) -> "Recipe":
        """``case`` or ``healthy`` as a recipe."""
        from coreflow.export.recipe import Recipe

        specs = {name: TensorSpec(array.shape, str(array.dtype)) for name, array in self.draw(0).items()}  # type: ignore[arg-type]
        return Recipe(
            name=self.id.replace("-", "_"),
            module=_as_module(function),
            inputs=specs,
            outputs=("y",),
            precision=self.precision,
            draw=self.draw,
        )


def _as_module(function: Function) -> "nn.Module":
    """A function as a module; truth values come out as 0 and 1."""
    import torch

    class Applied(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            result = function(x)
            return result.to(torch.int32) if result.dtype == torch.bool else result

    return Applied()


def all_rules() -> Iterator[Rule]:
    """The rule of every file, by name."""
    folder = import_module("coreflow.export.lint.rules")
    for module in iter_modules(folder.__path__):
        yield import_module(f"{folder.__name__}.{module.name}").RULE
