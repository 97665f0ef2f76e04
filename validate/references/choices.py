"""The scores behind every argmax of a module, so that a flip of a near tie can be told from a fault."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from coreflow.models.arrays import Array


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """``indices`` (N,) chosen from ``scores`` (N, C).

    >>> Choice(indices=np.array([1]), scores=np.array([[0.5, 2.0, 1.5]])).margin()
    array([0.5])
    """

    indices: Array
    scores: Array

    def margin(self) -> Array:
        """(N,): distance of the two best scores; infinite where there is only one."""
        if self.scores.shape[1] < 2:
            return np.full(len(self.scores), np.inf)
        best = np.sort(np.take_along_axis(self.scores, np.argpartition(self.scores, -2, axis=1)[:, -2:], 1), axis=1)
        return np.asarray(best[:, 1] - best[:, 0])


class ChoiceRecorder(TorchDispatchMode):
    """Records every argmax, argmin, and max or min along an axis.

    >>> with ChoiceRecorder() as recorder:
    ...     module(x)
    >>> recorder.choices[0].margin()
    """

    def __init__(self) -> None:
        super().__init__()
        self.choices: list[Choice] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run ``func`` and record its choice."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in ("aten::argmax", "aten::argmin") or (name in ("aten::max", "aten::min") and isinstance(result, tuple)):
            indices = result[1] if isinstance(result, tuple) else result
            axis = args[1] if len(args) > 1 else (kwargs or {}).get("dim")
            self._record(args[0], indices, axis, -1.0 if name.endswith("min") else 1.0)
        return result

    def _record(self, scores: Tensor, indices: Tensor, axis: int | None, sign: float) -> None:
        if not scores.is_floating_point():
            return
        rows = scores.reshape(1, -1) if axis is None else torch.movedim(scores, axis, -1).reshape(-1, scores.shape[axis])
        self.choices.append(Choice(indices.reshape(-1).numpy().copy(), sign * rows.detach().double().numpy()))


def margins_of(output: Array, reference: Sequence[Choice], simulated: Sequence[Choice]) -> tuple[Array, Array] | None:
    """Margins of an integer output that is one of the ``reference`` choices, and the RMS by which fp16 moves the scores of each row.

    None where the output is no choice.
    """
    for choice, in_fp16 in zip(reference, simulated, strict=False):
        is_output = choice.indices.size == output.size and np.array_equal(choice.indices, output.reshape(-1))
        if is_output and choice.scores.shape == in_fp16.scores.shape:
            noise = np.sqrt(np.mean(np.square(in_fp16.scores - choice.scores), axis=1))
            return choice.margin().reshape(output.shape), noise.reshape(output.shape)
    return None
