"""Recurrent layers over (S, B, I): a gate is within 0 and 1, and an activation within -1 and 1."""

import numpy as np

from coreflow.export.engine.bounds.bound import Bound, UnboundedError, between
from coreflow.export.engine.bounds.registry import Call, transfer
from coreflow.export.engine.bounds.transfers.products import row_blocks

_GATES = ("sigmoid", "sigmoid_hard")
_ACTIVATIONS = ("tanh", *_GATES)
_SPARE = 2.0**-8  # of a table, relative to 1


def _require(call: Call, name: str, default: str, known: tuple[str, ...]) -> None:
    function = call.text(name, default)
    if function not in known:
        raise UnboundedError(f"{name} {function} has no bound")


def _note_sums(call: Call, hidden: float) -> None:
    """The largest partial sum of a gate: rows of the weights of x and of the hidden state, and the biases."""
    for end in ("", "_back") if "weight_ih_back" in call.op.inputs else ("",):
        total = np.zeros(1)
        for name, size in (("weight_ih", call["x"].largest), ("weight_hh", hidden)):
            weight = call.array(name + end)
            if weight is None:
                raise UnboundedError(f"{name}{end} is computed")
            total = total + np.concatenate([np.abs(rows).sum(1) for _, rows in row_blocks(weight)]) * size
        offsets = [bias.largest for name in ("bias", "input_bias") if (bias := call.get(name + end)) is not None]
        call.note("sum", float(total.max()) + sum(offsets))


@transfer("rnn")
def rnn(call: Call) -> tuple[Bound, ...]:
    """What the activation gives."""
    _require(call, "activation", "tanh", _ACTIVATIONS)
    _note_sums(call, max(1 + _SPARE, call["initial_h"].largest))
    return tuple(between(call.shape(i), -1 - _SPARE, 1 + _SPARE) for i in range(2))


@transfer("gru")
def gru(call: Call) -> tuple[Bound, ...]:
    """A mean of the state before and an activation."""
    _require(call, "recurrent_activation", "sigmoid", _GATES)
    _require(call, "activation", "tanh", _ACTIVATIONS)
    steps = call["x"].extent(0)
    size = max(1.0, call["initial_h"].largest) * (1 + 2 * _SPARE) ** min(steps, 1000)
    _note_sums(call, size)
    return tuple(between(call.shape(i), -size, size) for i in range(2))


@transfer("lstm")
def lstm(call: Call) -> tuple[Bound, ...]:
    """The cell grows by an activation a step, unless it is cut; the state is what a gate lets through of its activation."""
    _require(call, "recurrent_activation", "sigmoid", _GATES)
    for name in ("cell_activation", "activation"):
        _require(call, name, "tanh", _ACTIVATIONS)
    steps = call["x"].extent(0)
    growth = (1 + _SPARE) ** min(steps, 1000)
    cell = growth * (call["initial_c"].largest + steps * (1 + _SPARE))
    clip = call.numbers("clip")
    cell = cell if clip is None else min(cell, clip[0])
    _note_sums(call, max(1 + _SPARE, call["initial_h"].largest))
    return (
        between(call.shape(0), -1 - _SPARE, 1 + _SPARE),
        between(call.shape(1), -1 - _SPARE, 1 + _SPARE),
        between(call.shape(2), -cell, cell),
    )
