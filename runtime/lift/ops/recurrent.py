"""Recurrent layers over (S, B, I). Source of every formula: MIL iOS15 recurrent; gru's reset_after and input_bias since iOS18."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from coreflow.runtime.lift.limits import bounded
from coreflow.runtime.lift.registry import lowering

Activation = Callable[[Tensor], Tensor]


def _activation(name: str) -> Activation:
    """Core ML's recurrent activations. Its scaled tanh has no scale here, and its hard sigmoid is min(max(x / 5 + 1/2, 0), 1)."""
    known: dict[str, Activation] = {
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "relu": torch.relu,
        "linear": lambda x: x,
        "scaled_tanh": torch.tanh,
        "sigmoid_hard": lambda x: torch.clamp(0.2 * x + 0.5, 0.0, 1.0),
        "hard_sigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0.0, 1.0),
    }
    if name.lower() not in known:
        raise ValueError(f"activation {name!r}; there are {', '.join(known)}")
    return known[name.lower()]


def _in_order(x: Tensor, *, backwards: bool) -> Iterable[Tensor]:
    return x.flip(0).unbind(0) if backwards else x.unbind(0)


def _sequence(outputs: Sequence[Tensor], *, every_step: bool) -> Tensor:
    """(S, B, H) or the last step alone as (1, B, H); steps stay in the order in which they were computed."""
    return torch.stack(tuple(outputs)) if every_step else outputs[-1].unsqueeze(0)


def _bounded_steps(x: Tensor, initial_h: Tensor, *, weight_hh: Tensor, **others: object) -> None:
    bounded((*x.shape[:2], weight_hh.shape[-1]))


@lowering("rnn", guard=_bounded_steps)
def rnn(
    x: Tensor,
    initial_h: Tensor,
    *,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """h = activation(W x + R h + b); weights (H, I) and (H, H)."""
    act, h, outputs = _activation(activation), initial_h, []
    for step in _in_order(x, backwards=direction == "reverse"):
        total = step @ weight_ih.T + h @ weight_hh.T
        h = act(total if bias is None else total + bias)
        outputs.append(h)
    return _sequence(outputs, every_step=output_sequence), h


@lowering("gru", guard=_bounded_steps)
def gru(
    x: Tensor,
    initial_h: Tensor,
    *,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """h = (1 - z) o + z h with gates in the order r, o, z; weights (3H, I) and (3H, H).

    o = activation(W x + R (r h) + b); with ``reset_after``, r times (R h + b) instead.
    """
    gate, act, h, outputs = _activation(recurrent_activation), _activation(activation), initial_h, []
    r_hidden, o_hidden, z_hidden = weight_hh.chunk(3)
    none = torch.zeros(weight_hh.shape[0], dtype=x.dtype, device=x.device)
    r_bias, o_bias, z_bias = (none if bias is None else bias).chunk(3)
    for step in _in_order(x, backwards=direction == "reverse"):
        r_in, o_in, z_in = (step @ weight_ih.T + (none if input_bias is None else input_bias)).chunk(3, -1)
        r = gate(r_in + h @ r_hidden.T + r_bias)
        z = gate(z_in + h @ z_hidden.T + z_bias)
        recurrent = r * (h @ o_hidden.T + o_bias) if reset_after else (r * h) @ o_hidden.T + o_bias
        h = (1 - z) * act(o_in + recurrent) + z * h
        outputs.append(h)
    return _sequence(outputs, every_step=output_sequence), h


@lowering("lstm", guard=_bounded_steps)
def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    *,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """c = f c + i z, h = o activation(c) with gates in the order i, f, o, z; weights (4H, I) and (4H, H), peepholes (3H,).

    Both directions stand side by side in h and c and in the result: (S, B, 2H). ``clip`` limits c, before it is used.
    """
    acts = (_activation(recurrent_activation), _activation(cell_activation), _activation(activation))
    if direction != "bidirectional":
        outputs, h, c = _lstm_one_way(
            x, (initial_h, initial_c), (weight_ih, weight_hh, bias, peephole), acts, clip, backwards=direction == "reverse"
        )
        return _sequence(outputs, every_step=output_sequence), h, c
    assert weight_ih_back is not None and weight_hh_back is not None
    (h_forth, h_back), (c_forth, c_back) = initial_h.chunk(2, -1), initial_c.chunk(2, -1)
    forth, h, c = _lstm_one_way(x, (h_forth, c_forth), (weight_ih, weight_hh, bias, peephole), acts, clip, backwards=False)
    back, h_end, c_end = _lstm_one_way(
        x, (h_back, c_back), (weight_ih_back, weight_hh_back, bias_back, peephole_back), acts, clip, backwards=True
    )
    ends = torch.cat((h, h_end), -1), torch.cat((c, c_end), -1)
    if output_sequence:
        return torch.cat((torch.stack(forth), torch.stack(back[::-1])), -1), *ends
    return ends[0].unsqueeze(0), *ends


def _lstm_one_way(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    parameters: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    activations: tuple[Activation, Activation, Activation],
    clip: float | None,
    *,
    backwards: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The hidden state of every step in the order of computation, and the last h and c."""
    (h, c), (weight_ih, weight_hh, bias, peephole), (gate, cell, act) = state, parameters, activations
    peeps = None if peephole is None else peephole.chunk(3)
    outputs: list[Tensor] = []
    for step in _in_order(x, backwards=backwards):
        total = step @ weight_ih.T + h @ weight_hh.T
        i, f, o, z = (total if bias is None else total + bias).chunk(4, -1)
        if peeps is not None:
            i, f = i + peeps[0] * c, f + peeps[1] * c
        c = gate(f) * c + gate(i) * cell(z)
        if clip is not None:
            c = torch.clamp(c, -clip, clip)
        h = gate(o if peeps is None else o + peeps[2] * c) * act(c)
        outputs.append(h)
    return outputs, h, c
