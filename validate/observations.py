"""First step of a judgement: every rung and the reference on every sample, until the decisions of enough samples are clear."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from coreflow.export.package.mlpackage import read_program
from coreflow.models.arrays import Arrays, Bools
from coreflow.models.errors import ConfigError, UnsupportedError
from coreflow.runtime.lift.ops.gather import NegativeIndexError
from coreflow.validate.case import Case
from coreflow.validate.gates.decisions import Decisions, find_decisions
from coreflow.validate.gates.finite import find_infinite_weights
from coreflow.validate.gates.structure import (
    NO_INPUTS,
    NO_REFERENCE,
    Obstacle,
    find_integer_obstacle,
    find_interface_obstacle,
    find_output_obstacle,
    find_unrepeatable_reference,
)
from coreflow.validate.gates.tolerance import MAX_SEEDS, MIN_DECIDED, SEEDS
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.ladder.fp32 import Fp32Conversion, try_fp32
from coreflow.validate.ladder.ladder import Ladder
from coreflow.validate.ladder.observation import Observation
from coreflow.validate.options import Options
from coreflow.validate.pairing.pairs import Pairing, pair
from coreflow.validate.pairing.weights import Weight, weights_of_graph, weights_of_module


@dataclass(frozen=True, kw_only=True, eq=False)
class Observations:
    """All samples on all rungs.

    >>> observations = observe(case, Options())
    >>> len(observations.by_sample), int(observations.kept.sum())
    (8, 8)
    """

    by_sample: tuple[Observation, ...]
    decisions: Decisions
    ladder: Ladder  # as it was climbed: it knows what every op lost
    fp32: Fp32Conversion
    omissions: str  # what the options left out
    pairing: Pairing | None = None  # of the saved constants with the module's weights; None without a module

    @property
    def kept(self) -> Bools:
        """(samples,): False where a decision may fall either way, and did."""
        return self.decisions.kept

    @property
    def is_simulated(self) -> bool:
        """Whether the budget is the error of an execution, not a heuristic."""
        return self.by_sample[0].simulated is not None


def observe(case: Case, options: Options) -> Observations | Obstacle:
    """The observations of ``case``, or the obstacle to a comparison."""
    drawn = case.from_seeds(range(options.first_seeds))
    swept = case.sweeps() if options.sweep else ()
    if obstacle := _find_obstacle(case, (*drawn, *case.samples, *swept)):
        return obstacle
    outputs = list(case.opened.model.outputs)
    announce = partial(options.announce, case.name)
    announce("converting anew")
    fp32 = _fp32_conversion(case, options, (*case.samples, *drawn))
    pairing = None if case.module is None else pair(case.opened.graph, _weights(fp32, case.module))
    ladder = Ladder(case.opened, case.open_reference, fp32.program, pairing, walks=not options.quick, announce=announce)
    try:
        observations = ladder.observe((*drawn, *case.samples, *swept))
    except UnsupportedError as error:
        return _find_index_obstacle(case, [ladder.rounded(sample) for sample in (*drawn, *case.samples, *swept)], error)
    except ConfigError:
        if case.module is None or not (
            obstacle := find_integer_obstacle(case.opened.model, (*drawn, *case.samples)[0], case.open_reference)
        ):
            raise
        return obstacle
    if obstacle := _find_reference_obstacle(case, ladder, observations):
        return obstacle
    decisions = find_decisions(observations, outputs)
    for start in range(options.first_seeds, MAX_SEEDS, SEEDS):
        if case.draw is None or _decided_seeds(observations, decisions) >= min(MIN_DECIDED, options.first_seeds):
            break
        observations += ladder.observe(case.from_seeds(range(start, start + SEEDS)))
        decisions = find_decisions(observations, outputs)
    return Observations(
        by_sample=tuple(observations), decisions=decisions, ladder=ladder, fp32=fp32, omissions=options.omissions, pairing=pairing
    )


def _find_obstacle(case: Case, samples: Sequence[Sample]) -> Obstacle | None:
    """The obstacle that shows before anything has run."""
    if case.source is None:
        return NO_REFERENCE
    if obstacle := find_infinite_weights(case.module, case.opened.graph):
        return obstacle
    first = samples[:1] if case.module is not None else ()
    if obstacle := find_interface_obstacle(case.opened.model, case.recipe, first, case.open_reference):
        return obstacle
    return None if samples else NO_INPUTS


def _find_index_obstacle(case: Case, inputs: Sequence[Arrays], error: UnsupportedError) -> Obstacle:
    """The obstacle of a program that gets a negative index which the reference counts from the end; every other error is raised."""
    if not isinstance(error.__cause__, NegativeIndexError):
        raise error
    reference = case.open_reference()
    for arrays in inputs:
        reference.outputs(arrays)  # raises where the reference takes no such index either
    text = f"{error}; the reference does count it so, and what a device gives is undefined"
    return Obstacle(cause="translation", problems=(text,))


def _find_reference_obstacle(case: Case, ladder: Ladder, observations: Sequence[Observation]) -> Obstacle | None:
    """The obstacle that shows once the reference has run."""
    specs, precision, first = case.opened.model.outputs, case.opened.precision, observations[0]
    if obstacle := find_output_obstacle(specs, precision, observations, is_converted=case.module is not None):
        return obstacle
    return find_unrepeatable_reference(first, list(specs), lambda: case.open_reference().outputs(ladder.rounded(first.sample)))


def _fp32_conversion(case: Case, options: Options, samples: Sequence[Sample]) -> Fp32Conversion:
    """R2 of ``samples``, those in use first: a fresh conversion is traced on the first of them and has to hold on all others."""
    if options.fp32_package is not None or case.module is None:
        return Fp32Conversion(program=None if options.fp32_package is None else read_program(options.fp32_package))
    target = None if case.recipe is None else case.recipe.target
    return try_fp32(case.opened, case.module, target, [sample.inputs for sample in samples])


def _weights(fp32: Fp32Conversion, module: nn.Module) -> Iterator[Weight]:
    """The unrounded weights of a reference; those of a fresh conversion are folded and laid out as the saved ones."""
    if fp32.program is not None:
        yield from weights_of_graph(fp32.program.function()[0])
    yield from weights_of_module(module)


def _decided_seeds(observations: list[Observation], decisions: Decisions) -> int:
    """Number of samples from seeds that are kept."""
    return sum(is_kept for is_kept, seen in zip(decisions.kept, observations, strict=True) if seen.sample.seed is not None)
