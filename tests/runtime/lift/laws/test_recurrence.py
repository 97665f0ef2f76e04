"""Laws of recurrent layers: one gate, one step, one element of the batch at a time."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import special

if TYPE_CHECKING:
    from tests.runtime.lift.laws.conftest import Draw, Law

Arguments = dict[str, Any]
Matrix = Any

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "tanh": np.tanh,
    "sigmoid": special.expit,
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
    "sigmoid_hard": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
}


def layer(draw: "Draw", gates: int, *, sides: int = 1) -> tuple[Arguments, int, int]:
    """x, initial_h and the weights of a layer with so many gates; the widths of input and state."""
    S, B, width, H = draw.wholes(4, 1, 3)
    arguments = {
        "x": draw.floats(S, B, width, low=-2, high=2),
        "initial_h": draw.floats(B, sides * H, low=-1, high=1),
        "weight_ih": draw.floats(gates * H, width, low=-1, high=1),
        "weight_hh": draw.floats(gates * H, H, low=-1, high=1),
        "bias": draw.one([None, draw.floats(gates * H, low=-1, high=1)]),
        "direction": draw.one([None, "forward", "reverse"]),
        "output_sequence": draw.one([None, False, True]),
    }
    return arguments, width, H


def rnn(draw: "Draw") -> Arguments:
    arguments, *_ = layer(draw, 1)
    return {**arguments, "activation": draw.one([None, "tanh", "sigmoid", "relu", "linear"])}


def gru(draw: "Draw") -> Arguments:
    arguments, _, H = layer(draw, 3)
    opset = draw.since("CoreML5")
    newer = {"reset_after": draw.one([None, False, True]), "input_bias": draw.one([None, draw.floats(3 * H)])} if opset == "CoreML8" else {}
    inner = {"recurrent_activation": draw.one([None, "sigmoid", "tanh"]), "activation": draw.one([None, "tanh", "sigmoid", "relu"])}
    return {**arguments, **newer, **inner, "opset": opset}


def lstm(draw: "Draw") -> Arguments:
    both = draw.flag()
    arguments, width, H = layer(draw, 4, sides=1 + both)
    arguments["initial_c"] = draw.floats(*arguments["initial_h"].shape, low=-1, high=1)
    arguments["peephole"] = draw.one([None, draw.floats(3 * H, low=-1, high=1)])
    if both:
        shapes = {"weight_ih": (4 * H, width), "weight_hh": (4 * H, H), "bias": (4 * H,), "peephole": (3 * H,)}
        own = {f"{name}_back": draw.floats(*s, low=-1, high=1) for name, s in shapes.items() if arguments[name] is not None}
        arguments = {**arguments, **own, "direction": "bidirectional"}
    inner = {name: draw.one([None, "sigmoid", "tanh"]) for name in ("recurrent_activation", "cell_activation", "activation")}
    return {**arguments, **inner, "clip": draw.one([None, 0.3])}


def stepped(x: Matrix, direction: str, output_sequence: bool, step: Callable[[Any, int], Any]) -> Any:
    """``step(input, batch element)`` along the sequence; its results (1 or S, B, H) in the order of computation."""
    order = range(len(x))[:: -1 if direction == "reverse" else 1]
    rows = [np.stack([step(x[t, b].astype(np.float64), b) for b in range(x.shape[1])]) for t in order]
    return np.stack(rows if output_sequence else rows[-1:])


def rnn_by_steps(
    x: Matrix, initial_h: Matrix, weight_ih: Matrix, weight_hh: Matrix, bias: Any = 0, direction: str = "forward",
    output_sequence: bool = False, activation: str = "tanh",
) -> Any:  # fmt: skip
    h = list(initial_h.astype(np.float64))

    def step(own: Any, b: int) -> Any:
        h[b] = ACTIVATIONS[activation](weight_ih @ own + weight_hh @ h[b] + bias)
        return h[b]

    return stepped(x, direction, output_sequence, step), np.stack(h)


def gru_by_steps(
    x: Matrix, initial_h: Matrix, weight_ih: Matrix, weight_hh: Matrix, bias: Any = 0, direction: str = "forward",
    output_sequence: bool = False, recurrent_activation: str = "sigmoid", activation: str = "tanh", reset_after: bool = False,
    input_bias: Any = 0,
) -> Any:  # fmt: skip
    h = list(initial_h.astype(np.float64))
    gate, act = ACTIVATIONS[recurrent_activation], ACTIVATIONS[activation]
    R, O, Z = np.split(weight_hh.astype(np.float64), 3)  # noqa: E741
    r_bias, o_bias, z_bias = np.split(bias + np.zeros(len(weight_hh)), 3)

    def step(own: Any, b: int) -> Any:
        r_in, o_in, z_in = np.split(weight_ih @ own + input_bias, 3)
        r, z = gate(r_in + R @ h[b] + r_bias), gate(z_in + Z @ h[b] + z_bias)
        inner = r * (O @ h[b] + o_bias) if reset_after else O @ (r * h[b]) + o_bias
        h[b] = (1 - z) * act(o_in + inner) + z * h[b]
        return h[b]

    return stepped(x, direction, output_sequence, step), np.stack(h)


def lstm_by_steps(
    x: Matrix, initial_h: Matrix, initial_c: Matrix, weight_ih: Matrix, weight_hh: Matrix, bias: Any = 0, peephole: Any = None,
    direction: str = "forward", output_sequence: bool = False, recurrent_activation: str = "sigmoid", cell_activation: str = "tanh",
    activation: str = "tanh", clip: float = np.inf, **back: Any,
) -> Any:  # fmt: skip
    names = {"recurrent_activation": recurrent_activation, "cell_activation": cell_activation, "activation": activation}
    if direction == "bidirectional":
        own: Arguments = {name.removesuffix("_back"): value for name, value in back.items()}
        (h_forth, h_back), (c_forth, c_back) = np.split(initial_h, 2, -1), np.split(initial_c, 2, -1)
        shared: Arguments = {**names, "clip": clip, "output_sequence": True}
        forth = lstm_by_steps(x, h_forth, c_forth, weight_ih, weight_hh, bias, peephole, "forward", **shared)
        other = lstm_by_steps(x, h_back, c_back, direction="reverse", **own, **shared)
        ends = [np.concatenate(pair, -1) for pair in zip(forth[1:], other[1:], strict=True)]
        every = np.concatenate((forth[0], other[0][::-1]), -1)  # side by side for the same element of the sequence
        return every if output_sequence else ends[0][None], *ends
    gate, cell, act = (ACTIVATIONS[name] for name in names.values())
    h, c = list(initial_h.astype(np.float64)), list(initial_c.astype(np.float64))
    to_i, to_f, to_o = np.split(np.zeros(3 * initial_h.shape[1]) if peephole is None else peephole, 3)

    def step(own: Any, b: int) -> Any:
        i, f, o, z = np.split(weight_ih @ own + weight_hh @ h[b] + bias, 4)
        c[b] = np.clip(gate(f + to_f * c[b]) * c[b] + gate(i + to_i * c[b]) * cell(z), -clip, clip)
        h[b] = gate(o + to_o * c[b]) * act(c[b])
        return h[b]

    return stepped(x, direction, output_sequence, step), np.stack(h), np.stack(c)


LAWS: dict[str, tuple[Callable[["Draw"], Arguments], Callable[..., Any]]] = {
    "rnn": (rnn, rnn_by_steps),
    "gru": (gru, gru_by_steps),
    "lstm": (lstm, lstm_by_steps),
}


@pytest.mark.parametrize("op", LAWS)
def test_results_are_those_of_single_steps_in_the_shape_that_mil_infers(law: "Law", op: str) -> None:
    law.agrees_with_mil(op, *LAWS[op])


@pytest.mark.parametrize("op", LAWS)
def test_fp16_is_rounded_once(law: "Law", op: str) -> None:
    law.rounds_to_fp16(op, LAWS[op][0])
