"""Where a module takes the place of the largest value: the scores it chose from, so that a flip can be told from a fault."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """``places`` (N,) chosen from ``scores`` (N, C)."""

    places: Array
    scores: Array

    def margin(self) -> Array:
        """(N,): distance of the two best scores; infinite where there is only one."""
        if self.scores.shape[1] < 2:
            return np.full(len(self.scores), np.inf)
        best = np.sort(np.take_along_axis(self.scores, np.argpartition(self.scores, -2, axis=1)[:, -2:], 1), axis=1)
        return np.asarray(best[:, 1] - best[:, 0])


class Choices(TorchDispatchMode):
    """Inside, every argmax, argmin and max along an axis is noted down."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Choice] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run ``func`` and note down what it chose from."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in ("aten::argmax", "aten::argmin") or (name in ("aten::max", "aten::min") and isinstance(result, tuple)):
            places = result[1] if isinstance(result, tuple) else result
            axis = args[1] if len(args) > 1 else (kwargs or {}).get("dim")
            self._note(args[0], places, axis, -1.0 if name.endswith("min") else 1.0)
        return result

    def _note(self, scores: Tensor, places: Tensor, axis: int | None, sign: float) -> None:
        if not scores.is_floating_point():
            return
        rows = scores.reshape(1, -1) if axis is None else torch.movedim(scores, axis, -1).reshape(-1, scores.shape[axis])
        self.found.append(Choice(places.reshape(-1).numpy().copy(), sign * rows.detach().double().numpy()))


def margins_of(output: Array, exact: list[Choice], simulated: list[Choice]) -> tuple[Array, Array] | None:
    """For an output of integers that is one of the choices: its margins, and what fp16 moves the scores of each row by (RMS)."""
    for wide, narrow in zip(exact, simulated, strict=False):
        if wide.places.size == output.size and wide.scores.shape == narrow.scores.shape and np.array_equal(wide.places, output.reshape(-1)):
            noise = np.sqrt(np.mean(np.square(narrow.scores - wide.scores), axis=1))
            return wide.margin().reshape(output.shape), noise.reshape(output.shape)
    return None
