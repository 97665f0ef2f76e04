"""Results of two programs, number for number: which ops of the saved program give what a fresh conversion of the module has.

With the same weights, in float64, the two agree to the last digits, provided that one converter made both: the elements, their order,
and how often the program computes the same numbers. Shapes do not count, and what only lays out the same elements is free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from coreflow.export.package.graph import Op
from coreflow.export.package.op_facts import facts_of
from coreflow.models.arrays import Array, Bools, Floats
from coreflow.runtime.lift.ops.state import StateBuffer
from coreflow.runtime.lifted import LiftedModel
from coreflow.validate.diagnosis.fingerprints import Fingerprint, distances, fingerprint, moments_of, projections

Likeness = Literal["same", "repeated", "reordered", "unknown"]
_LIKENESSES: tuple[Likeness, ...] = ("unknown", "reordered", "repeated", "same")  # from the least


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Numbers:
    """Sums of a tensor: some over the elements in any order, some in theirs.

    >>> Numbers.of(torch.tensor([1.0, 2.0])).fingerprint == Numbers.of(torch.tensor([2.0, 1.0])).fingerprint
    True
    """

    fingerprint: Fingerprint
    projections: Floats  # (4,)

    @staticmethod
    def of(values: Tensor | Array) -> "Numbers":
        """The sums of ``values``."""
        return Numbers(fingerprint=fingerprint(values), projections=projections(values))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Execution:
    """One execution of a program, of which nothing but sums is kept.

    >>> run = Execution.of(model, {"x": x})
    >>> {op.name: [numbers.fingerprint.rms for numbers in results] for op, results in zip(run.ops, run.results)}
    """

    inputs: tuple[Numbers, ...]
    ops: tuple[Op, ...]
    results: tuple[tuple[Numbers, ...], ...]  # by op; without those that have no element, or are no tensor

    @property
    def fingerprints(self) -> list[Fingerprint | None]:
        """That of every op's first result."""
        return [results[0].fingerprint if results else None for results in self.results]

    @staticmethod
    def of(model: LiftedModel, inputs: Mapping[str, Any]) -> "Execution":
        """The execution of ``model`` on one sample."""
        arguments = model.prepare_inputs(inputs)
        given = [value.tensor if isinstance(value, StateBuffer) else value for value in arguments.values()]
        environment, steps = model.interpreter.environment(arguments), model.interpreter.plan.steps
        results = []
        with torch.inference_mode():
            for step in steps:
                step.call(environment)
                values = step.results(environment)
                results.append(tuple(Numbers.of(value) for value in values if isinstance(value, Tensor) and value.numel()))
                step.free(environment)
        return Execution(inputs=tuple(map(Numbers.of, given)), ops=tuple(step.op for step in steps), results=tuple(results))


def find_likenesses(saved: Execution, fresh: Execution, tolerances: Sequence[float]) -> tuple[Likeness, ...]:
    """By op of ``saved``: whether ``fresh`` has all of its results; ``tolerances`` are by op, too.

    A result of ``fresh`` is the same as one of ``saved``, and is repeated by others: an op that computes a second time what ``fresh``
    computes once reads from a wrong place. Only what gives the same elements another shape is the same however often it does.
    """
    groups: dict[tuple[int, int], list[tuple[Numbers, bool]]] = {}
    for op, results in ((None, fresh.inputs), *zip(fresh.ops, fresh.results, strict=True)):
        for numbers in results:
            groups.setdefault(_counts(numbers), []).append((numbers, op is not None and not _is_free(op)))
    known = {counts: _Group.of(members) for counts, members in groups.items()}

    def likeness(op: Op, numbers: Numbers, tolerance: float) -> Likeness:
        group = known.get(_counts(numbers))
        return "unknown" if group is None else group.find(numbers, tolerance, is_free=_is_free(op))

    return tuple(
        min((likeness(op, numbers, tolerance) for numbers in results), key=_LIKENESSES.index, default="same")
        for op, results, tolerance in zip(saved.ops, saved.results, tolerances, strict=True)
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Results of one count of elements and of non-finite ones."""

    moments: Floats  # (N, 6)
    projections: Floats  # (N, 4)
    is_left: Bools  # (N,): not found yet, of those that can be found once

    @staticmethod
    def of(members: Sequence[tuple[Numbers, bool]]) -> "_Group":
        moments, projected = ([get(numbers) for numbers, _ in members] for get in (_moments, _projections))
        return _Group(np.stack(moments), np.stack(projected), np.array([counts for _, counts in members]))

    def find(self, numbers: Numbers, tolerance: float, *, is_free: bool) -> Likeness:
        """How these results have ``numbers``; what is not free takes one of them."""
        alike = distances(self.moments, _moments(numbers)) <= tolerance
        apart = np.sqrt(np.square(self.projections - numbers.projections).mean(1))
        same = alike & (apart <= tolerance)
        if is_free and same.any():
            return "same"
        left: npt.NDArray[np.intp] = np.flatnonzero(same & self.is_left)
        if left.size:
            self.is_left[left[0]] = False
            return "same"
        return "repeated" if same.any() else "reordered" if alike.any() else "unknown"


def _moments(numbers: Numbers) -> Floats:
    return moments_of(numbers.fingerprint)


def _projections(numbers: Numbers) -> Floats:
    return numbers.projections


def _counts(numbers: Numbers) -> tuple[int, int]:
    return numbers.fingerprint.count, numbers.fingerprint.non_finite


def _is_free(op: Op) -> bool:
    """Whether a converter adds and removes such ops freely."""
    facts = facts_of(op.type)
    return facts.is_bookkeeping or facts.keeps_order
