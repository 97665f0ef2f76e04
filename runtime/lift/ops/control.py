"""Control flow, lists, random numbers and the classifier's last op."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coreflow.runtime.lift import limits
from coreflow.runtime.lift.limits import bounded, bounded_axis
from coreflow.runtime.lift.registry import lowering

Block = Callable[..., tuple[Any, ...]]


@lowering("cond")
def cond(pred: Tensor, *, blocks: tuple[Block, ...]) -> tuple[Any, ...]:
    """The results of the first block if ``pred`` is true, else those of the second. Source: MIL iOS15 control_flow.cond."""
    return blocks[0]() if bool(pred) else blocks[1]()


@lowering("while_loop")
def while_loop(loop_vars: Sequence[Tensor], *, blocks: tuple[Block, ...]) -> tuple[Any, ...]:
    """The loop variables after the second block ran as long as the first one holds. Source: MIL iOS15 control_flow.while_loop."""
    condition, body = blocks
    values = tuple(loop_vars)
    for _ in range(limits.MAX_ITERATIONS):
        if not bool(condition(*values)[0]):
            return values
        values = body(*values)
    raise ValueError(f"the loop has not ended after {limits.MAX_ITERATIONS} rounds")


@lowering("make_list")
def make_list(
    elem_shape: object,
    init_length: int = 1,
    dynamic_length: bool = True,
    dtype: str = "fp32",
    *,
    float_dtype: torch.dtype,
    device: torch.device,
) -> list[Tensor | None]:
    """A list of zeros; elements of a shape that only running tells are empty. Source: MIL iOS15 control_flow.make_list."""
    extents = [part for part in _parts(elem_shape) if isinstance(part, int) and part >= 0]
    bounded((bounded_axis(init_length), *extents))
    if len(extents) < len(_parts(elem_shape)):
        return [None] * init_length
    kinds = {"int32": torch.int32, "bool": torch.bool}
    return [torch.zeros(extents, dtype=kinds.get(dtype, float_dtype), device=device) for _ in range(init_length)]


@lowering("list_length")
def list_length(ls: list[Tensor | None], *, device: torch.device) -> Tensor:
    """How many elements."""
    return torch.tensor(len(ls), dtype=torch.int32, device=device)


@lowering("list_read")
def list_read(ls: list[Tensor | None], index: int) -> Tensor:
    """The element at ``index``."""
    return _written(ls, index)


@lowering("list_write")
def list_write(ls: list[Tensor | None], index: int, value: Tensor) -> list[Tensor | None]:
    """A list with ``value`` at ``index``; it grows where that is past its end."""
    return _with(ls, {index: value})


@lowering("list_gather")
def list_gather(ls: list[Tensor | None], indices: Sequence[int]) -> Tensor:
    """The elements at ``indices`` along a new first axis."""
    elements = [_written(ls, index) for index in indices]
    bounded((sum(element.numel() for element in elements),))
    return torch.stack(elements)


@lowering("list_scatter")
def list_scatter(ls: list[Tensor | None], indices: Sequence[int], value: Tensor) -> list[Tensor | None]:
    """A list with the slices of ``value`` at ``indices``; it grows where those are past its end."""
    return _with(ls, dict(zip(indices, value.unbind(0), strict=True)))


def _parts(shape: Any) -> list[Any]:
    """The extents, whether they came as one vector or one by one; a name stands for an open one."""
    parts = shape if isinstance(shape, list | tuple) else [shape]
    return [number for part in parts for number in ([part] if isinstance(part, str) else np.asarray(part).reshape(-1).tolist())]


def _with(ls: list[Tensor | None], changes: dict[int, Tensor]) -> list[Tensor | None]:
    """A copy: the list that was passed may still be read."""
    bounded_axis(max(changes, default=0))
    fresh: list[Tensor | None] = ls + [None] * (max(changes, default=-1) + 1 - len(ls))
    for index, value in changes.items():
        fresh[index] = value
    return fresh


def _written(ls: list[Tensor | None], index: int) -> Tensor:
    """The element at ``index``; one that was never written is zeros in the shape of those that were."""
    element = ls[index]
    if element is None:
        like = next((other for other in ls if other is not None), None)
        if like is None:
            raise ValueError("nothing was ever written to the list, and its elements have no fixed shape")
        return torch.zeros_like(like)
    return element


def _generator(seed: int) -> torch.Generator | None:
    """A generator of its own for a seed; -1 draws from torch's. On the CPU whatever the device: a seed means the same everywhere."""
    return None if seed == -1 else torch.Generator().manual_seed(seed)


@lowering("random_normal")
def random_normal(
    shape: Sequence[int], mean: float = 0.0, stddev: float = 1.0, seed: int = -1, *, float_dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Independent draws from a normal distribution. Source: MIL iOS15 random."""
    return torch.randn(bounded(shape), generator=_generator(seed), dtype=float_dtype).to(device) * stddev + mean


@lowering("random_uniform")
def random_uniform(
    shape: Sequence[int], low: float = 0.0, high: float = 1.0, seed: int = -1, *, float_dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Independent draws from [low, high)."""
    return torch.rand(bounded(shape), generator=_generator(seed), dtype=float_dtype).to(device) * (high - low) + low


@lowering("random_bernoulli")
def random_bernoulli(shape: Sequence[int], prob: float = 0.5, seed: int = -1, *, float_dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 with probability ``prob``, else 0."""
    return (torch.rand(bounded(shape), generator=_generator(seed)) < prob).to(device=device, dtype=float_dtype)


@lowering("random_categorical")
def random_categorical(x: Tensor, mode: str = "logits", size: int = 1, seed: int = -1) -> Tensor:
    """``size`` class numbers, drawn with replacement from each distribution along the last axis."""
    weights = torch.softmax(x, -1) if mode == "logits" else x
    bounded((*x.shape[:-1], size))
    drawn = torch.multinomial(weights.reshape(-1, x.shape[-1]).cpu(), size, replacement=True, generator=_generator(seed))
    return drawn.reshape(*x.shape[:-1], size).to(device=x.device, dtype=x.dtype)


@lowering("classify")
def classify(probabilities: Tensor, classes: object) -> tuple[Any, dict[Any, float]]:
    """The most probable class, and every class with its probability. Source: MIL iOS15 classify."""
    labels = tuple(classes) if isinstance(classes, list | tuple) else (classes,)
    values = probabilities.reshape(-1).tolist()
    return labels[int(torch.argmax(probabilities.reshape(-1)))], dict(zip(labels, values, strict=True))
