"""A case: a package, the reference that it is compared with, and the inputs that both get."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from coreflow.export.capture.modules import as_module
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Draw
from coreflow.models.draws import draw_inputs
from coreflow.validate.inputs.samples import Sample, Specs
from coreflow.validate.inputs.shapes import describe_shapes, other_shapes
from coreflow.validate.inputs.states import from_fresh, stateless, with_states
from coreflow.validate.inputs.sweeps import sweep_samples
from coreflow.validate.ladder.opening import OpenPackage
from coreflow.validate.references.golden import GoldenReference
from coreflow.validate.references.opening import open_reference
from coreflow.validate.references.reference import Reference
from coreflow.validate.references.torch_module import TorchReference


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A package and its reference; states are inputs and outputs of both.

    >>> case = make_case(open_package(read_program(path), Options()), recipe)
    >>> [sample.label for sample in case.from_seeds(range(2))]
    ['seed 0', 'seed 1']
    """

    opened: OpenPackage
    name: str
    source: nn.Module | Recipe | Reference | None = None  # None: there is nothing to compare with
    samples: tuple[Sample, ...] = ()  # beside those from seeds
    draw: Draw | None = None
    shapes: tuple[Specs, ...] = ()  # the inputs in other shapes that the package takes, beside the default
    draws_shapes: bool = False  # whether inputs of those are drawn too, as they can be by specs alone

    @property
    def recipe(self) -> Recipe | None:
        """The recipe that the package was made from, where that is the reference."""
        return self.source if isinstance(self.source, Recipe) else None

    @property
    def module(self) -> nn.Module | None:
        """The torch module that the package was made from, where that is the reference."""
        return self.recipe.module if self.recipe is not None else self.source if isinstance(self.source, nn.Module) else None

    @property
    def inputs(self) -> Specs:
        """The inputs of the package as its recipe describes them, where there is one."""
        described = {} if self.recipe is None else self.recipe.inputs
        return {name: described.get(name, spec) for name, spec in self.opened.model.inputs.items()}

    @property
    def reference_label(self) -> str:
        """Name of the reference in the report."""
        return TorchReference.label if self.module is not None else getattr(self.source, "label", "none")

    @property
    def budget_label(self) -> str:
        """Name of the budget, the error by which the package's errors are divided."""
        return f"torch's own {self.opened.precision}" if self.module is not None else getattr(self.source, "budget", "none")

    def open_reference(self) -> Reference:
        """The reference, ready to run; a module is copied in every arithmetic that is needed."""
        if self.module is not None:
            has_integers = any(spec.dtype == "int32" for spec in self.opened.model.outputs.values())
            return TorchReference(self.module, self.opened.precision, tuple(self.opened.model.outputs), records_choices=has_integers)
        assert self.source is not None
        assert not isinstance(self.source, nn.Module | Recipe)
        return self.source

    def from_seeds(self, seeds: range) -> tuple[Sample, ...]:
        """One sample per seed; none without a ``draw``."""
        if self.draw is None:
            return ()
        return tuple(Sample(label=f"seed {seed}", inputs=self.draw(seed), seed=seed) for seed in seeds)

    def in_other_shapes(self, seeds: range) -> tuple[Sample, ...]:
        """One sample per seed in each of ``shapes``; none where a caller's ``draw``, or samples, say what the inputs are."""
        if not self.draws_shapes:
            return ()
        return tuple(
            Sample(label=f"seed {seed} at {self.describe(specs)}", inputs=draw_inputs(specs, seed), seed=seed)
            for specs in self.shapes
            for seed in seeds
        )

    def shapes_without(self, samples: Sequence[Sample]) -> list[str]:
        """Those of ``shapes`` in which none of ``samples`` is, and none was drawn."""
        if self.draws_shapes:
            return []
        actual = [{name: np.shape(array) for name, array in sample.inputs.items()} for sample in samples]
        return [self.describe(specs) for specs in self.shapes if {name: spec.shape for name, spec in specs.items()} not in actual]

    def describe(self, specs: Specs) -> str:
        """The shapes of those inputs that differ from the default."""
        default = self.opened.model.inputs
        return describe_shapes({name: spec.shape for name, spec in specs.items() if spec.shape != default[name].shape})

    def sweeps(self) -> list[Sample]:
        """Samples of extreme inputs."""
        return sweep_samples(self.inputs, self.draw or partial(draw_inputs, self.inputs))


def make_case(
    opened: OpenPackage,
    reference: nn.Module | Recipe | Reference | Path | None,
    samples: Sequence[Sample] = (),
    draw: Draw | None = None,
    *,
    name: str | None = None,
) -> Case:
    """The case of a package against ``reference``: a path is opened, and without any the outputs that the samples carry are recorded.

    ``draw`` is the recipe's unless another is passed; without a recipe and without samples it draws within the bounds of the package.
    """
    draws_shapes = draw is None and (reference.draw is None if isinstance(reference, Recipe) else not samples)
    if draw is None and isinstance(reference, Recipe):
        draw = reference.inputs_for
    elif draws_shapes:
        draw = partial(draw_inputs, opened.model.inputs)
    source: nn.Module | Recipe | Reference
    if opened.states:
        samples = [replace(sample, inputs=from_fresh(sample.inputs, opened.states)) for sample in samples]
        draw = None if draw is None else with_states(draw, opened.states)
    if reference is None:
        draw, source = None, GoldenReference(samples, list(opened.model.outputs))
    elif isinstance(reference, Path):
        source = open_reference(reference, list(opened.model.outputs))
    elif isinstance(reference, nn.Module | Recipe):
        reference = reference if isinstance(reference, Recipe) else as_module(reference) or reference
        source = stateless(reference, opened.model, opened.states) if opened.states else reference
    else:
        source = reference
    if name is None:
        name = reference.name if isinstance(reference, Recipe) else opened.path.stem
    case = Case(opened=opened, name=name, source=source, samples=tuple(samples), draw=draw, draws_shapes=draws_shapes and draw is not None)
    return replace(case, shapes=other_shapes(case.inputs, opened.interface))
