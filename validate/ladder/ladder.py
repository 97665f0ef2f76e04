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
from coreflow.validate.references.choices import margins_of
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
        for model in self.opened.rungs.values():
            if isinstance(model, LiftedModel):
                model.interpreter.rest()
        if observations:
            reference = self._open_reference()
            observations = [self._run_reference(observation, reference) for observation in self._announced("reference", observations)]
            observations[0] = replace(observations[0], again=reference.outputs(self.rounded(observations[0].sample)))
            del reference
        if observations and self.program_fp32 is not None:
            model_fp32 = self.open_fp32()
            observations = [self._run_program(seen, "R2", model_fp32) for seen in self._announced("fresh conversion", observations)]
            del model_fp32
        if observations and self.pairing is not None and self.pairing.is_complete:
            unrounded = self.open_unrounded()
            observations = [self._run_program(seen, "R2s", unrounded) for seen in self._announced("unrounded program", observations)]
        return [replace(observation, squares=dict(sorted(observation.squares.items()))) for observation in observations]

    def _announced(self, phase: PhaseName, observations: Sequence[Observation]) -> Iterator[Observation]:
        """``observations``, each announced before it is taken."""
        for place, observation in enumerate(observations):
            self._announce(phase, place / len(observations))
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
        return Observation(sample=sample, rungs=rungs, squares={}, reference=(), simulated=None, margins=())

    def _run_reference(self, observation: Observation, reference: Reference) -> Observation:
        """``observation`` plus reference outputs, squared errors and decision margins."""
        inputs = self.rounded(observation.sample)
        outputs = reference.outputs(inputs)
        choices = reference.choices
        simulated = reference.simulated_outputs(inputs)
        simulated_choices = reference.choices
        rungs: dict[RungName, Sequence[Array]] = {rung: tuple(arrays.values()) for rung, arrays in observation.rungs.items()}
        if self.opened.precision == "fp16" and (in_fp32 := reference.fp32_outputs(inputs)) is not None:
            rungs["R1"] = in_fp32
        return replace(
            observation,
            squares={rung: tuple(map(_squared_error, arrays, outputs)) for rung, arrays in rungs.items()},
            reference=outputs,
            simulated=simulated,
            margins=tuple(margins_of(output, choices, simulated_choices) if output.dtype.kind in "iu" else None for output in outputs),
            reference_margins=reference.margins(inputs) if reference.has_margins else None,
            simulated_margins=reference.simulated_margins(inputs) if reference.has_margins else None,
        )

    def _run_program(self, observation: Observation, rung: RungName, model: LiftedModel) -> Observation:
        """``observation`` plus the squared errors of ``rung``, which has the package's inputs in order; R2 takes its default shape."""
        inputs = self.rounded(observation.sample)
        if rung == "R2" and [array.shape for array in inputs.values()] != [spec.shape for spec in model.inputs.values()]:
            return observation
        outputs = model.predict(dict(zip(model.inputs, inputs.values(), strict=True)))
        squares = tuple(map(_squared_error, outputs.values(), observation.reference))
        return replace(observation, squares={**observation.squares, rung: squares})


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
