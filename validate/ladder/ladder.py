"""The rungs between a torch module and a device; each one isolates a cause.

=====  ==================================================================  =======================================
rung   what runs                                                           against the rung before it
=====  ==================================================================  =======================================
R0     the torch module in float64                                         the reference
R1     the torch module in float32                                         noise of the reference
R2     the module converted anew at FLOAT32, lifted, float64 arithmetic    translation
R2s    the saved program with the unrounded weights of the module, too     what the saved program computes otherwise
R3     the saved program, lifted, float64 arithmetic                       rounding of weights and constants
R4     the saved program, lifted, fp16 storage and fp32 accumulation       fp16 arithmetic
R5     the saved program on a device                                       device
=====  ==================================================================  =======================================
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from coreflow.export.package.graph import Program
from coreflow.models.arrays import Array, Arrays
from coreflow.runtime.backend import LoadOptions
from coreflow.runtime.lifted import LiftedModel
from coreflow.validate.gates.metrics import as_float64
from coreflow.validate.gates.tolerance import SEEDS
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.inputs.states import StatelessLifted
from coreflow.validate.ladder.localise import Localiser
from coreflow.validate.ladder.observation import Observation
from coreflow.validate.ladder.opening import OpenPackage
from coreflow.validate.options import PhaseName
from coreflow.validate.pairing.pairs import Pairing
from coreflow.validate.pairing.same_function import is_same_function
from coreflow.validate.references.choices import margins_of
from coreflow.validate.references.drawn_errors import DrawnErrors
from coreflow.validate.references.reference import Reference
from coreflow.validate.report.model import RungName


class Ladder:
    """All rungs of one package and its reference.

    A rung is opened when it is its turn and closed before the next, for all samples at a time: each holds the weights, most of them in
    float64.

    >>> ladder = Ladder(opened, lambda: TorchReference(module))
    >>> observations = ladder.observe(samples)
    """

    def __init__(
        self,
        opened: OpenPackage,
        open_reference: Callable[[], Reference],
        program_fp32: Program | None = None,
        pairing: Pairing | None = None,
        *,
        walks: bool = True,
        announce: Callable[[PhaseName, float], None] = lambda name, done: None,
    ) -> None:
        self.opened, self.program_fp32, self._open_reference = opened, program_fp32, open_reference
        self.pairing, self._announce = pairing, announce
        model_fp16, model_fp64 = opened.rungs.get("R4"), opened.rungs.get("R3")
        self.localiser: Localiser | None = None
        if walks and isinstance(model_fp16, LiftedModel) and isinstance(model_fp64, LiftedModel):
            self.localiser = Localiser(model_fp16, model_fp64)
        self._walked_samples = 0

    def rounded(self, sample: Sample) -> dict[str, Array]:
        """The inputs as the package takes them."""
        return {name: np.asarray(sample.inputs[name]).astype(spec.dtype) for name, spec in self.opened.model.inputs.items()}

    def open_fp32(self) -> LiftedModel:
        """R2; its inputs and outputs are those of the package in order, under other names."""
        assert self.program_fp32 is not None
        return LiftedModel(self.program_fp32, LoadOptions(numerics="fp64", engine="interpreter"))

    def open_unrounded(self) -> LiftedModel:
        """R2s; where a constant has no weight of the module, it keeps its own."""
        assert self.pairing is not None
        return StatelessLifted(self.opened.program.with_function(self.pairing.graph), "fp64")

    def observe(self, samples: Iterable[Sample]) -> list[Observation]:
        """Run every rung and the reference on every sample; inputs that do not fit are refused."""
        taken = tuple(samples)
        self._announce("saved program", 0.0)
        walked = self._walk(taken)
        observations = [self._run_package(sample, walked[place] if place < len(walked) else {}) for place, sample in enumerate(taken)]
        self.opened.rest()
        if observations:
            observations = self._run_reference(observations)
            observations = self._run_fresh_conversion(observations)
            observations = self._run_unrounded_program(observations)
        return [replace(observation, squares=dict(sorted(observation.squares.items()))) for observation in observations]

    def _announced(
        self, phase: PhaseName, observations: Sequence[Observation], begin: float = 0.0, end: float = 1.0
    ) -> Iterator[Observation]:
        """``observations``, each announced before it is taken; all of them are the part from ``begin`` to ``end`` of the phase."""
        for place, observation in enumerate(observations):
            self._announce(phase, begin + (end - begin) * place / len(observations))
            yield observation

    def _walk(self, samples: Sequence[Sample]) -> list[dict[RungName, Arrays]]:
        """R3 and R4 of the first samples, with every op measured; more samples would add little to what is known of an op."""
        if self.localiser is None:
            return []
        chosen = [sample.inputs for sample in samples[: SEEDS - self._walked_samples]]
        self._walked_samples += len(chosen)
        walked: list[dict[RungName, Arrays]] = []
        for outputs_fp16, outputs_fp64 in self.localiser.run(chosen):
            walked.append({"R3": _to_float32(outputs_fp64), "R4": outputs_fp16})
            self._announce("saved program", len(walked) / len(samples))
        return walked

    def _run_package(self, sample: Sample, walked: Mapping[RungName, Arrays]) -> Observation:
        """The saved program on a sample; ``walked`` has the outputs of rungs that have run already."""
        rungs = {rung: walked[rung] if rung in walked else model.predict(sample.inputs) for rung, model in self.opened.rungs.items()}
        return Observation(sample=sample, rungs=rungs, squares={}, reference=(), simulated=(), margins=())

    def _run_reference(self, observations: Sequence[Observation]) -> list[Observation]:
        """``observations`` plus reference outputs, squared errors and decision margins.

        One arithmetic after the other, each on a reference that is opened for it alone: a module is copied for every arithmetic.
        """
        reference = self._open_reference()
        seen = [self._run_fp64(observation, reference) for observation in self._announced("reference", observations, 0.0, 0.5)]
        seen[0] = replace(seen[0], again=reference.outputs(self.rounded(seen[0].sample)))
        reference = self._open_reference()
        seen = [self._run_simulation(observation, reference) for observation in self._announced("reference", seen, 0.5, 0.75)]
        if self.opened.precision != "fp16":
            return seen
        reference = self._open_reference()
        return [self._run_fp32(observation, reference) for observation in self._announced("reference", seen, 0.75, 1.0)]

    def _run_fp64(self, observation: Observation, reference: Reference) -> Observation:
        """``observation`` plus R0, and the simulation where outputs are choices: their scores are held for one sample at a time."""
        inputs = self.rounded(observation.sample)
        outputs = reference.outputs(inputs)
        choices = reference.choices
        simulated: tuple[Array, ...] = ()
        margins: tuple[tuple[Array, Array] | None, ...] = (None,) * len(outputs)
        if choices:
            simulated = reference.simulated_outputs(inputs) or ()
            margins = tuple(margins_of(output, choices, reference.choices) if output.dtype.kind in "iu" else None for output in outputs)
        return replace(
            observation,
            squares={rung: tuple(map(_squared_error, arrays.values(), outputs)) for rung, arrays in observation.rungs.items()},
            reference=outputs,
            simulated=simulated,
            margins=margins,
            reference_margins=reference.margins(inputs) if reference.has_margins else None,
        )

    def _run_simulation(self, observation: Observation, reference: Reference) -> Observation:
        """``observation`` plus the outputs of the simulation, and its margins of the decisions inside the module."""
        inputs = self.rounded(observation.sample)
        return replace(
            observation,
            simulated=observation.simulated or reference.simulated_outputs(inputs) or self._draw_errors(observation),
            simulated_margins=reference.simulated_margins(inputs) if reference.has_margins else None,
        )

    def _draw_errors(self, observation: Observation) -> tuple[Array, ...]:
        """Outputs of the reference with the errors that a run in the package's precision may have, where the reference simulates none."""
        exact = observation.rungs.get("R3") or observation.rungs["R4"]  # R4 is in float64 where there is no R3
        return self._drawn.simulate(self.rounded(observation.sample), exact, observation.reference)

    @cached_property
    def _drawn(self) -> DrawnErrors:
        return DrawnErrors(self.opened.program)

    def _run_fp32(self, observation: Observation, reference: Reference) -> Observation:
        """``observation`` plus the squared errors of R1, where the reference has one."""
        outputs = reference.fp32_outputs(self.rounded(observation.sample))
        return observation if outputs is None else _with_rung(observation, "R1", outputs)

    def _run_fresh_conversion(self, observations: list[Observation]) -> list[Observation]:
        """``observations`` plus the squared errors of R2, of those in its default shape."""
        if self.program_fp32 is None:
            return observations
        model = self.open_fp32()
        shapes = [spec.shape for spec in model.inputs.values()]

        def run(observation: Observation) -> Observation:
            has_shapes = [array.shape for array in self.rounded(observation.sample).values()] == shapes
            return self._run_program(observation, "R2", model) if has_shapes else observation

        return [run(observation) for observation in self._announced("fresh conversion", observations)]

    def _run_unrounded_program(self, observations: list[Observation]) -> list[Observation]:
        """``observations`` plus the squared errors of R2s; they are those of R2 where the two programs are one but for names and casts."""
        if self.pairing is None or not self.pairing.is_complete:
            return observations
        is_fresh = self.program_fp32 is not None and is_same_function(self.pairing.graph, self.program_fp32.function()[0])
        model: LiftedModel | None = None
        seen: list[Observation] = []
        for observation in self._announced("unrounded program", observations):
            if is_fresh and "R2" in observation.squares:
                seen.append(replace(observation, squares={**observation.squares, "R2s": observation.squares["R2"]}))
            else:
                model = model or self.open_unrounded()
                seen.append(self._run_program(observation, "R2s", model))
        return seen

    def _run_program(self, observation: Observation, rung: RungName, model: LiftedModel) -> Observation:
        """``observation`` plus the squared errors of ``rung``, which has the package's inputs in order."""
        outputs = model.predict(dict(zip(model.inputs, self.rounded(observation.sample).values(), strict=True)))
        return _with_rung(observation, rung, outputs.values())


def _with_rung(observation: Observation, rung: RungName, outputs: Iterable[Array]) -> Observation:
    """``observation`` plus the squared errors of the ``outputs`` of ``rung``."""
    return replace(observation, squares={**observation.squares, rung: tuple(map(_squared_error, outputs, observation.reference))})


def _to_float32(outputs: Arrays) -> dict[str, Array]:
    """In float32, whose own rounding is 2^-13 of fp16's: outputs of every sample are kept."""
    return {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in outputs.items()}


def _squared_error(values: Array, reference: Array) -> float:
    """Sum of squares where the reference is finite; infinite or NaN where the value is not. Of other shapes: NaN."""
    if np.shape(values) != (reference.shape or (1,)) and np.shape(values) != reference.shape:
        return float("nan")
    expected = as_float64(reference).reshape(-1)
    finite = np.isfinite(expected)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = (as_float64(values).reshape(-1) - expected)[finite]
        return float(np.dot(difference, difference))
