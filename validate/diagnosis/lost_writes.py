"""Writes that a program lost: torch without them computes what the program computes.

A converter that takes a write through a view for a new value leaves the tensor behind the view as it was. Every op of such a program is
right, so that no op can be named; the write can.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from coreflow.export.package.graph import Op
from coreflow.models.arrays import Arrays
from coreflow.runtime.lifted import LiftedModel
from coreflow.validate.diagnosis.fingerprints import Fingerprint, distance
from coreflow.validate.diagnosis.matching import Matcher, Matches, match_ops
from coreflow.validate.diagnosis.tracing import Trace, TracedValue, Write, trace
from coreflow.validate.report.model import Culprit

_MOST = 16  # writes that are tried, by one execution of the module each
_SAME = 1e-10  # values whose distances differ by less are the same values, summed in another order


def find_lost_writes(
    module: nn.Module,
    inputs: Arrays,
    names: Sequence[str],
    model: LiftedModel,
    ops: Sequence[Op],
    results: Sequence[Tensor | None],
    tolerance: float,
    ratio: float,
    *,
    fp16_weights: bool = False,
) -> tuple[Culprit, ...]:
    """A culprit for every write of ``module`` that ``model`` lost, under the name of the op that gives what torch writes over.

    ``names`` are those of the outputs, as the module may have them.
    ``results`` are those of the ``ops`` of the model in float64 on ``inputs``; ``ratio`` as in ``find_translation_errors``.

    >>> find_lost_writes(module, inputs, ("y",), model_fp64, ops, results, tolerance=1e-5, ratio=2100.0)[0].line
    31
    """

    def match(traced: Sequence[TracedValue]) -> Matches:
        return match_ops(ops, results, Matcher(traced, tolerance))

    execute = partial(trace, module, inputs, names=names, fp16_weights=fp16_weights)
    executed = execute()
    matches = match(executed.values)
    if not any(value.write for value in executed.values):
        return ()
    outputs = [torch.from_numpy(array) for array in model.predict(dict(zip(model.inputs, inputs.values(), strict=True))).values()]
    places = {value.index: place for place, value in matches.values.items()}
    culprits = []
    for value, write in _lost_writes(execute, match, executed, outputs, tolerance):
        op = ops[places.get(write.before, 0)]
        text = (
            f"torch writes there ({value.origin.operation}), the program does not: torch without this write computes what the program does"
        )
        culprits.append(Culprit(kind="translation", name=op.name, type=op.type, ratio=ratio, text=text, origin=value.origin))
    return tuple(culprits)


def _lost_writes(
    execute: Callable[..., Trace],
    match: Callable[[Sequence[TracedValue]], Matches],
    executed: Trace,
    outputs: Sequence[Tensor],
    tolerance: float,
) -> tuple[tuple[TracedValue, Write], ...]:
    """The writes without which torch gives the ``outputs`` of the program; empty where there are none.

    One after another is left out, the earliest first, as long as the ops of the program are found in torch as before.
    """
    matches = match(executed.values)
    lost: dict[int, tuple[TracedValue, Write]] = {}
    tried: set[int] = set()
    while not _are_alike(executed.outputs, outputs, tolerance):
        untried = [(value, write) for value, write in _candidates(executed, matches) if write.number not in tried]
        if not untried or len(tried) == _MOST:
            return ()
        value, write = untried[0]
        tried.add(write.number)
        trial = execute(lost={*lost, write.number})
        trial_matches = match(trial.values)
        if len(trial_matches.values) >= len(matches.values):
            lost[write.number], executed, matches = (value, write), trial, trial_matches
    if len(lost) < 2:
        return tuple(lost.values())
    return tuple(lost[number] for number in lost if not _are_alike(execute(lost=lost.keys() - {number}).outputs, outputs, tolerance))


def _candidates(executed: Trace, matches: Matches) -> Iterator[tuple[TracedValue, Write]]:
    """The writes into what the program has, and their results, which it lacks or which are the same numbers in another order."""
    present = (*executed.inputs, *(value.fingerprint for value in matches.values.values()))
    for value in executed.values:
        if value.write is None:
            continue
        before = None if value.write.before < 0 else executed.values[value.write.before]
        if before is None or before.constant or _is_among(before.fingerprint, present):
            moves_only = before is not None and _is_among(value.fingerprint, (before.fingerprint,))
            if moves_only or not _is_among(value.fingerprint, present):
                yield value, value.write


def _is_among(one: Fingerprint, many: Sequence[Fingerprint]) -> bool:
    return any(distance(one, other) <= _SAME for other in many if other.count == one.count)


def _are_alike(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> bool:
    """Whether all tensors are alike, number for number, within a relative RMS error."""
    return len(ours) == len(theirs) and all(map(lambda a, b: _error(a, b) <= tolerance, ours, theirs))


def _error(ours: Tensor, theirs: Tensor) -> float:
    if ours.numel() != theirs.numel():
        return float("inf")
    a, b = ours.detach().double().reshape(-1), theirs.detach().double().reshape(-1)
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp(min=torch.finfo(torch.float64).tiny))
