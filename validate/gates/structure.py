"""Structure: names, order, shapes and dtypes of a package's inputs and outputs against those of its reference."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Array
from coreflow.models.errors import ConfigError
from coreflow.models.spec import Dtype, Precision, TensorSpec
from coreflow.runtime.backend import Model
from coreflow.validate.gates.metrics import max_abs
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.ladder.observation import Observation
from coreflow.validate.references.reference import Reference
from coreflow.validate.report.model import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Reasons why outputs cannot be compared.

    >>> Obstacle(cause="structure", problems=("the package has 1 outputs and the reference 2",))
    """

    problems: tuple[str, ...]
    cause: Cause | None = None  # None: there is nothing to compare
    text: str = ""  # in one line; empty: the problems themselves


# What two runs of one module in float64 may differ by, as a share of the largest value: threads may add in another order.
_REPEATED = 1e-9
NO_REFERENCE = Obstacle(problems=("no reference: nothing was compared",))
NO_INPUTS = Obstacle(problems=("give inputs, or a draw",), text="no inputs: nothing was compared")


def find_interface_obstacle(
    model: Model, recipe: Recipe | None, samples: Sequence[Sample], open_reference: Callable[[], Reference]
) -> Obstacle | None:
    """Faults that the interface alone shows, before anything is compared; at most one of ``samples`` is looked at."""
    sample = samples[0] if samples else None
    if sample is not None and (problems := _integer_problems(model, sample, open_reference)):
        return Obstacle(cause="translation", problems=tuple(problems))
    if recipe is None or not (problems := _interface_problems(model, recipe)):
        return None
    if sample is not None and list(sample.inputs) == list(model.inputs) and len(recipe.outputs) > len(model.outputs):
        reference = open_reference().outputs(sample.inputs)
        return _blame(problems, merged_outputs(reference, model.outputs))
    return _blame(problems)


def find_integer_obstacle(model: Model, sample: Sample, open_reference: Callable[[], Reference]) -> Obstacle | None:
    """Why the reference does not run on a sample of floats: it runs where one of them, or all, are whole numbers."""
    arrays = {name: np.asarray(sample.inputs[name]) for name in model.inputs}
    floats = [name for name, array in arrays.items() if array.dtype.kind == "f"]
    reference = open_reference()
    for names in (*((name,) for name in floats), tuple(floats)):
        with suppress(ConfigError):
            reference.outputs(arrays | {name: np.zeros(arrays[name].shape, np.int32) for name in names})
            return Obstacle(cause="translation", problems=tuple(_whole_numbers_only(model, name) for name in names))
    return None


def find_output_obstacle(
    specs: Mapping[str, TensorSpec], precision: Precision, observations: Sequence[Observation], *, is_converted: bool
) -> Obstacle | None:
    """Outputs that cannot be compared, once the reference has run; a converter (``is_converted``) merges equal outputs."""
    problems = _output_problems(specs, precision, observations)
    if not problems:
        return None
    return _blame(problems, merged_outputs(observations[0].reference, specs) if is_converted else "")


def find_unrepeatable_reference(first: Observation, outputs: Collection[str], run_anew: Callable[[], tuple[Array, ...]]) -> Obstacle | None:
    """A reference that gives something else when it runs on the ``first`` sample again; ``run_anew`` runs a fresh copy of it there.

    One that gives the same when it begins anew keeps a state, which a trace loses. Any other draws random numbers: it is one of many.
    """
    name = _differing(outputs, first.reference, first.again or first.reference)
    if name is None:
        return None
    if _differing(outputs, first.reference, run_anew()) is None:
        text = f"the reference gives another {name!r} when it is called again: it changes its own buffers, and the package keeps no state"
        return Obstacle(cause="translation", problems=(text,))
    text = (
        f"the reference gives another {name!r} for the same inputs whenever it runs: it draws random numbers, or a dropout is on whatever "
        "the mode; nothing can be compared with one draw of many"
    )
    return Obstacle(problems=(text,))


def _differing(outputs: Collection[str], first: Sequence[Array], second: Sequence[Array]) -> str | None:
    """The first output in which two runs differ by more than their order of summation."""
    for name, before, after in zip(outputs, first, second, strict=True):
        finite = before[np.isfinite(before)]
        atol = _REPEATED * max_abs(finite) if finite.size else 0.0
        if before.shape != after.shape or not np.allclose(before, after, rtol=0, atol=atol, equal_nan=True):
            return name
    return None


def _blame(problems: Sequence[str], merged: str = "") -> Obstacle:
    """Merged outputs are the converter's fault, and all other problems are of structure."""
    return Obstacle(cause="translation", problems=(merged,)) if merged else Obstacle(cause="structure", problems=tuple(problems))


def structure_problems(
    reference: Mapping[str, TensorSpec], actual: Mapping[str, TensorSpec], side: str, *, names_known: bool = True
) -> list[str]:
    """Differences in names, order, rank, shape and dtype, one for one. Without known names, by place."""
    if names_known and list(reference) != list(actual):
        return [f"the {side}s are {', '.join(actual) or 'none'}; {', '.join(reference)} in this order are right"]
    if len(reference) != len(actual):
        return [f"the package has {len(actual)} {side}s and the reference {len(reference)}"]
    problems = []
    for expected, (name, spec) in zip(reference.values(), actual.items(), strict=True):
        if expected.shape != spec.shape:
            problems.append(f"{side} {name!r} has shape {list(spec.shape)}; the reference's is {list(expected.shape)}")
        if expected.dtype != spec.dtype:
            problems.append(f"{side} {name!r} is {spec.dtype}; {expected.dtype} is right")
    return problems


def merged_outputs(reference: Sequence[Array], outputs: Collection[str]) -> str:
    """The problem of a package that lacks just the outputs that its reference gives twice, as a converter makes it; empty for others."""
    twins = {
        second: first
        for second in range(len(reference))
        for first in reversed(range(second))
        if np.array_equal(reference[first], reference[second])
    }
    if not twins or len(reference) - len(twins) != len(outputs):
        return ""
    pairs = ", ".join(f"{first + 1} and {second + 1}" for second, first in twins.items())
    return (
        f"the package has {len(outputs)} outputs ({', '.join(outputs)}) and the reference {len(reference)}, of which {pairs} are one "
        "tensor: the converter keeps it once, under a name of its own. Return a copy as the other"
    )


def _interface_problems(model: Model, recipe: Recipe) -> list[str]:
    """Inputs against the recipe's, and the names of the outputs."""
    # A program in fp32 takes fp32, whatever the spec says of an fp16 one.
    floats: Dtype = "float32" if recipe.precision == "fp32" else "float16"
    inputs = {name: replace(spec, dtype=floats) if spec.dtype == "float16" else spec for name, spec in recipe.inputs.items()}
    problems = structure_problems(inputs, model.inputs, "input")
    if list(recipe.outputs) != list(model.outputs):
        problems.append(f"the outputs are {', '.join(model.outputs)}; {', '.join(recipe.outputs)} in this order are right")
    return problems


def _integer_problems(model: Model, sample: Sample, open_reference: Callable[[], Reference]) -> list[str]:
    """Inputs that the package takes as floats although the reference runs on whole numbers only, as it does on token ids."""
    arrays = {name: np.asarray(array) for name, array in sample.inputs.items()}
    as_floats = [
        name for name, spec in model.inputs.items() if name in arrays and arrays[name].dtype.kind in "iu" and spec.dtype != "int32"
    ]
    if not as_floats or set(arrays) != set(model.inputs):
        return []
    reference = open_reference()
    try:
        reference.outputs({name: arrays[name].astype(np.float32) if name in as_floats else arrays[name] for name in model.inputs})
    except ConfigError:
        reference.outputs({name: arrays[name] for name in model.inputs})  # that it runs on neither is another fault, and is raised
        return [_whole_numbers_only(model, name) for name in as_floats]
    return []


def _whole_numbers_only(model: Model, name: str) -> str:
    return f"input {name!r} is {model.inputs[name].dtype}; int32 is right, the reference runs on whole numbers only"


def _output_problems(specs: Mapping[str, TensorSpec], precision: Precision, observations: Sequence[Observation]) -> list[str]:
    """Shape and dtype of every output, as declared and as really predicted, against those of the reference."""
    floats: Dtype = "float16" if precision == "fp16" else "float32"
    reference = {str(place): _spec(array, floats) for place, array in enumerate(observations[0].reference)}
    # fp32 in and out around an fp16 program is a choice, not a fault.
    declared = {name: TensorSpec(spec.shape, floats) if spec.dtype != "int32" else spec for name, spec in specs.items()}
    if problems := structure_problems(reference, declared, "output", names_known=False):
        return problems
    return [
        f"output {name!r} of {seen.sample.label} has shape {list(array.shape)}; {list(expected.shape)} is right"
        for seen in observations
        for (name, array), expected in zip(seen.actual.items(), seen.reference, strict=True)
        if array.shape != (expected.shape or (1,))
    ]


def _spec(array: Array, floats: Dtype) -> TensorSpec:
    return TensorSpec(array.shape or (1,), floats if array.dtype.kind == "f" else "int32")
