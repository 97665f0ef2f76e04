"""Proof that a saved program is its module: both are executed in float64, after every conversion.

The error of an output is the larger of rms(d) / rms(t) and max|d| / max|t|, of the program's output p, torch's t and d = p - t; of whole
numbers it is the share that differ. In float64 little is left of it but what the converter did to the weights, so that in this order

1. an error of ``LIMIT`` at most, against the module with its weights rounded to fp16 as an fp16 program has them, is a proof;
2. so is an error of ``ROUNDINGS`` times what that rounding does to the module: folded weights are rounded after they are multiplied;
3. else the same program is converted once more at FLOAT32, where nothing is rounded, and is compared with the module as it is. An error
   of ``LIMIT`` at most says that the translation is right, and that the weights in fp16 cost what is told.

Anything else is an ``ExportError``, and so is a result of the program that is infinite or NaN where the module's is not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from coreflow.export.capture.calls import call
from coreflow.export.capture.casts import CastsTo
from coreflow.export.capture.evaluation import tensors
from coreflow.export.capture.precision import converted_copy, plain_torch, round_to_fp16
from coreflow.export.proof.execution import run_program
from coreflow.export.recipe import Recipe
from coreflow.models import fp16
from coreflow.models.arrays import Array, Arrays
from coreflow.models.errors import ConfigError, ExportError, InputError, UnsupportedError, first_line

SEEDS = (0, 8)  # of the inputs: those that were traced, and others that nothing was compared on
LIMIT = 1e-4  # a hundred times what float64 and fp32 weights leave; the least wrong conversion of our tests makes 1e-3
ROUNDINGS = 4.0  # weights that were folded are rounded once or twice more, and in other places
WORTH_TELLING = 1e-2  # of an error that the weights in fp16 make
_LEAST = 1e-6  # below it an output is zero


@dataclass(frozen=True, slots=True)
class Proof:
    """The error of every output of a saved program, or why there is none.

    >>> prove(recipe, package, convert_fp32).errors
    {'y': 3.1e-07}
    """

    errors: Mapping[str, float] = field(default_factory=dict)
    warning: str = ""  # why the program could not be compared, or that it is right and yet far off

    @property
    def error(self) -> float:
        """The largest error of an output."""
        return max(self.errors.values(), default=0.0)


def prove(recipe: Recipe, package: Path, convert_fp32: Callable[[], Path], function: str | None = None) -> Proof:
    """Compare the program that was saved at ``package``, or a ``function`` of it, with the module of ``recipe``, as said above.

    ``convert_fp32`` converts the same captured module at FLOAT32. Raises ``ExportError`` where the program is another function. Where one
    of the two cannot be executed in float64 there is no proof, and ``Proof.warning`` says why.
    """
    samples = samples_of(recipe)
    try:
        program = run_program(recipe, package, samples, function)
        if recipe.precision == "fp32":
            errors = output_errors(_run_module(recipe, samples), program)
            if _within(errors, LIMIT):
                return Proof(errors)
            raise ExportError(_fault(recipe, errors))
        rounded = _run_module(recipe, samples, _rounded)
        errors = output_errors(rounded, program)
        if _within(errors, LIMIT):
            return Proof(errors)
        plain = _run_module(recipe, samples)
        costs = output_errors(plain, rounded)
        if all(error <= max(LIMIT, ROUNDINGS * costs[name]) for name, error in errors.items()):
            return Proof(errors)
        name, error = _largest(errors)
        if np.isfinite(error) and _within(output_errors(plain, run_program(recipe, convert_fp32(), samples)), LIMIT):
            told = f"output {name!r} is {error:.1%} off with weights in fp16; at FLOAT32 the program is the module"
            return Proof(errors, told if error > WORTH_TELLING else "")
    except (ConfigError, InputError, UnsupportedError) as error:
        return Proof(warning=f"the saved program was not compared with the module: {first_line(error)}")
    raise ExportError(_fault(recipe, errors))


def samples_of(recipe: Recipe) -> list[Arrays]:
    """The inputs on which programs of ``recipe`` are executed."""
    return [*map(recipe.inputs_for, SEEDS), *recipe.inputs_of_other_shapes()]


def output_errors(reference: Mapping[str, Array], actual: Mapping[str, Array]) -> dict[str, float]:
    """The error of every output, as said above."""
    return {name: _error(values, actual[name]) for name, values in reference.items()}


def _run_module(recipe: Recipe, samples: Sequence[Arrays], convert: Callable[[Tensor], Tensor] = Tensor.double) -> dict[str, Array]:
    """The same of a copy of the module in float64, whose weights ``convert`` makes."""
    module = converted_copy(recipe.module, convert)
    results = []
    with plain_torch(torch.float64), CastsTo(torch.float64):
        for sample in samples:
            inputs = {name: tensor.clone() for name, tensor in tensors(sample, torch.float64).items()}  # a module may write to them
            try:
                results.append(call(module, inputs, recipe.outputs, strict=True))
            except Exception as error:
                raise ConfigError(f"the module does not run in float64: {first_line(error)}") from error
    return {name: torch.cat([result[place].reshape(-1) for result in results]).numpy() for place, name in enumerate(recipe.outputs)}


def _rounded(weights: Tensor) -> Tensor:
    """The weights as fp16 has them; those beyond it as they are, which the converter leaves in fp32."""
    rounded = round_to_fp16(weights).double()
    if weights.numel() and max(map(abs, weights.aminmax())) > fp16.MAX:
        return torch.where(rounded.isinf(), weights.double(), rounded)
    return rounded


def _error(reference: Array, actual: Array) -> float:
    """See above; infinite where ``actual`` alone is not finite, and 0 where nothing can be compared."""
    if reference.shape != actual.shape:
        return np.inf
    if reference.dtype.kind in "iu":
        return float(np.mean(reference != actual))
    # What a device could not tell from infinity anyway is compared as such.
    beyond = (np.abs(reference) > fp16.MAX) & ~(np.abs(actual) <= fp16.MAX) & (np.sign(reference) == np.sign(actual))
    compared = np.isfinite(reference) & ~beyond
    reference, actual = reference[compared], actual[compared]
    if not np.isfinite(actual).all():
        return np.inf
    if not reference.size:
        return 0.0
    difference = np.abs(reference - actual)
    rms = [float(np.sqrt(np.mean(np.square(values)))) for values in (difference, reference)]
    largest = [float(np.abs(values).max()) for values in (difference, reference)]
    return max(off / max(scale, _LEAST) for off, scale in (rms, largest))


def _within(errors: Mapping[str, float], limit: float) -> bool:
    return _largest(errors)[1] <= limit


def _largest(errors: Mapping[str, float]) -> tuple[str, float]:
    return max(errors.items(), key=lambda item: item[1])


def _fault(recipe: Recipe, errors: Mapping[str, float]) -> str:
    name, error = _largest(errors)
    if np.isfinite(error):
        fault = f"the saved program is not the module: output {name!r} is {error:.2g} off, where {LIMIT:.0e} is the limit"
    else:
        fault = (
            f"output {name!r} of the saved program is infinite or NaN where the module's is not; a number beyond 65504 is infinite in "
            "fp16, and a mask needs no more than -1e4"
        )
    return f"{recipe.name}: {fault}. Nothing was written (--no-check, check=False: write it all the same; `coreflow validate` names the op)"
