"""One package against its torch module."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from coreflow.export.manifest import file_digest
from coreflow.export.program import package_digest, read_program
from coreflow.export.recipe import Recipe, draw_tensor
from coreflow.models.spec import Dtype, TensorSpec
from coreflow.runtime.backend import Backend, ComputeUnits, Model
from coreflow.runtime.lifted import LiftedModel
from coreflow.runtime.load import load_model
from coreflow.validate.budget import Executions, Precision
from coreflow.validate.decisions import agreeing, margin_noise, nearness
from coreflow.validate.gates import Compared, differing, judge, structure_problems
from coreflow.validate.metrics import relative_rms, wide
from coreflow.validate.report.model import AmbiguousSample, Cause, Outcome, OutputReport, Report, Samples, worst
from coreflow.validate.tolerance import (
    DECISION_FACTOR,
    DEVICE,
    FP32,
    FP32_NOISE,
    LIFTED,
    MAX_AMBIGUOUS_SHARE,
    MAX_SEEDS,
    MIN_DECIDED,
    SEEDS,
    Tolerance,
)

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Draw = Callable[[int], Arrays]


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """A package, opened in every arithmetic that the ladder needs; the last rung is the one that is judged."""

    path: Path
    rungs: Mapping[str, Model]  # R3: fp64, R4: fp16 storage, R5: a device
    precision: Precision
    tolerance: Tolerance
    numerics: str
    compute_units: ComputeUnits

    @property
    def judged(self) -> str:
        """The last rung."""
        return list(self.rungs)[-1]

    @property
    def model(self) -> Model:
        """What is judged."""
        return self.rungs[self.judged]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One set of inputs, in the dtypes of the package."""

    label: str
    inputs: Arrays
    seed: int | None = None
    expected: Arrays | None = None  # what torch gave in fp32 when the sample was recorded


@dataclass(frozen=True, kw_only=True, eq=False)
class _Observed:
    """What everything made of one sample."""

    sample: Sample
    rungs: Mapping[str, Arrays]
    exact: tuple[Array, ...]
    simulated: tuple[Array, ...]
    exact_margins: Array | None = None
    simulated_margins: Array | None = None


def validate(
    package: str | Path,
    reference: nn.Module | Recipe,
    inputs: Sequence[Arrays] | None = None,
    *,
    draw: Draw | None = None,
    backend: Backend = "auto",
    numerics: str = "fp16",
    compute_units: ComputeUnits = "all",
    tolerance: Tolerance | None = None,
) -> Report:
    """The verdict on ``package``, with ``reference`` executed in float64 on the same inputs.

    The inputs are eight fixed seeds of ``draw`` and then ``inputs``. ``draw`` is the recipe's unless given; a module without one
    is drawn for within the bounds that the package records. ``inputs`` without a ``draw`` of their own stand alone. The module
    is called with the inputs in the package's order, and its outputs are the package's, in order. A reference that is a
    ``Recipe`` also fixes names.
    """
    recipe = reference if isinstance(reference, Recipe) else None
    module = reference if isinstance(reference, nn.Module) else reference.module
    target = open_target(Path(package), backend, numerics=numerics, compute_units=compute_units, tolerance=tolerance)
    given = [Sample(label=f"input {number}", inputs=each) for number, each in enumerate(inputs or ())]
    if draw is None and recipe is not None:
        draw = recipe.inputs_for
    elif draw is None and not given:
        draw = _draw_by_specs(target.model.inputs)
    return judge_package(target, module, recipe, given, draw)


def open_target(
    package: Path,
    backend: Backend = "auto",
    *,
    numerics: str = "fp16",
    compute_units: ComputeUnits = "all",
    tolerance: Tolerance | None = None,
) -> Target:
    """Open ``package`` as it will be judged, and lifted for the rungs below that."""
    judged = load_model(package, backend, numerics=numerics, engine="interpreter", compute_units=compute_units)
    lifted = judged if isinstance(judged, LiftedModel) else None
    program = lifted.program if lifted is not None else read_program(package)
    graph, _ = program.function()
    halves = any(value.dtype == "float16" for op in graph.ops for value in op.outputs)
    precision: Precision = "fp16" if halves else "fp32"
    rungs: dict[str, Model] = {}
    if numerics != "fp64" or lifted is None:
        rungs["R3"] = LiftedModel(program, "fp64")
    if lifted is None:
        rungs["R4"] = LiftedModel(program, "fp16")
    rungs["R4" if lifted is not None else "R5"] = judged
    if tolerance is None:
        tolerance = FP32 if precision == "fp32" else LIFTED if lifted is not None else DEVICE
    return Target(
        path=package,
        rungs=rungs,
        precision=precision,
        tolerance=tolerance,
        numerics=numerics if lifted is not None else "device",
        compute_units=compute_units,
    )


def judge_package(target: Target, module: nn.Module, recipe: Recipe | None, given: Sequence[Sample], draw: Draw | None) -> Report:
    """The report on an opened package; ``given`` samples beside the seeds of ``draw``."""
    name = recipe.name if recipe is not None else target.path.stem
    describe = describer(target, name)
    problems = _interface_problems(target.model, recipe)
    if problems:
        return describe("fail", "structure", "; ".join(problems), problems=tuple(problems))
    executions = Executions(module, target.precision)
    observed = [_observe(each, target, executions) for each in (*_seeds(draw, range(SEEDS)), *given)]
    if not observed:
        return describe("incomplete", None, "no inputs: nothing was compared", problems=("give inputs, or a draw",))
    specs = target.model.outputs
    problems = _output_problems(specs, observed, target)
    if problems:
        return describe("fail", "structure", "; ".join(problems), problems=tuple(problems))
    near, judged = _decisions(observed, target)
    for first in range(SEEDS, MAX_SEEDS, SEEDS):
        if draw is None or sum(fine for fine, seen in zip(judged, observed, strict=True) if seen.sample.seed is not None) >= MIN_DECIDED:
            break
        observed += [_observe(each, target, executions) for each in _seeds(draw, range(first, first + SEEDS))]
        near, judged = _decisions(observed, target)
    compared = _compare(specs, observed, judged, target)
    outputs = {
        each.name: judge(each, target.tolerance, {rung: _stack(observed, rung, each.name) for rung in target.rungs}) for each in compared
    }
    seeds = tuple(seen.sample.seed for seen in observed if seen.sample.seed is not None)
    samples = Samples(
        seeds=seeds,
        drawn=len(seeds),
        given=len(observed) - len(seeds),
        ambiguous=tuple(
            AmbiguousSample(
                label=seen.sample.label,
                left_out=not judged[place],
                nearness=near[place],
                differing=sum(differing(each, place, outputs[each.name].budget, DECISION_FACTOR) for each in compared),
            )
            for place, seen in enumerate(observed)
            if near[place] < 1
        ),
    )
    verdict = worst(each.outcome for each in outputs.values())
    unclear = too_ambiguous(int(judged.sum()), len(judged)) or _another_reference(specs, observed, judged)
    if unclear and verdict != "fail":
        verdict = "incomplete"
    cause = _cause(compared, outputs, target, observed) if verdict == "fail" else None
    return describe(
        verdict,
        cause,
        verdict_text(verdict, cause, outputs, target.tolerance, unclear),
        outputs=outputs,
        samples=samples,
        problems=(unclear,) if unclear else (),
    )


def too_ambiguous(judged: int, total: int) -> str:
    """Why so few samples cannot carry a verdict; empty when they can."""
    left_out = total - judged
    if left_out == 0 or judged >= SEEDS or (judged >= MIN_DECIDED and left_out <= MAX_AMBIGUOUS_SHARE * total):
        return ""
    return f"in {left_out} of {total} samples a decision within fp16 noise of its border fell the other way; too few are left to judge by"


def verdict_text(
    verdict: Outcome, cause: Cause | None, outputs: Mapping[str, OutputReport], tolerance: Tolerance, unclear: str = ""
) -> str:
    """The verdict in one line: what was found, and where it is worst."""
    if verdict == "incomplete" and unclear:
        return unclear
    if verdict == "pass":
        tightest = max((each.rho_rms for each in outputs.values()), default=0.0)
        return f"errors are at most {tightest:.2f} times those of torch's own fp16; {tolerance.rms_pass:g} is the limit"
    of_verdict = [each for each in outputs.values() if each.outcome == verdict]
    worst_output = min(of_verdict, key=lambda each: each.headroom)
    gate = max((each for each in worst_output.failed_gates if each.outcome == verdict), key=lambda each: each.used)
    where = f" at {gate.text}" if gate.name == "rho_slice" else ""
    numbers = f"{gate.name} {gate.value:.3g}{where}, above its limit of {gate.limit:.3g}"
    found = gate.text if gate.text and gate.name != "rho_slice" else numbers
    more = f" (and {len(of_verdict) - 1} more of {len(outputs)} outputs)" if len(of_verdict) > 1 else ""
    said = {
        "weights": "; wide arithmetic does not help: the weights or the translation are wrong",
        "fp16": "; in wide arithmetic the program is right: its fp16 arithmetic loses more than torch's",
        "device": "; the program itself is right: the device is off",
    }.get(cause or "", "")
    return f"{worst_output.name}: {found}{more}{said}"


def describer(target: Target, name: str) -> Callable[..., Report]:
    """Makes reports on ``target``; their time runs from here."""
    started = time.monotonic()
    weights = sorted(target.path.rglob("weight.bin"))
    empty = Report(
        name=name,
        package=target.path.name,
        digest=package_digest(target.path),
        weights_digest=file_digest(weights[0]) if weights else None,
        backend=target.model.backend,
        numerics=target.numerics,
        compute_units=target.compute_units,
        precision=target.precision,
        verdict="incomplete",
        cause=None,
        text="",
        outputs={},
        samples=Samples(seeds=(), drawn=0, given=0),
        versions=versions(),
        seconds=0.0,
    )

    def describe(verdict: Outcome, cause: Cause | None, text: str, **found: Any) -> Report:
        return replace(empty, verdict=verdict, cause=cause, text=text, seconds=time.monotonic() - started, **found)

    return describe


def versions() -> dict[str, str]:
    """What took part in the judgement."""
    return {package: version(package) for package in ("coreflow", "torch", "coremltools", "numpy")}


def _draw_by_specs(specs: Mapping[str, TensorSpec]) -> Draw:
    def draw(seed: int) -> Arrays:
        random = np.random.default_rng(seed)
        return {name: draw_tensor(spec, random) for name, spec in specs.items()}

    return draw


def _seeds(draw: Draw | None, seeds: range) -> Iterator[Sample]:
    if draw is not None:
        for seed in seeds:
            yield Sample(label=f"seed {seed}", inputs=draw(seed), seed=seed)


def _observe(sample: Sample, target: Target, executions: Executions) -> _Observed:
    """Run everything on one sample."""
    rungs = {rung: model.predict(sample.inputs) for rung, model in target.rungs.items()}  # refuses inputs that do not fit
    rounded = {name: np.asarray(sample.inputs[name]).astype(spec.dtype) for name, spec in target.model.inputs.items()}
    margins = (executions.exact_margins(rounded), executions.simulated_margins(rounded)) if executions.decides else (None, None)
    return _Observed(
        sample=sample,
        rungs=rungs,
        exact=executions.exact(rounded),
        simulated=executions.simulated(rounded),
        exact_margins=margins[0],
        simulated_margins=margins[1],
    )


def _decisions(observed: Sequence[_Observed], target: Target) -> tuple[list[float], npt.NDArray[np.bool_]]:
    """How near each sample is to a border, and which are judged: the clear ones, and those in which no decision fell otherwise."""
    exact = [seen.exact_margins for seen in observed if seen.exact_margins is not None]
    simulated = [seen.simulated_margins for seen in observed if seen.simulated_margins is not None]
    if not exact:
        return [np.inf] * len(observed), np.ones(len(observed), bool)
    noise = margin_noise(exact, simulated)
    near = [nearness(each, noise) for each in exact]
    clear, agree = np.array(near) >= 1, np.ones(len(observed), bool)
    for place, name in enumerate(target.model.outputs):
        agree &= agreeing(
            [np.atleast_1d(seen.exact[place]) for seen in observed],
            [np.atleast_1d(seen.simulated[place]) for seen in observed],
            [seen.rungs[target.judged][name] for seen in observed],
            clear,
        )
    return near, agree | clear


def _interface_problems(model: Model, recipe: Recipe | None) -> list[str]:
    """Inputs against the recipe's, and the names of the outputs."""
    if recipe is None:
        return []
    problems = structure_problems(recipe.inputs, model.inputs, "input")
    if list(recipe.outputs) != list(model.outputs):
        problems.append(f"the outputs are {', '.join(model.outputs)}; {', '.join(recipe.outputs)} in this order are right")
    return problems


def _output_problems(specs: Mapping[str, TensorSpec], observed: Sequence[_Observed], target: Target) -> list[str]:
    """Shape and dtype of every output, as declared and as really given, against what torch gives."""
    floats: Dtype = "float16" if target.precision == "fp16" else "float32"
    wanted = {str(place): _spec(array, floats) for place, array in enumerate(observed[0].exact)}
    # fp32 in and out around an fp16 program is a choice, not a fault.
    declared = {name: TensorSpec(spec.shape, floats) if spec.dtype != "int32" else spec for name, spec in specs.items()}
    problems = structure_problems(wanted, declared, "output", names_known=False)
    if problems:
        return problems
    for seen in observed:
        for (name, array), exact in zip(seen.rungs[target.judged].items(), seen.exact, strict=True):
            if array.shape != (exact.shape or (1,)):
                problems.append(f"output {name!r} of {seen.sample.label} has shape {list(array.shape)}; {list(exact.shape)} is right")
    return problems


def _spec(array: Array, floats: Dtype) -> TensorSpec:
    return TensorSpec(array.shape or (1,), floats if array.dtype.kind == "f" else "int32")


def _stack(observed: Sequence[_Observed], rung: str, name: str) -> Array:
    return np.stack([seen.rungs[rung][name] for seen in observed])


def _compare(specs: Mapping[str, TensorSpec], observed: Sequence[_Observed], judged: Array, target: Target) -> list[Compared]:
    labels = tuple(seen.sample.label for seen in observed)

    def of(side: str, place: int) -> Array:
        return np.stack([np.atleast_1d(getattr(seen, side)[place]) for seen in observed])

    return [
        Compared(
            name=name,
            spec=spec,
            exact=of("exact", place),
            simulated=of("simulated", place),
            actual=_stack(observed, target.judged, name),
            labels=labels,
            judged=judged,
        )
        for place, (name, spec) in enumerate(specs.items())
    ]


def _another_reference(specs: Mapping[str, TensorSpec], observed: Sequence[_Observed], judged: Array) -> str:
    """Why the recorded outputs are not those of this reference; empty when they are, or when none were recorded."""
    for place, name in enumerate(specs):
        pairs = [
            (wide(seen.sample.expected[name]), wide(seen.exact[place]))
            for seen, clear in zip(observed, judged, strict=True)
            if clear and seen.sample.expected is not None
        ]
        if not pairs:
            continue
        errors, exact = np.stack([given - exact for given, exact in pairs]), np.stack([exact for _, exact in pairs])
        if not relative_rms(errors, exact) <= FP32_NOISE:
            return f"the golden samples are of another torch model: its {name} differs by more than fp32 rounding"
    return ""


def _cause(compared: Sequence[Compared], outputs: Mapping[str, OutputReport], target: Target, observed: Sequence[_Observed]) -> Cause:
    """The lowest rung that fails by itself."""
    if any(gate.name == "finite" and gate.outcome == "fail" for each in outputs.values() for gate in each.gates):
        return "non-finite"
    causes: dict[str, Cause] = {"R3": "weights", "R4": "fp16", "R5": "device"}
    failing = [each for each in compared if outputs[each.name].outcome == "fail"]
    for rung in list(target.rungs)[:-1]:
        tolerance = target.tolerance if target.judged == "R4" else FP32 if target.precision == "fp32" else LIFTED
        if any(judge(replace(each, actual=_stack(observed, rung, each.name)), tolerance, {}).outcome == "fail" for each in failing):
            return causes[rung]
    return causes[target.judged]
