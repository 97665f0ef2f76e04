"""The torch operation behind each op of a saved program, found by value.

Both run on one sample, and equal numbers belong together. Names do not count: converters rename, fuse and reorder, and a package may
come from any of them. An op into which several operations were fused has the numbers of the last of them; one that lays a value out
otherwise has its numbers in another order, which fingerprints do not depend on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from coreflow.export.package.graph import Op
from coreflow.models.arrays import Floats
from coreflow.validate.diagnosis.fingerprints import Fingerprint, distances, fingerprint, moments_of
from coreflow.validate.diagnosis.tracing import TracedValue
from coreflow.validate.report.model import Origin

FP32_MATCH = 1e-5  # what a fresh conversion at FLOAT32 may be off by: it folds constants in fp32
_LEAST_MATCH = 1e-7  # sums of fp32 weights that a converter folded
_SAME = 1e-10  # values whose distances differ by less are the same values, summed in another order


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Traced values of one count of elements and of non-finite ones, in the order of execution."""

    values: tuple[TracedValue, ...]
    indices: npt.NDArray[np.int_]  # (N,)
    moments: Floats  # (N, 6)


class Matcher:
    """Finds the torch operation that a value of the program comes from, among traced ones.

    >>> matcher = Matcher(trace_values(module, inputs), tolerance=1e-5)
    >>> interpreter.run(inputs, observe=lambda op, results: print(op.name, matcher.match(results[0])))
    """

    def __init__(self, traced: Sequence[TracedValue], tolerance: float) -> None:
        self._tolerance = tolerance
        groups: dict[tuple[int, int], list[TracedValue]] = {}
        for value in sorted(traced, key=lambda value: value.index):
            groups.setdefault((value.fingerprint.count, value.fingerprint.non_finite), []).append(value)
        self._groups = {
            key: _Group(
                tuple(values),
                np.array([value.index for value in values]),
                np.stack([moments_of(value.fingerprint) for value in values]),
            )
            for key, values in groups.items()
        }

    def match(self, values: Tensor | Fingerprint, after: int = -1) -> TracedValue | None:
        """The traced value with the same numbers in any order, the nearest one within the tolerance; None where there is none.

        Of equal values (zeros, copies) it is the first with an index above ``after``, else the first; constants come last.
        """
        sums = values if isinstance(values, Fingerprint) else fingerprint(values)
        group = self._groups.get((sums.count, sums.non_finite))
        if group is None:
            return None
        distance = distances(group.moments, moments_of(sums))
        nearest = distance.min()
        if not nearest <= self._tolerance:
            return None
        equal = np.flatnonzero(distance <= nearest + _SAME)
        computed = equal[[not group.values[place].constant for place in equal]]
        equal = computed if computed.size else equal
        later = equal[group.indices[equal] > after]
        return group.values[int((later if later.size else equal)[0])]


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """The traced values of the ops of a program, by the op's place; an op whose result torch does not compute is missing.

    >>> matches = match_ops(ops, results, Matcher(traced, tolerance=1e-5))
    >>> matches.origins[3].module
    'layers.0.attention'
    """

    values: Mapping[int, TracedValue]

    @property
    def origins(self) -> dict[int, Origin]:
        """Place of an op -> its origin."""
        return {place: value.origin for place, value in self.values.items()}


def match_ops(ops: Sequence[Op], results: Iterable[Tensor | Fingerprint | None], matcher: Matcher) -> Matches:
    """The traced value of every op; ``results`` are the ops' first results, of which one is held at a time, or what is known of them.

    Of several equal values the next one after those that the op reads is taken.
    """
    matches: dict[int, TracedValue] = {}
    latest: dict[int, int] = {}  # id of a value -> index of the latest traced value that it depends on
    for place, (op, result) in enumerate(zip(ops, results, strict=True)):
        before = max((latest[id(value)] for value in op.input_values() if id(value) in latest), default=-1)
        is_empty = result is None or (isinstance(result, Tensor) and not result.numel())
        match = None if result is None or is_empty else matcher.match(result, before)
        if match is not None:
            matches[place] = match
        latest.update((id(value), before if match is None else match.index) for value in op.outputs)
    return Matches(matches)


def match_for(error: float) -> float:
    """How near values have to be where nothing is rounded, to show what makes outputs differ by ``error``; 0 and NaN tell nothing."""
    return min(FP32_MATCH, max(_LEAST_MATCH, error / 4)) if error > 0 else FP32_MATCH
