"""The largest magnitudes of every op over samples, in float64: what the hazards of the engine are held against."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coreflow.export.engine.bounds.hazards import Seen
from coreflow.export.package.graph import Op
from coreflow.models.arrays import Arrays
from coreflow.runtime.lifted import LiftedModel

_PARTS = 16  # ends of partial sums that are looked at, in the order of the index


@dataclass(slots=True)
class _Tally:
    """Magnitudes of one op so far."""

    result: float = 0.0
    sum: float = 0.0
    square: float = 0.0
    exponent: float = 0.0
    squares: float = 0.0  # of all results
    elements: int = 0

    def seen(self) -> Seen:
        rms = math.sqrt(self.squares / self.elements) if self.elements else 0.0
        return Seen(result=self.result, sum=self.sum, square=self.square, exponent=self.exponent, rms=rms)


def magnitudes(model: LiftedModel, samples: Iterable[Arrays]) -> dict[str, Seen]:
    """By name of an op, what it had over ``samples``; ``model`` has float64 numerics.

    Partial sums are those of whole parts of the index, sixteen of them: no more than the largest, and hardly less.
    """
    tallies: dict[str, _Tally] = {}

    def observe(op: Op, results: tuple[Any, ...]) -> None:
        tally = tallies.setdefault(op.name, _Tally())
        for result in results:
            if isinstance(result, Tensor) and result.is_floating_point() and result.numel():
                tally.result = max(tally.result, _largest(result))
                tally.squares += float(result.square().sum())
                tally.elements += result.numel()

    for inputs in samples:
        environment = model.interpreter.environment(_tensors(model, inputs))
        with torch.inference_mode():
            for step in model.interpreter.plan.steps:
                arguments = step.arguments(environment) if step.op.type in _INNER else {}
                step.call(environment, observe)
                observe(step.op, step.results(environment))
                if arguments:
                    _INNER[step.op.type](tallies[step.op.name], arguments)
                step.free(environment)
    return {name: tally.seen() for name, tally in tallies.items()}


def _tensors(model: LiftedModel, inputs: Arrays) -> dict[str, Any]:
    """Inputs, and states of zeros where the program keeps any."""
    from coreflow.runtime.lift.ops.state import StateBuffer

    states = {
        name: StateBuffer(torch.zeros(spec.shape, dtype=model.numerics.dtype, device=model.device)) for name, spec in model.states.items()
    }
    return {**model.prepare_inputs(inputs), **states}


def _largest(x: Tensor) -> float:
    return float(torch.nan_to_num(x.abs(), nan=math.inf).max()) if x.numel() else 0.0


def _partial_sums(x: Tensor, y: Tensor, start: Tensor | None) -> float:
    """The largest of the sums over the first parts of K; x (..., M, K), y (..., K, N), start (N,)."""
    total = x.new_zeros(()) if start is None else start
    largest = _largest(total)
    for part in torch.arange(x.shape[-1], device=x.device).tensor_split(min(_PARTS, x.shape[-1])):
        total = total + torch.matmul(x[..., part], y[..., part, :])
        largest = max(largest, _largest(total))
    return largest


def _linear(tally: _Tally, arguments: Mapping[str, Any]) -> None:
    x = arguments["x"]
    sums = _partial_sums(x if x.dim() > 1 else x[None], arguments["weight"].to(x.dtype).T, arguments.get("bias"))
    tally.sum = max(tally.sum, sums)


def _matmul(tally: _Tally, arguments: Mapping[str, Any]) -> None:
    x, y = arguments["x"], arguments["y"]
    left = x.transpose(-1, -2) if arguments.get("transpose_x") and x.dim() > 1 else x
    right = y.transpose(-1, -2) if arguments.get("transpose_y") and y.dim() > 1 else y
    dtype = torch.promote_types(x.dtype, y.dtype)
    left, right = (left if left.dim() > 1 else left[None]).to(dtype), (right if right.dim() > 1 else right[:, None]).to(dtype)
    if dtype.is_floating_point:
        tally.sum = max(tally.sum, _partial_sums(left, right, None))


def _conv(tally: _Tally, arguments: Mapping[str, Any]) -> None:
    """Sums over the first parts of the channels; of groups the results alone."""
    from coreflow.runtime.lift.ops.conv import conv

    x, weight, bias = arguments["x"], arguments["weight"], arguments.get("bias")
    settings = {name: value for name, value in arguments.items() if name not in ("x", "weight", "bias")}
    total = x.new_zeros(()) if bias is None else bias.reshape(-1, *(1,) * (x.dim() - 2))
    largest = _largest(total)
    parts = torch.arange(x.shape[1]).tensor_split(min(_PARTS, x.shape[1])) if settings.get("groups", 1) == 1 else [torch.arange(x.shape[1])]
    for part in parts:
        filters = weight[:, part] if len(parts) > 1 else weight
        total = total + conv(x[:, part], filters, **settings)
        largest = max(largest, _largest(total))
    tally.sum = max(tally.sum, largest)


def _attention(tally: _Tally, arguments: Mapping[str, Any]) -> None:
    tally.sum = max(tally.sum, _partial_sums(arguments["query"], arguments["key"].transpose(-1, -2), None), tally.result)


def _results(tally: _Tally, arguments: Mapping[str, Any]) -> None:
    tally.sum = max(tally.sum, tally.result)


def _deviations(tally: _Tally, arguments: Mapping[str, Any]) -> None:
    x, axes = arguments["x"], arguments.get("axes")
    _deviate(tally, x, list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes])


def _deviations_of_channels(tally: _Tally, arguments: Mapping[str, Any]) -> None:
    _deviate(tally, arguments["x"], list(range(2, arguments["x"].dim())))


def _deviate(tally: _Tally, x: Tensor, axes: list[int]) -> None:
    tally.square = max(tally.square, _largest(x - x.mean(axes, keepdim=True)))


def _values(tally: _Tally, arguments: Mapping[str, Any]) -> None:
    tally.square = max(tally.square, _largest(arguments["x"]))


def _exponents(tally: _Tally, arguments: Mapping[str, Any]) -> None:
    tally.exponent = max(tally.exponent, float(arguments["x"].max()))


_INNER: dict[str, Callable[[_Tally, Mapping[str, Any]], None]] = {
    "linear": _linear,
    "matmul": _matmul,
    "conv": _conv,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("conv_transpose", "einsum"), _results),
    "layer_norm": _deviations,
    "instance_norm": _deviations_of_channels,
    **dict.fromkeys(("l2_norm", "local_response_norm", "reduce_l2_norm", "reduce_sum_square"), _values),
    **dict.fromkeys(("exp", "reduce_log_sum_exp"), _exponents),
}
