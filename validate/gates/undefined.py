"""Samples on which a module is not defined: a swept one whose reference is not finite, and one that leaves a row of a mask empty.

A softmax over nothing has no value, and what a program makes of it, NaN or a mean of everything, says nothing of the package. Whether a
row is empty its values alone do not tell: zeros are padding throughout for one module, and an ordinary input for another (token types, or a
mask in which 1 stands for padding). So such a sample counts as any other unless something goes wrong on it, and only beside samples without
such a row: what goes wrong on those too is a fault.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from coreflow.models.arrays import Array
from coreflow.models.draws import is_mask, mask_of, token_axis
from coreflow.models.spec import TensorSpec
from coreflow.validate.gates.metrics import as_float64, rms
from coreflow.validate.gates.tolerance import CEILING
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.ladder.observation import Observation


def find_undefined(observations: Sequence[Observation], specs: Mapping[str, TensorSpec]) -> dict[int, str]:
    """By place of an observation, why it says nothing of the package, in words; never all of them."""
    masks = {name: spec for name, spec in specs.items() if is_mask(spec)}
    rows = [(_constant_rows(seen.sample, masks, 0), _constant_rows(seen.sample, masks, 1)) for seen in observations]
    has_others = any(not empty and not full for empty, full in rows)
    undefined = {}
    for place, (seen, (empty, full)) in enumerate(zip(observations, rows, strict=True)):
        if seen.sample.swept and not _is_defined(seen.reference):
            undefined[place] = f"{seen.sample.label}: the reference is not finite"
        elif has_others and empty and (trouble := _trouble(seen)):
            undefined[place] = f"{seen.sample.label}: {' and '.join(empty)} has an empty row, and {trouble}"
        elif has_others and full and not _is_defined(seen.reference):
            undefined[place] = f"{seen.sample.label}: {' and '.join(full)} has a full row, and the reference is not finite"
    return undefined if len(undefined) < len(observations) else {}


def _constant_rows(sample: Sample, masks: Mapping[str, TensorSpec], side: int) -> list[str]:
    """The names of the masks of which a row lies at one bound throughout: 0, the lower one, or 1, the upper one."""
    names = []
    for name, spec in masks.items():
        array, bound = np.asarray(sample.inputs[name]), mask_of(spec, np.array(side == 1)).flat[0]
        if (array == bound).all(token_axis(array.shape)).any():
            names.append(name)
    return names


def _trouble(seen: Observation) -> str:
    """What goes wrong on a sample, in words; empty where nothing does."""
    if not _is_defined(seen.reference):
        return "the reference is not finite"
    if seen.simulated is not None and not _keeps_finite(seen.simulated, seen.reference):
        return "torch's own fp16 is not finite"
    if not _keeps_finite(tuple(seen.actual.values()), seen.reference):
        return "the package is not finite"
    if seen.simulated is not None and any(map(_is_lost, seen.simulated, seen.reference)):
        return "torch's own fp16 loses its meaning"
    return ""


def _is_defined(reference: Sequence[Array]) -> bool:
    """Whether no output is NaN somewhere, or finite nowhere; infinities may be meant."""
    return not any(np.isnan(array).any() or not np.isfinite(array).any() for array in reference)


def _keeps_finite(arrays: Sequence[Array], reference: Sequence[Array]) -> bool:
    """Whether every value is finite that is so in the reference."""
    pairs = ((as_float64(array).reshape(-1), as_float64(expected).reshape(-1)) for array, expected in zip(arrays, reference, strict=True))
    return all(bool((np.isfinite(array) | ~np.isfinite(expected)).all()) for array, expected in pairs)


def _is_lost(simulated: Array, reference: Array) -> bool:
    """Whether the simulation is off by more than a package may be in fp16."""
    finite = np.isfinite(reference)
    return rms(as_float64(simulated)[finite] - as_float64(reference)[finite]) > CEILING * rms(as_float64(reference)[finite])
