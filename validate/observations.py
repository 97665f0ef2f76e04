"""First step of a judgement: every rung and the reference on every sample, until the decisions of enough samples are clear."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import nn

from coreflow.export.package.mlpackage import read_program
from coreflow.models.arrays import Bools
from coreflow.models.errors import ConfigError, CoreflowError, InputError, UnsupportedError
from coreflow.models.spec import TensorSpec
from coreflow.runtime.lift.ops.gather import NegativeIndexError
from coreflow.validate.case import Case
from coreflow.validate.gates.conditions import reacting_gate
from coreflow.validate.gates.decisions import Decisions, find_decisions
from coreflow.validate.gates.finite import find_infinite_weights
from coreflow.validate.gates.metrics import as_float64
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
from coreflow.validate.gates.undefined import find_undefined
from coreflow.validate.inputs.misfits import find_misfit, index_tables
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.inputs.shapes import describe_shapes
from coreflow.validate.ladder.fp32 import Fp32Conversion, try_fp32
from coreflow.validate.ladder.ladder import Ladder
from coreflow.validate.ladder.observation import Observation
from coreflow.validate.ladder.opening import OpenPackage
from coreflow.validate.options import Options
from coreflow.validate.pairing.pairs import Pairing, pair
from coreflow.validate.pairing.weights import Weight, weights_of_graph, weights_of_module


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A sample that was not compared: its values are none that the package takes, or the package or the reference does not run on it.

    >>> Refusal(text="input 3: input 'ids' holds 130 at [0, 2]; 0 to 99 is right")
    """

    text: str
    reference_runs: bool = False  # the package alone does not run


@dataclass(frozen=True, kw_only=True, eq=False)
class Observations:
    """All samples of one shape on all rungs.

    >>> (observations,) = observe(case, Options())
    >>> len(observations.by_sample), int(observations.kept.sum())
    (8, 8)
    """

    by_sample: tuple[Observation, ...]
    decisions: Decisions
    ladder: Ladder  # as it was climbed: it knows what every op lost
    fp32: Fp32Conversion
    omissions: str  # what the options left out
    pairing: Pairing | None = None  # of the saved constants with the module's weights; None without a module
    shape: str = ""  # "x [1, 32]" where samples of other shapes were compared too
    refusals: tuple[Refusal, ...] = ()  # of any shape
    undefined: tuple[str, ...] = ()  # samples of any shape on which the module has no value, and why

    @property
    def kept(self) -> Bools:
        """(samples,): False where a decision may fall either way, and did."""
        return self.decisions.kept


def observe(case: Case, options: Options) -> tuple[Observations, ...] | Obstacle:
    """The observations of ``case``, one value per shape of its inputs and the default's first, or the obstacle to a comparison."""
    drawn = (*case.from_seeds(range(options.first_seeds)), *case.in_other_shapes(range(_enough(options))))
    samples, refusals = _without_misfits(case, (*drawn, *case.samples))
    if obstacle := _find_obstacle(case, samples, options):
        return obstacle
    in_use = sorted(samples, key=lambda sample: sample.seed is not None)
    samples += tuple(case.sweeps() if options.sweep else ())
    announce = partial(options.announce, case.name)
    announce("converting anew")
    case.opened.rest()  # the converter needs the room
    fp32 = _fp32_conversion(case, options, in_use)
    pairing = None if case.module is None else pair(case.opened.graph, _weights(fp32, case.module))
    open_ladder = partial(Ladder, case.opened, case.open_reference, fp32.program, pairing, walks=not options.quick, announce=announce)
    ladder = open_ladder()
    try:
        observations = ladder.observe(samples)
    except (ConfigError, InputError, UnsupportedError) as error:
        if obstacle := _find_index_obstacle(case, ladder, samples, error) or _find_integer_obstacle(case, ladder, samples, error):
            return obstacle
        samples, refused = _without_refused(case, ladder, samples, error)
        refusals += refused
        ladder = open_ladder()  # the first has counted some samples
        observations = ladder.observe(samples)
    if obstacle := _find_reference_obstacle(case, ladder, observations):
        return obstacle
    undefined = find_undefined(observations, case.inputs)
    groups = _by_shape([seen for place, seen in enumerate(observations) if place not in undefined], case.opened.model.inputs)
    decided = [_until_decided(case, options, ladder, group, can_draw=place == 0) for place, group in enumerate(groups.values())]
    return tuple(
        Observations(
            by_sample=tuple(group),
            decisions=decisions,
            ladder=ladder,
            fp32=fp32,
            omissions=options.omissions,
            pairing=pairing,
            shape=shape,
            refusals=tuple(refusals),
            undefined=tuple(undefined.values()),
        )
        for shape, (group, decisions) in zip(groups, decided, strict=True)
    )


def _find_obstacle(case: Case, samples: Sequence[Sample], options: Options) -> Obstacle | None:
    """The obstacle that shows before anything has run."""
    if case.source is None:
        return NO_REFERENCE
    if obstacle := find_infinite_weights(case.module, case.opened.graph):
        return obstacle
    first = samples[:1] if case.module is not None else ()
    if obstacle := find_interface_obstacle(case.opened.model, case.recipe, first, case.open_reference):
        return obstacle
    return None if samples or options.sweep else NO_INPUTS


def _find_index_obstacle(case: Case, ladder: Ladder, samples: Sequence[Sample], error: CoreflowError) -> Obstacle | None:
    """The obstacle of a program that gets a negative index which the reference counts from the end, in all samples that it takes."""
    if not isinstance(error.__cause__, NegativeIndexError):
        return None
    reference = case.open_reference()
    if any(_refusal(partial(reference.outputs, ladder.rounded(sample)), ConfigError, InputError) for sample in samples):
        return None
    text = f"{error}; the reference does count it so, and what a device gives is undefined"
    return Obstacle(cause="translation", problems=(text,))


def _find_integer_obstacle(case: Case, ladder: Ladder, samples: Sequence[Sample], error: CoreflowError) -> Obstacle | None:
    """The obstacle of a program that takes whole numbers as floats, on which the reference does not run."""
    if case.module is None or not isinstance(error, ConfigError):
        return None
    if not _refusal(partial(case.open_reference().outputs, ladder.rounded(samples[0])), ConfigError):
        return None
    return find_integer_obstacle(case.opened.model, samples[0], case.open_reference)


def _find_reference_obstacle(case: Case, ladder: Ladder, observations: Sequence[Observation]) -> Obstacle | None:
    """The obstacle that shows once the reference has run."""
    first = observations[0]
    specs, precision = declared_outputs(case.opened, first), case.opened.precision
    if obstacle := find_output_obstacle(specs, precision, observations, is_converted=case.module is not None):
        return obstacle
    return find_unrepeatable_reference(first, list(specs), lambda: case.open_reference().outputs(ladder.rounded(first.sample)))


def _without_misfits(case: Case, samples: Sequence[Sample]) -> tuple[tuple[Sample, ...], list[Refusal]]:
    """The samples whose values the package takes, and refusals of the others; ``InputError`` where it takes none."""
    specs, tables = case.opened.model.inputs, index_tables(case.opened.graph)
    problems = [find_misfit(sample, specs, tables) for sample in samples]
    fitting = tuple(sample for sample, problem in zip(samples, problems, strict=True) if not problem)
    refusals = [Refusal(text=problem) for problem in problems if problem]
    if refusals and not fitting:
        raise InputError(refusals[0].text)
    return fitting, refusals


def _without_refused(
    case: Case, ladder: Ladder, samples: Sequence[Sample], error: CoreflowError
) -> tuple[tuple[Sample, ...], list[Refusal]]:
    """The samples on which package and reference run, and refusals of the others; ``error``, which one of them raised, where there are none
    of either.

    What does not have the names, dtypes and shapes of the inputs is the caller's error, and raised.
    """
    reference = case.open_reference()
    running: list[Sample] = []
    refused: dict[tuple[str, bool], list[str]] = {}
    for sample in samples:
        by_package = _refusal(partial(case.opened.model.predict, sample.inputs), UnsupportedError)
        by_reference = _refusal(partial(reference.outputs, ladder.rounded(sample)), ConfigError, InputError)
        if by_package or by_reference:
            refused.setdefault((by_reference or by_package, not by_reference), []).append(sample.label)
        else:
            running.append(sample)
    if not running or not refused:
        raise error
    return tuple(running), [
        Refusal(text=f"{labels[0]}{f' and {len(labels) - 1} more' if len(labels) > 1 else ''}: {problem}", reference_runs=reference_runs)
        for (problem, reference_runs), labels in refused.items()
    ]


def _refusal(run: Callable[[], object], *errors: type[CoreflowError]) -> str:
    """The text of the error that ``run`` raises; empty where it raises none of these."""
    try:
        run()
    except errors as error:
        return str(error)
    return ""


def declared_outputs(opened: OpenPackage, seen: Observation) -> dict[str, TensorSpec]:
    """The outputs as the package declares them; extents that it leaves open are those of a prediction."""
    is_open = {value.name for value in opened.graph.outputs if value.shape is None or None in value.shape}
    return {
        name: replace(spec, shape=np.shape(seen.actual[name])) if name in is_open else spec for name, spec in opened.model.outputs.items()
    }


def _by_shape(observations: Sequence[Observation], specs: Mapping[str, TensorSpec]) -> dict[str, list[Observation]]:
    """The observations by the shapes of those inputs that come in several; by nothing where all samples have one shape."""
    names = [name for name in specs if len({np.shape(seen.sample.inputs[name]) for seen in observations}) > 1]
    groups: dict[str, list[Observation]] = {}
    for seen in observations:
        shapes = {name: np.shape(seen.sample.inputs[name]) for name in names}
        groups.setdefault(describe_shapes(shapes), []).append(seen)
    return groups


def _until_decided(
    case: Case, options: Options, ladder: Ladder, group: list[Observation], *, can_draw: bool
) -> tuple[list[Observation], Decisions]:
    """The observations of one shape, with those of more seeds until enough are clear and every output has moved, and their decisions."""
    outputs = list(case.opened.model.outputs)
    decisions = find_decisions(group, outputs)
    for start in range(options.first_seeds, MAX_SEEDS, SEEDS):
        has_enough = _decided_seeds(group, decisions) >= _enough(options)
        if case.draw is None or not can_draw or (has_enough and (options.quick or not _has_idle_output(group))):
            break
        group += ladder.observe(case.from_seeds(range(start, start + SEEDS)))
        decisions = find_decisions(group, outputs)
    return group, decisions


def _enough(options: Options) -> int:
    """Number of samples from seeds, with clear decisions, that carry a verdict."""
    return min(MIN_DECIDED, options.first_seeds)


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


def _has_idle_output(observations: Sequence[Observation]) -> bool:
    """Whether some output of the reference has been the same so far, whatever the inputs: what moves it may be rare."""
    stacked = (as_float64(np.stack(arrays)) for arrays in zip(*(seen.reference for seen in observations), strict=True))
    return any(reacting_gate(np.where(np.isfinite(values), values, 0.0)) is not None for values in stacked)


def _decided_seeds(observations: list[Observation], decisions: Decisions) -> int:
    """Number of samples from seeds that are kept."""
    return sum(is_kept for is_kept, seen in zip(decisions.kept, observations, strict=True) if seen.sample.seed is not None)
