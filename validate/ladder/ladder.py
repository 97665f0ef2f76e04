"""The rungs between a torch module and what a device computes; each one isolates a cause.

=====  ==================================================================  =======================================
rung   what runs                                                           against the rung before it
=====  ==================================================================  =======================================
R0     the torch module in float64                                         the reference
R1     the torch module in float32                                         noise of the reference
R2     the module converted anew at FLOAT32, lifted, float64 arithmetic    translation
R3     the saved program, lifted, float64 arithmetic                       rounding of weights and constants
R4     the saved program, lifted, fp16 storage and wide accumulation       fp16 arithmetic
R5     the saved program on a device                                       device
=====  ==================================================================  =======================================
"""

import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from torch import nn

from coreflow.export.bundle import conversion_of
from coreflow.export.capture import capture
from coreflow.export.package.graph import Graph, Program, read_program
from coreflow.export.recipe import Recipe, Target
from coreflow.export.targets.mlprogram import Conversion, convert
from coreflow.models.arrays import Array, Arrays, Draw
from coreflow.models.errors import CoreflowError
from coreflow.models.spec import TensorSpec
from coreflow.runtime.backend import Backend, ComputeUnits, LoadOptions, Model, NumericsName
from coreflow.runtime.cache import Cache
from coreflow.runtime.interface import output_specs
from coreflow.runtime.lift.registry import load_lowerings, require_all
from coreflow.runtime.lifted import LiftedModel
from coreflow.runtime.load import load_model
from coreflow.validate.gates.metrics import as_float64
from coreflow.validate.gates.tolerance import DEVICE, FP32, LIFTED, SEEDS, Tolerance
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.inputs.states import StatelessLifted, StatelessModel
from coreflow.validate.ladder.localise import Localiser
from coreflow.validate.references.choices import margins_of
from coreflow.validate.references.reference import Reference
from coreflow.validate.references.torch_module import Precision, TorchReference

logger = logging.getLogger(__name__)


_NOT_COUNTED = ("cast", "read_state", "write_state", "coreml_update_state")
_TARGETS: Mapping[str, Target] = {"CoreML6": "iOS16", "CoreML7": "iOS17", "CoreML8": "iOS18"}


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenPackage:
    """A package, opened in every arithmetic that the ladder needs; the last rung is the one that is judged."""

    path: Path
    rungs: Mapping[str, Model]  # R3: fp64, R4: fp16 storage, R5: a device
    precision: Precision
    tolerance: Tolerance
    numerics: NumericsName | Literal["device"]
    compute_units: ComputeUnits
    states: Mapping[str, TensorSpec] = field(default_factory=dict)  # which are inputs and outputs of the rungs
    units: Mapping[str, Callable[[], Model]] = field(default_factory=dict)  # to compare, beside those that are judged

    @property
    def last(self) -> str:
        """The last rung."""
        return list(self.rungs)[-1]

    @property
    def model(self) -> Model:
        """The model of the last rung."""
        return self.rungs[self.last]

    @property
    def graph(self) -> Graph:
        """The program."""
        return read_program(self.path).function()[0] if not isinstance(self.model, LiftedModel) else self.model.interpreter.graph


def open_package(
    package: Path,
    backend: Backend = "auto",
    *,
    numerics: NumericsName = "fp16",
    compute_units: ComputeUnits = "all",
    tolerance: Tolerance | None = None,
) -> OpenPackage:
    """Open ``package`` as it will be judged, and lifted for the rungs below that."""
    # The interpreter by name: every bit is to be the same in every run, and ops are to be seen.
    model = load_model(package, backend, numerics=numerics, engine="interpreter", compute_units=compute_units)
    program = model.program if isinstance(model, LiftedModel) else read_program(package)
    states = model.states
    if states:
        model = StatelessLifted(program, numerics) if isinstance(model, LiftedModel) else StatelessModel(model)
    lifted = model if isinstance(model, LiftedModel) else None
    graph, _ = program.function()
    halves = any(value.dtype == "float16" for op in graph.ops for value in op.outputs)
    precision: Precision = "fp16" if halves else "fp32"
    rungs: dict[str, Model] = {}
    if numerics != "fp64" or lifted is None:
        rungs["R3"] = StatelessLifted(program, "fp64")
    if lifted is None:
        rungs["R4"] = StatelessLifted(program, "fp16")
    rungs["R4" if lifted is not None else "R5"] = model
    if tolerance is None:
        tolerance = FP32 if precision == "fp32" else LIFTED if lifted is not None else DEVICE
    return OpenPackage(
        path=package,
        rungs=rungs,
        precision=precision,
        tolerance=tolerance,
        numerics=numerics if lifted is not None else "device",
        compute_units=compute_units,
        states=states,
        units={} if lifted is not None or compute_units != "all" else _other_units(program),
    )


def _other_units(program: Program) -> dict[str, Callable[[], Model]]:
    """What opens a package in Core ML on all compute units but ``all``."""

    def opened(unit: ComputeUnits) -> Model:
        model = load_model(program.path, "coreml", compute_units=unit)
        return StatelessModel(model) if model.states else model

    return {unit: partial(opened, unit) for unit in get_args(ComputeUnits) if unit != "all"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """What everything made of one sample."""

    sample: Sample
    rungs: Mapping[str, Arrays]  # of the saved program
    squares: dict[str, tuple[float, ...]]  # rung -> sum of squared errors of every output, where the reference is finite
    reference: tuple[Array, ...]
    simulated: tuple[Array, ...] | None  # None where nothing could be simulated
    margins: tuple[tuple[Array, Array] | None, ...]  # of outputs that are argmaxes: the margins, and fp16's noise in the scores
    reference_margins: Array | None = None
    simulated_margins: Array | None = None


class Ladder:
    """All rungs of one package and what it is compared with.

    A rung is opened when it is its turn and closed before the next, for all samples at a time: each holds the weights, most of them in
    float64.
    """

    def __init__(self, opened: OpenPackage, open_reference: Callable[[], Reference], fp32_package: Path | None = None) -> None:
        self.opened, self.fp32_package, self._open_reference = opened, fp32_package, open_reference
        narrow, exact = opened.rungs.get("R4"), opened.rungs.get("R3")
        both = isinstance(narrow, LiftedModel) and isinstance(exact, LiftedModel)
        self.localiser = Localiser(narrow, exact) if both else None  # type: ignore[arg-type]
        self._looked_at = 0

    def rounded(self, sample: Sample) -> dict[str, Array]:
        """The inputs as the package takes them."""
        return {name: np.asarray(sample.inputs[name]).astype(spec.dtype) for name, spec in self.opened.model.inputs.items()}

    def open_fp32(self) -> LiftedModel:
        """R2; its inputs and outputs are those of the package in order, under other names."""
        assert self.fp32_package is not None
        return LiftedModel(read_program(self.fp32_package), LoadOptions(numerics="fp64", engine="interpreter"))

    def observe(self, samples: Iterable[Sample]) -> list[Observation]:
        """Run everything on every sample; inputs that do not fit are refused."""
        taken = tuple(samples)
        walked = self._walked(taken)
        observations = [self._saved(sample, walked[place] if place < len(walked) else {}) for place, sample in enumerate(taken)]
        for model in self.opened.rungs.values():
            if isinstance(model, LiftedModel):
                model.interpreter.rest()
        if observations:
            reference = self._open_reference()
            observations = [self._referred(each, reference) for each in observations]
            del reference
        if observations and self.fp32_package is not None:
            fp32_model = self.open_fp32()
            for each in observations:
                given = dict(zip(fp32_model.inputs, self.rounded(each.sample).values(), strict=True))
                squares = tuple(map(_squared_error, fp32_model.predict(given).values(), each.reference))
                each.squares["R2"] = squares
        return [replace(each, squares={rung: each.squares[rung] for rung in sorted(each.squares)}) for each in observations]

    def _walked(self, samples: Sequence[Sample]) -> list[dict[str, Arrays]]:
        """R3 and R4 of the first samples, with a look at every op; what more samples could tell of an op is not worth their time."""
        if self.localiser is None:
            return []
        chosen = [sample.inputs for sample in samples[: SEEDS - self._looked_at]]
        self._looked_at += len(chosen)
        return [{"R3": _halved(wide_arithmetic), "R4": narrow} for narrow, wide_arithmetic in self.localiser.run(chosen)]

    def _saved(self, sample: Sample, walked: Mapping[str, Arrays]) -> Observation:
        """What the saved program makes of a sample; ``walked`` has the rungs that have run already."""
        rungs = {rung: walked[rung] if rung in walked else model.predict(sample.inputs) for rung, model in self.opened.rungs.items()}
        return Observation(sample=sample, rungs=rungs, squares={}, reference=(), simulated=None, margins=())

    def _referred(self, seen: Observation, reference: Reference) -> Observation:
        """The same with what the reference makes of it."""
        given, torch_side = self.rounded(seen.sample), isinstance(reference, TorchReference)
        exact = reference.outputs(given)
        choices = reference.choices if torch_side else []  # type: ignore[attr-defined]
        simulated = reference.simulated_outputs(given)
        narrow_choices = reference.choices if torch_side else []  # type: ignore[attr-defined]
        outputs: dict[str, Sequence[Array]] = {rung: tuple(each.values()) for rung, each in seen.rungs.items()}
        if self.opened.precision == "fp16" and (single := reference.fp32_outputs(given)) is not None:
            outputs["R1"] = single
        return replace(
            seen,
            squares={rung: tuple(map(_squared_error, each, exact)) for rung, each in outputs.items()},
            reference=exact,
            simulated=simulated,
            margins=tuple(margins_of(each, choices, narrow_choices) if each.dtype.kind in "iu" else None for each in exact),
            reference_margins=reference.margins(given) if reference.has_margins else None,
            simulated_margins=reference.simulated_margins(given) if reference.has_margins else None,
        )


def convert_fp32(opened: OpenPackage, module: nn.Module, recipe: Recipe | None, draw: Draw | None) -> Path:
    """The package of R2: the module converted at FLOAT32; kept in the cache by all that decides its bytes.

    ``CoreflowError`` says why it cannot be had. Inputs and outputs are those of the package, in order.
    """
    specs = {f"input_{place}": spec for place, spec in enumerate(opened.model.inputs.values())}
    source = draw if draw is not None else recipe.inputs_for if recipe is not None else None
    fp32_recipe = Recipe(
        name="wide",
        module=module,
        inputs={name: TensorSpec(spec.shape, spec.dtype, spec.bounds) for name, spec in specs.items()},
        outputs=tuple(f"output_{place}" for place in range(len(opened.model.outputs))),
        target=recipe.target if recipe is not None else _TARGETS.get(opened.graph.opset, "iOS17"),
        precision="fp32",
        draw=None if source is None else _as_taken(source, opened.model.inputs, tuple(specs)),
    )
    captured = capture(fp32_recipe)
    conversion = replace(conversion_of(fp32_recipe, captured), name="wide")
    package = Cache("wide").entry(captured.fingerprint, partial(_convert_into, conversion)) / "wide.mlpackage"
    del captured, conversion
    gc.collect()  # the program that was converted, weights and all, hangs in cycles, and the other rungs need the room
    return package


def _convert_into(conversion: Conversion, folder: Path) -> None:
    convert(conversion, folder / "wide.mlpackage")


def program_of(package: Path) -> Graph:
    """The default function of a package."""
    return read_program(package).function()[0]


def other_ops(saved: Graph, fresh: Graph) -> str:
    """How the ops of a saved program differ from those of a fresh conversion, in words; empty when they do not.

    Left out are casts, since the two differ in precision, and what reads and writes states, which the fresh one has as inputs and outputs.
    """
    counts = [Counter(op.type for op in graph.walk() if op.type not in _NOT_COUNTED) for graph in (saved, fresh)]
    more, fewer = counts[0] - counts[1], counts[1] - counts[0]
    said = [
        f"{label} {', '.join(f'{count} {op}' for op, count in sorted(found.items()))}"
        for label, found in (("has", more), ("lacks", fewer))
        if found
    ]
    return f"the saved program {' and '.join(said)}" if said else ""


def fp32_or_reason(opened: OpenPackage, module: nn.Module, recipe: Recipe | None, draw: Draw | None) -> tuple[Path | None, str]:
    """The package of R2, or why there is none."""
    try:
        package = convert_fp32(opened, module, recipe, draw)
        program = read_program(package)
        graph, interface = program.function()
        load_lowerings()
        require_all(graph, package.name)
        fresh = output_specs(program, graph, interface)  # not of a model, whose weights would be held beside those of all other rungs
    except (CoreflowError, OSError) as error:
        logger.info("no R2 for %s: %s", opened.path.name, error)
        return None, str(error)
    shapes = [spec.shape for spec in fresh.values()], [spec.shape for spec in opened.model.outputs.values()]
    if shapes[0] != shapes[1]:
        return None, f"a fresh conversion gives outputs of shapes {shapes[0]}, the package {shapes[1]}"
    return package, ""


def _as_taken(draw: Draw, inputs: Mapping[str, TensorSpec], others: tuple[str, ...]) -> Draw:
    """``draw`` under other names, and in the dtypes that the package takes."""

    def taken(seed: int) -> Arrays:
        drawn = draw(seed)
        return {other: np.asarray(drawn[name]).astype(spec.dtype) for other, (name, spec) in zip(others, inputs.items(), strict=True)}

    return taken


def _halved(outputs: Arrays) -> dict[str, Array]:
    """In float32, whose own rounding is 2^-13 of fp16's: outputs of every sample are kept."""
    return {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in outputs.items()}


def _squared_error(values: Array, exact: Array) -> float:
    """Sum of squares where the reference is finite; infinite or NaN where the value is not. Of other shapes: NaN."""
    if np.shape(values) != (exact.shape or (1,)) and np.shape(values) != exact.shape:
        return float("nan")
    truth = as_float64(exact).reshape(-1)
    finite = np.isfinite(truth)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = (as_float64(values).reshape(-1) - truth)[finite]
        return float(np.dot(difference, difference))
