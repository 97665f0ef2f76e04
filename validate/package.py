"""One package against what it was made from: run the ladder, judge every output, say which cause and which op."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from coreflow.export.package.graph import package_digest
from coreflow.export.package.manifest import file_digest
from coreflow.export.package.summary import stored_weights
from coreflow.export.recipe import Recipe, draw_tensor
from coreflow.models.arrays import Array, Arrays, Bools, Draw
from coreflow.models.errors import ConfigError
from coreflow.models.spec import Dtype, TensorSpec
from coreflow.models.versions import version
from coreflow.runtime.backend import Backend, ComputeUnits, Model, NumericsName
from coreflow.validate.diagnosis.cause import find_cause
from coreflow.validate.diagnosis.explanation import diagnose
from coreflow.validate.gates.decisions import agreeing, margin_noise, nearness
from coreflow.validate.gates.metrics import as_float64, relative_rms, rms
from coreflow.validate.gates.output import Comparison, differing, judge, structure_problems
from coreflow.validate.gates.plots import plots_of, worst_elements
from coreflow.validate.gates.tolerance import (
    DECISION_FACTOR,
    FP32_NOISE,
    HEURISTIC,
    MAX_AMBIGUOUS_SHARE,
    MAX_SEEDS,
    MIN_DECIDED,
    SEEDS,
    Tolerance,
)
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.inputs.states import from_fresh, stateless, with_states
from coreflow.validate.inputs.sweeps import sweep_samples
from coreflow.validate.ladder.ladder import Ladder, Observation, OpenPackage, fp32_or_reason, open_package, other_ops, program_of
from coreflow.validate.ladder.units import rho_by_unit
from coreflow.validate.references.golden import GoldenReference
from coreflow.validate.references.heuristic import heuristic_budget
from coreflow.validate.references.opening import open_reference
from coreflow.validate.references.reference import Reference
from coreflow.validate.references.torch_module import TorchReference
from coreflow.validate.replay.evidence import Evidence
from coreflow.validate.report.model import AmbiguousSample, Cause, Outcome, OutputReport, Report, Samples, worst


def validate(
    package: str | Path,
    reference: nn.Module | Recipe | str | Path | None,
    inputs: Sequence[Arrays | Sample] | None = None,
    *,
    draw: Draw | None = None,
    backend: Backend = "auto",
    numerics: NumericsName = "fp16",
    compute_units: ComputeUnits = "all",
    tolerance: Tolerance | None = None,
    sweep: bool = False,
    evidence: Evidence | None = None,
    wide_package: Path | None = None,
) -> Report:
    """The verdict on ``package``, with ``reference`` executed in float64 on the same inputs.

    A reference is a module, a recipe, another package or an ONNX file (by their suffixes); without any, the ``expected`` outputs that the
    samples in ``inputs`` carry are. The inputs are eight fixed seeds of ``draw`` and then ``inputs``. ``draw`` is the recipe's unless
    given; without a recipe it is drawn for within the bounds that the package records. ``inputs`` without a ``draw`` of their own stand
    alone. A package that keeps states is judged as a function of them (``states``): inputs without any start from zeros, and recorded
    outputs include them, as ``NAME_out``. A module is called with the inputs in the package's order, and its outputs are the package's,
    in order. A recipe also fixes names, and so do packages and ONNX files. ``sweep`` adds extreme inputs (bounds, magnitudes, padding
    patterns, ids), and ``evidence`` says where a failure leaves a file that replays it. ``wide_package`` is the module converted at
    FLOAT32, its inputs and outputs in the package's order; without it a module is converted anew (R2).
    """
    recipe = reference if isinstance(reference, Recipe) else None
    opened = open_package(Path(package), backend, numerics=numerics, compute_units=compute_units, tolerance=tolerance)
    given = [each if isinstance(each, Sample) else Sample(label=f"input {number}", inputs=each) for number, each in enumerate(inputs or ())]
    if draw is None and recipe is not None:
        draw = recipe.inputs_for
    elif draw is None and not given:
        draw = _draw_by_specs(opened.model.inputs)
    if opened.states:
        given = [replace(each, inputs=from_fresh(each.inputs, opened.states)) for each in given]
        draw = None if draw is None else with_states(draw, opened.states)
    source: nn.Module | Recipe | Reference
    if isinstance(reference, nn.Module | Recipe):
        source = reference
    elif reference is None:
        draw, source = None, GoldenReference(given, list(opened.model.outputs))
    else:
        source = open_reference(Path(reference), list(opened.model.outputs))
    if sweep and reference is None:
        raise ConfigError("recorded outputs know no swept inputs; a sweep needs a reference that can be executed")
    return judge_package(opened, source, given, draw, sweep=sweep, evidence=evidence, fp32_package=wide_package)


def judge_package(
    opened: OpenPackage,
    source: nn.Module | Recipe | Reference,
    given: Sequence[Sample],
    draw: Draw | None,
    *,
    name: str | None = None,
    sweep: bool = False,
    evidence: Evidence | None = None,
    fp32_package: Path | None = None,
) -> Report:
    """The report on an opened package; ``given`` samples beside the seeds of ``draw`` and the sweeps."""
    if opened.states and isinstance(source, nn.Module | Recipe):
        source = stateless(source, opened.states)
    recipe = source if isinstance(source, Recipe) else None
    module = source if isinstance(source, nn.Module) else recipe.module if recipe is not None else None
    whole = any(spec.dtype == "int32" for spec in opened.model.outputs.values())

    def open_reference() -> Reference:
        return source if module is None else TorchReference(module, opened.precision, records_choices=whole)  # type: ignore[return-value]

    describe = describer(opened, name or (recipe.name if recipe is not None else opened.path.stem), *described(source, opened))
    one = [*_seeds(draw, range(1)), *given][:1] if module is not None else []
    if misfit := _interface_misfit(opened.model, recipe, one, open_reference):
        return describe("fail", misfit[0], "; ".join(misfit[1]), problems=tuple(misfit[1]))
    if fp32_package is not None or module is None:
        no_fp32 = ""
    else:
        fp32_package, no_fp32 = fp32_or_reason(opened, module, recipe, draw)
    ladder = Ladder(opened, open_reference, fp32_package)
    swept = sweep_samples(opened.model.inputs, draw or _draw_by_specs(opened.model.inputs)) if sweep else ()
    observations = ladder.observe((*_seeds(draw, range(SEEDS)), *given, *swept))
    if not observations:
        return describe("incomplete", None, "no inputs: nothing was compared", problems=("give inputs, or a draw",))
    specs = opened.model.outputs
    if misfit := _output_misfit(specs, observations, opened, converted=module is not None):
        return describe("fail", misfit[0], "; ".join(misfit[1]), problems=tuple(misfit[1]))
    near, clear = _decisions(observations, opened)
    for first in range(SEEDS, MAX_SEEDS, SEEDS):
        if draw is None or sum(fine for fine, seen in zip(clear, observations, strict=True) if seen.sample.seed is not None) >= MIN_DECIDED:
            break
        observations += ladder.observe(_seeds(draw, range(first, first + SEEDS)))
        near, clear = _decisions(observations, opened)
    tolerance = (
        opened.tolerance
        if observations[0].simulated is not None
        else replace(HEURISTIC, atol=opened.tolerance.atol, rtol=opened.tolerance.rtol)
    )
    comparisons, outputs = _judge_outputs(specs, observations, clear, opened, tolerance)
    samples = _samples(observations, near, clear, comparisons, outputs)
    verdict = worst(each.outcome for each in outputs.values())
    unclear = too_ambiguous(int(clear.sum()), len(clear)) or _another_reference(specs, observations, clear)
    if unclear and verdict != "fail":
        verdict = "incomplete"
    notes = []
    if no_fp32 and opened.precision == "fp16":
        notes.append(f"R2 was not run, so that small errors of translation would not be seen: {no_fp32}")
        verdict = "warn" if verdict == "pass" else verdict
    swollen, in_vain = _compressed_in_vain(opened)
    if swollen:
        notes.insert(0, swollen)
        if verdict in ("pass", "warn"):  # otherwise there is something worse to say
            verdict = "fail" if in_vain else "warn"
    other = "" if fp32_package is None else other_ops(opened.graph, program_of(fp32_package))
    if other:
        notes.append(f"{other}, compared with a fresh conversion of the reference")
    cause: Cause | None = None
    if verdict == "fail" and all(each.outcome != "fail" for each in outputs.values()):
        cause = "translation"  # the outputs are right, what was asked for is not there
    elif verdict == "fail":
        cause = find_cause(comparisons, outputs, opened, observations, same_ops=None if fp32_package is None else not other, module=module)
    found = diagnose(ladder, module, observations, verdict, cause, outputs)
    by_unit, refused = rho_by_unit(opened.units, observations, clear, outputs)
    if by_unit:
        by_unit = {opened.compute_units: {name: each.rho_rms for name, each in outputs.items()}} | by_unit
    report = describe(
        verdict,
        cause,
        verdict_text(verdict, cause, outputs, tolerance, unclear, notes, described(source, opened)[1]),
        outputs=outputs,
        samples=samples,
        problems=(unclear,) if unclear else (),
        notes=(*notes, *refused),
        ops=found.ops,
        culprits=found.culprits,
        constants=found.constants,
        compute_unit_rho=by_unit,
    )
    right = all(each.outcome in ("pass", "warn") for each in outputs.values()) and verdict != "incomplete"
    return report if evidence is None or right else evidence.keep(report, opened, observations)


def too_ambiguous(kept: int, total: int) -> str:
    """Why so few samples cannot carry a verdict; empty when they can."""
    left_out = total - kept
    if left_out == 0 or kept >= SEEDS or (kept >= MIN_DECIDED and left_out <= MAX_AMBIGUOUS_SHARE * total):
        return ""
    return f"in {left_out} of {total} samples a decision within fp16 noise of its border fell the other way; too few are left to judge by"


def verdict_text(
    verdict: Outcome,
    cause: Cause | None,
    outputs: Mapping[str, OutputReport],
    tolerance: Tolerance,
    unclear: str = "",
    notes: Sequence[str] = (),
    budget: str = "torch's own fp16",
) -> str:
    """The verdict in one line: what was found, and where it is worst."""
    if verdict == "incomplete" and unclear:
        return unclear
    if verdict in ("warn", "fail") and all(each.outcome != verdict for each in outputs.values()):
        return notes[0] if notes else "a part of the checks did not run"
    if verdict == "pass":
        tightest = max((each.rho_rms for each in outputs.values()), default=0.0)
        if not math.isfinite(tolerance.rms_pass):
            most = max((each.relative_rms for each in outputs.values()), default=0.0)
            return f"errors are at most {most:.2g} of the outputs; {tolerance.rtol:g} is the limit"
        whose = "a heuristic for networks as deep" if budget == "heuristic" else f"those of {budget}"
        return f"errors are at most {tightest:.2f} times {whose}; {tolerance.rms_pass:g} is the limit"
    of_verdict = [each for each in outputs.values() if each.outcome == verdict]
    worst_output = min(of_verdict, key=lambda each: each.headroom)
    gate = max((each for each in worst_output.failed_gates if each.outcome == verdict), key=lambda each: each.used)
    where = f" at {gate.text}" if gate.name == "rho_slice" else ""
    numbers = f"{gate.name} {gate.value:.3g}{where}, above its limit of {gate.limit:.3g}"
    found = gate.text if gate.text and gate.name != "rho_slice" else numbers
    more = f" (and {len(of_verdict) - 1} more of {len(outputs)} outputs)" if len(of_verdict) > 1 else ""
    said = {
        "translation": "; the program computes something else than the reference, whatever the arithmetic",
        "weights": "; wide arithmetic does not help: the weights of the saved program are wrong",
        "fp16": "; in wide arithmetic the program is right: its fp16 arithmetic loses more than torch's",
        "device": "; the program itself is right: the device is off",
    }.get(cause or "", "")
    return f"{worst_output.name}: {found}{more}{said}"


def described(source: nn.Module | Recipe | Reference, opened: OpenPackage) -> tuple[str, str]:
    """What a reference is, and whose error is the budget, in words."""
    if isinstance(source, nn.Module | Recipe):
        return TorchReference.label, f"torch's own {opened.precision}"
    return source.label, source.budget


def describer(opened: OpenPackage, name: str, reference: str = "none", budget: str = "none") -> Callable[..., Report]:
    """Makes reports on ``target``; their time runs from here."""
    started = time.monotonic()
    weights = sorted(opened.path.rglob("weight.bin"))
    empty = Report(
        name=name,
        package=opened.path.name,
        digest=package_digest(opened.path),
        weights_digest=file_digest(weights[0]) if weights else None,
        backend=opened.model.backend,
        numerics=opened.numerics,
        compute_units=opened.compute_units,
        precision=opened.precision,
        verdict="incomplete",
        cause=None,
        text="",
        outputs={},
        samples=Samples(seeds=(), drawn=0, given=0),
        versions=versions(),
        seconds=0.0,
        reference=reference,
        budget=budget,
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


def _decisions(observations: Sequence[Observation], opened: OpenPackage) -> tuple[list[float], Bools]:
    """How near each sample is to a border, and which are judged: the clear ones, and those in which no decision fell otherwise."""
    exact = [seen.reference_margins for seen in observations if seen.reference_margins is not None]
    simulated = [seen.simulated_margins for seen in observations if seen.simulated_margins is not None]
    if not exact:
        return [np.inf] * len(observations), np.ones(len(observations), bool)
    noise = margin_noise(exact, simulated)
    near = [nearness(each, noise) for each in exact]
    clear, agree = np.array(near) >= 1, np.ones(len(observations), bool)
    for place, name in enumerate(opened.model.outputs):
        agree &= agreeing(
            [np.atleast_1d(seen.reference[place]) for seen in observations],
            [np.atleast_1d(seen.simulated[place]) for seen in observations if seen.simulated is not None],
            [seen.rungs[opened.last][name] for seen in observations],
            clear,
        )
    return near, agree | clear


def _interface_misfit(
    model: Model, recipe: Recipe | None, one: Sequence[Sample], open_reference: Callable[[], Reference]
) -> tuple[Cause, list[str]] | None:
    """What of the interface is wrong before anything is compared, and whose fault it is."""
    if problems := _whole_number_problems(model, one, open_reference):
        return "translation", problems
    problems = _interface_problems(model, recipe)
    if not problems:
        return None
    assert recipe is not None  # without one there is nothing to ask for
    runs = bool(one) and list(one[0].inputs) == list(model.inputs)
    merged = (
        merged_outputs(open_reference().outputs(one[0].inputs), model.outputs) if runs and len(recipe.outputs) > len(model.outputs) else ""
    )
    return ("translation", [merged]) if merged else ("structure", problems)


def _output_misfit(
    specs: Mapping[str, TensorSpec], observations: Sequence[Observation], opened: OpenPackage, *, converted: bool
) -> tuple[Cause, list[str]] | None:
    """The same of the outputs, once the reference has given its own."""
    problems = _output_problems(specs, observations, opened)
    merged = merged_outputs(observations[0].reference, specs) if problems and converted else ""
    return ("translation", [merged]) if merged else ("structure", problems) if problems else None


def _interface_problems(model: Model, recipe: Recipe | None) -> list[str]:
    """Inputs against the recipe's, and the names of the outputs."""
    if recipe is None:
        return []
    problems = structure_problems(recipe.inputs, model.inputs, "input")
    if list(recipe.outputs) != list(model.outputs):
        problems.append(f"the outputs are {', '.join(model.outputs)}; {', '.join(recipe.outputs)} in this order are right")
    return problems


def _whole_number_problems(model: Model, samples: Sequence[Sample], open_reference: Callable[[], Reference]) -> list[str]:
    """Inputs that the package takes as floats although the reference runs on whole numbers only, as it does on token ids."""
    if not samples:
        return []
    given = {name: np.asarray(array) for name, array in samples[0].inputs.items()}
    whole = [name for name, spec in model.inputs.items() if name in given and given[name].dtype.kind in "iu" and spec.dtype != "int32"]
    if not whole or set(given) != set(model.inputs):
        return []
    reference = open_reference()
    try:
        reference.outputs({name: given[name].astype(np.float32) if name in whole else given[name] for name in model.inputs})
    except ConfigError:
        reference.outputs({name: given[name] for name in model.inputs})  # that it runs on neither is another fault, and is raised
        return [f"input {name!r} is {model.inputs[name].dtype}; int32 is right, the reference runs on whole numbers only" for name in whole]
    return []


def merged_outputs(exact: Sequence[Array], outputs: Collection[str]) -> str:
    """What to say where the package lacks just the outputs that the reference gives twice, as the converter makes it; else nothing."""
    twins = {
        second: first for second in range(len(exact)) for first in reversed(range(second)) if np.array_equal(exact[first], exact[second])
    }
    if not twins or len(exact) - len(twins) != len(outputs):
        return ""
    pairs = ", ".join(f"{first + 1} and {second + 1}" for second, first in twins.items())
    return (
        f"the package has {len(outputs)} outputs ({', '.join(outputs)}) and the reference {len(exact)}, of which {pairs} are one tensor: "
        "the converter keeps it once, under a name of its own. Return a copy as the other"
    )


def _output_problems(specs: Mapping[str, TensorSpec], observations: Sequence[Observation], opened: OpenPackage) -> list[str]:
    """Shape and dtype of every output, as declared and as really given, against what torch gives."""
    floats: Dtype = "float16" if opened.precision == "fp16" else "float32"
    wanted = {str(place): _spec(array, floats) for place, array in enumerate(observations[0].reference)}
    # fp32 in and out around an fp16 program is a choice, not a fault.
    declared = {name: TensorSpec(spec.shape, floats) if spec.dtype != "int32" else spec for name, spec in specs.items()}
    problems = structure_problems(wanted, declared, "output", names_known=False)
    if problems:
        return problems
    for seen in observations:
        for (name, array), exact in zip(seen.rungs[opened.last].items(), seen.reference, strict=True):
            if array.shape != (exact.shape or (1,)):
                problems.append(f"output {name!r} of {seen.sample.label} has shape {list(array.shape)}; {list(exact.shape)} is right")
    return problems


def _spec(array: Array, floats: Dtype) -> TensorSpec:
    return TensorSpec(array.shape or (1,), floats if array.dtype.kind == "f" else "int32")


def _judge_outputs(
    specs: Mapping[str, TensorSpec],
    observations: Sequence[Observation],
    clear: Bools,
    opened: OpenPackage,
    tolerance: Tolerance,
) -> tuple[list[Comparison], dict[str, OutputReport]]:
    comparisons, outputs = [], {}
    for place, (name, spec) in enumerate(specs.items()):
        each = _comparison(name, spec, place, observations, clear, opened)
        elements = each.reference[each.kept].size
        squares = {
            rung: sum(seen.squares[rung][place] for seen, fine in zip(observations, clear, strict=True) if fine)
            for rung in observations[0].squares
        }
        errors = {rung: float(np.sqrt(square / elements)) if elements else float("nan") for rung, square in squares.items()}
        report = judge(each, tolerance, errors)
        outputs[name] = replace(report, plots=plots_of(each), worst_elements=worst_elements(each))
        comparisons.append(each)
    return comparisons, outputs


def _comparison(
    name: str, spec: TensorSpec, place: int, observations: Sequence[Observation], clear: Bools, opened: OpenPackage
) -> Comparison:
    exact = np.stack([np.atleast_1d(seen.reference[place]) for seen in observations])
    simulated = [np.atleast_1d(seen.simulated[place]) for seen in observations if seen.simulated is not None]
    heuristic = len(simulated) < len(observations)
    margins = [seen.margins[place] for seen in observations]
    known = [each for each in margins if each is not None]
    return Comparison(
        name=name,
        spec=spec,
        reference=exact,
        simulated=exact + heuristic_budget(opened.graph) * rms(exact) if heuristic else np.stack(simulated),
        actual=np.stack([seen.rungs[opened.last][name] for seen in observations]),
        labels=tuple(seen.sample.label for seen in observations),
        kept=clear,
        heuristic=heuristic,
        margins=np.stack([np.atleast_1d(each[0]) for each in known]) if len(known) == len(margins) else None,
        margin_noise=np.stack([np.atleast_1d(each[1]) for each in known]) if len(known) == len(margins) else None,
    )


def _samples(
    observations: Sequence[Observation],
    near: Sequence[float],
    clear: Bools,
    comparisons: Sequence[Comparison],
    outputs: Mapping[str, OutputReport],
) -> Samples:
    seeds = tuple(seen.sample.seed for seen in observations if seen.sample.seed is not None)
    return Samples(
        seeds=seeds,
        drawn=len(seeds),
        given=len(observations) - len(seeds),
        ambiguous=tuple(
            AmbiguousSample(
                label=seen.sample.label,
                left_out=not clear[place],
                nearness=near[place],
                differing=sum(differing(each, place, outputs[each.name].budget, DECISION_FACTOR) for each in comparisons),
            )
            for place, seen in enumerate(observations)
            if near[place] < 1
        ),
    )


def _compressed_in_vain(opened: OpenPackage) -> tuple[str, bool]:
    """Which weights a compression made larger, as pruning does that prunes nothing; empty for none. No comparison of outputs shows them.

    And whether all that is compressed takes no less than it would plain: then nothing of what was asked for was done.
    """
    compressed = [each for each in stored_weights(opened.graph) if each.compression]
    swollen = [each for each in compressed if each.saves_nothing]
    if not swollen:
        return "", False
    worst_one = max(swollen, key=lambda each: each.stored_bytes)
    more = f" (and {len(swollen) - 1} more weights)" if len(swollen) > 1 else ""
    known = [each for each in compressed if each.plain_bytes]
    in_vain = sum(each.stored_bytes for each in known) >= sum(each.plain_bytes for each in known)
    hint = "; Core ML Tools under numpy 2 prunes nothing of large weights, prune under numpy 1" if "sparse" in worst_one.compression else ""
    return (
        f"{worst_one.name} is compressed ({worst_one.compression}) and takes {worst_one.stored_bytes / 1e3:.1f} kB, "
        f"uncompressed {worst_one.plain_bytes / 1e3:.1f}{more}: the compression saves nothing{hint}"
    ), in_vain


def _another_reference(specs: Mapping[str, TensorSpec], observations: Sequence[Observation], kept: Array) -> str:
    """Why the recorded outputs are not those of this reference; empty when they are, or when none were recorded."""
    for place, name in enumerate(specs):
        pairs = [
            (as_float64(seen.sample.expected[name]), as_float64(seen.reference[place]))
            for seen, clear in zip(observations, kept, strict=True)
            if clear and seen.sample.expected is not None
        ]
        if not pairs:
            continue
        errors, exact = np.stack([given - exact for given, exact in pairs]), np.stack([exact for _, exact in pairs])
        if not relative_rms(errors, exact) <= FP32_NOISE:
            return f"the golden samples are of another torch model: its {name} differs by more than fp32 rounding"
    return ""
