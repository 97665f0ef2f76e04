"""What MIL cannot evaluate itself: slow loops written from the definition, torch's own modules, or coremltools' decompression."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

Evaluate = Callable[..., Any]
RNG = np.random.default_rng(3)


def normal(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


# -- convolution and pooling ---------------------------------------------------------------------------------------------------


def padding_of(pad_type: str, pad: list[int], extents: tuple[int, ...], kernel: list[int], strides: list[int]) -> list[tuple[int, int]]:
    """The table in the documentation of MIL's conv, one axis at a time."""
    result = []
    for axis, extent in enumerate(extents):
        total = max(0, (math.ceil(extent / strides[axis]) - 1) * strides[axis] + kernel[axis] - extent)
        result.append(
            {
                "valid": (0, 0),
                "custom": (pad[2 * axis], pad[2 * axis + 1]),
                "same": (total // 2, total - total // 2),
                "same_lower": (total - total // 2, total // 2),
            }[pad_type]
        )
    return result


def slow_conv(x: Any, w: Any, b: Any, *, strides: list[int], pads: list[tuple[int, int]], dilations: list[int], groups: int) -> Any:
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads])
    kernel = w.shape[2:]
    counts = [(padded.shape[a + 2] - (kernel[a] - 1) * dilations[a] - 1) // strides[a] + 1 for a in range(len(kernel))]
    out = np.zeros((x.shape[0], w.shape[0], *counts))
    out_per_group, in_per_group = w.shape[0] // groups, w.shape[1]
    for n, c, *place in np.ndindex(*out.shape):
        first = c // out_per_group * in_per_group
        for k, *tap in np.ndindex(in_per_group, *kernel):
            at = tuple(p * s + t * d for p, s, t, d in zip(place, strides, tap, dilations, strict=True))
            out[(n, c, *place)] += padded[(n, first + k, *at)] * w[(c, k, *tap)]
    return out + b.reshape(-1, *(1,) * len(kernel))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_conv_is_the_sum_over_its_window(evaluate: Evaluate, data: Any) -> None:
    rank = data.draw(st.sampled_from([1, 2, 2, 3]))
    groups = data.draw(st.sampled_from([1, 2]))
    extents = [data.draw(st.integers(3, 6)) for _ in range(rank)]
    kernel = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    strides = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    pad_type = data.draw(st.sampled_from(["valid", "custom", "same", "same_lower"]))
    dilations = [data.draw(st.integers(1, 2)) if extents[a] > 2 * (kernel[a] - 1) else 1 for a in range(rank)]
    pad = [data.draw(st.integers(0, 2)) for _ in range(2 * rank)]
    x, w, b = normal(2, 2 * groups, *extents), normal(2 * groups, 2, *kernel), normal(2 * groups)
    effective = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    reference = slow_conv(
        x, w, b, strides=strides, pads=padding_of(pad_type, pad, x.shape[2:], effective, strides), dilations=dilations, groups=groups
    )
    arguments = {
        "x": x,
        "weight": w,
        "bias": b,
        "strides": strides,
        "pad_type": pad_type,
        "pad": pad,
        "dilations": dilations,
        "groups": groups,
    }
    np.testing.assert_allclose(evaluate("conv", **arguments), reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("pad_type", ["valid", "custom"])
def test_conv_transpose_is_the_gradient_of_conv(evaluate: Evaluate, rank: int, pad_type: str) -> None:
    strides, dilations, pad = [2, 1, 3][:rank], [1, 2, 1][:rank], [1, 0, 0, 1, 1, 1][: 2 * rank]
    extents, kernel = [7, 8, 9][:rank], [3, 2, 3][:rank]
    image, weight = torch.randn(1, 4, *extents, requires_grad=True), torch.randn(6, 2, *kernel)
    padding = [0] * 2 * rank if pad_type == "valid" else [pad[2 * a + side] for a in reversed(range(rank)) for side in (0, 1)]
    convolve = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[rank - 1]
    forward = convolve(torch.nn.functional.pad(image, padding), weight, None, strides, 0, dilations, 2)
    seed = torch.randn_like(forward)
    (reference,) = torch.autograd.grad(forward, image, seed)
    arguments = {"x": seed.numpy(), "weight": weight.numpy(), "strides": strides, "dilations": dilations, "groups": 2, "pad_type": pad_type}
    actual = evaluate("conv_transpose", **arguments, pad=pad, output_shape=[1, 4, *extents])
    np.testing.assert_allclose(actual, reference.numpy(), rtol=1e-4, atol=1e-5)


def test_conv_transpose_same_multiplies_the_extent_by_the_stride(evaluate: Evaluate) -> None:
    actual = evaluate("conv_transpose", x=normal(1, 2, 5, 4), weight=normal(2, 3, 3, 4), strides=[2, 3], pad_type="same", bias=normal(3))
    assert actual.shape == (1, 3, 10, 12)


def slow_pool(x: Any, kind: str, *, kernel: list[int], strides: list[int], pads: list[tuple[int, int]], exclude: bool, ceil: bool) -> Any:
    """Every window by hand; where ceil_mode reaches past the padding nothing is there to count."""
    counts = []
    for axis, extent in enumerate(x.shape[2:]):
        span = extent + sum(pads[axis]) - kernel[axis]
        count = (math.ceil(span / strides[axis]) if ceil else span // strides[axis]) + 1
        if ceil and any(pads[axis]) and (count - 1) * strides[axis] >= extent + pads[axis][0]:
            count -= 1
        counts.append(count)
    out = np.zeros((*x.shape[:2], *counts))
    for n, c, *place in np.ndindex(*out.shape):
        inside, padded = [], 0
        for tap in np.ndindex(*kernel):
            at = [p * s + t - before for p, s, t, (before, _) in zip(place, strides, tap, pads, strict=True)]
            if all(0 <= i < e for i, e in zip(at, x.shape[2:], strict=True)):
                inside.append(float(x[(n, c, *at)]))
            elif all(-b <= i < e + a for i, e, (b, a) in zip(at, x.shape[2:], pads, strict=True)):
                padded += 1
        if kind == "max":
            out[(n, c, *place)] = max(inside)
        elif kind == "l2":
            out[(n, c, *place)] = math.sqrt(sum(v * v for v in inside))
        else:
            out[(n, c, *place)] = sum(inside) / (len(inside) + (0 if exclude else padded))
    return out


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pooling_folds_every_window(evaluate: Evaluate, data: Any) -> None:
    kind = data.draw(st.sampled_from(["max", "avg", "l2"]))
    rank = data.draw(st.integers(1, 2 if kind == "l2" else 3))
    kernel = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    strides = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    # A stride beyond the window can leave ceil_mode's last window empty, and an empty window has no value.
    ceil = rank < 3 and all(s <= k for s, k in zip(strides, kernel, strict=True)) and data.draw(st.booleans())
    pad_type = data.draw(st.sampled_from(["valid", "custom"] if ceil else ["valid", "custom", "same", "same_lower"]))
    sides = [data.draw(st.integers(0, k - 1)) for k in kernel]
    pad = [side for side in sides for _ in range(2)]
    exclude = kind == "avg" and data.draw(st.booleans())
    x = normal(1, 2, *(data.draw(st.integers(3, 6)) for _ in range(rank)))
    pads = padding_of(pad_type, pad, x.shape[2:], kernel, strides)
    reference = slow_pool(x, kind, kernel=kernel, strides=strides, pads=pads, exclude=exclude, ceil=ceil)
    options = {"exclude_padding_from_average": exclude} if kind == "avg" else {}
    arguments = {"kernel_sizes": kernel, "strides": strides, "pad_type": pad_type, "pad": pad, "ceil_mode": ceil}
    np.testing.assert_allclose(evaluate(f"{kind}_pool", x=x, **arguments, **options), reference, rtol=1e-5, atol=1e-6)


# -- normalisation -------------------------------------------------------------------------------------------------------------


def test_batch_norm_uses_the_given_statistics(evaluate: Evaluate) -> None:
    x, mean, variance, gamma, beta = normal(2, 3, 4, 5), normal(3), np.abs(normal(3)), normal(3), normal(3)
    shaped = [p.reshape(3, 1, 1) for p in (mean, variance, gamma, beta)]
    reference = (x - shaped[0]) / np.sqrt(shaped[1] + 1e-2) * shaped[2] + shaped[3]
    actual = evaluate("batch_norm", x=x, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=1e-2)
    np.testing.assert_allclose(actual, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spatial", [(7,), (4, 5)], ids=str)
def test_instance_norm_is_torchs(evaluate: Evaluate, spatial: tuple[int, ...]) -> None:
    x, gamma, beta = normal(2, 3, *spatial), normal(3), normal(3)
    reference = torch.nn.functional.instance_norm(
        torch.from_numpy(x), weight=torch.from_numpy(gamma), bias=torch.from_numpy(beta), eps=1e-3
    )
    actual = evaluate("instance_norm", x=x, gamma=gamma, beta=beta, epsilon=1e-3)
    np.testing.assert_allclose(actual, reference.numpy(), rtol=1e-4, atol=1e-5)


def test_local_response_norm_divides_by_the_neighbouring_channels(evaluate: Evaluate) -> None:
    x, size, alpha, beta, k = normal(1, 6, 2, 2), 3, 0.5, 0.75, 2.0
    reference = np.empty_like(x)
    for c in range(6):
        neighbours = x[:, max(0, c - size // 2) : c + size // 2 + 1]
        reference[:, c] = x[:, c] / (k + alpha / size * np.square(neighbours).sum(1)) ** beta
    np.testing.assert_allclose(evaluate("local_response_norm", x=x, size=size, alpha=alpha, beta=beta, k=k), reference, rtol=1e-5)


# -- recurrent -----------------------------------------------------------------------------------------------------------------


def test_lstm_is_torchs_in_both_directions(evaluate: Evaluate) -> None:
    module = torch.nn.LSTM(3, 4, bidirectional=True)
    x, h, c = torch.randn(5, 2, 3), torch.randn(2, 2, 4), torch.randn(2, 2, 4)
    with torch.no_grad():
        reference, (reference_h, reference_c) = module(x, (h, c))

    def reordered(name: str) -> Any:
        """torch keeps i f z o, MIL i f o z."""
        i, f, z, o = getattr(module, name).detach().chunk(4)
        return torch.cat((i, f, o, z)).numpy()

    def both(state: torch.Tensor) -> Any:
        return torch.cat((state[0], state[1]), -1).numpy()

    weights = {}
    for mil, torchs in (("", "_l0"), ("_back", "_l0_reverse")):
        weights[f"weight_ih{mil}"] = reordered(f"weight_ih{torchs}")
        weights[f"weight_hh{mil}"] = reordered(f"weight_hh{torchs}")
        weights[f"bias{mil}"] = reordered(f"bias_ih{torchs}") + reordered(f"bias_hh{torchs}")
    arguments = {"x": x.numpy(), "initial_h": both(h), "initial_c": both(c), "direction": "bidirectional", **weights}
    actual = evaluate("lstm", results=3, output_sequence=True, **arguments)
    for got, expected in zip(actual, (reference.numpy(), both(reference_h), both(reference_c)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    last = evaluate("lstm", results=3, **arguments)
    np.testing.assert_allclose(last[0][0], both(reference_h), rtol=1e-4, atol=1e-5)


def test_gru_with_reset_after_is_torchs(evaluate: Evaluate) -> None:
    module = torch.nn.GRU(3, 4)
    x, h = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    with torch.no_grad():
        reference, reference_h = module(x, h)

    def reordered(name: str) -> Any:
        """torch keeps r z o, MIL r o z."""
        r, z, o = getattr(module, name).detach().chunk(3)
        return torch.cat((r, o, z)).numpy()

    actual = evaluate(
        "gru", results=2, x=x.numpy(), initial_h=h[0].numpy(), weight_ih=reordered("weight_ih_l0"), weight_hh=reordered("weight_hh_l0"),
        input_bias=reordered("bias_ih_l0"), bias=reordered("bias_hh_l0"), reset_after=True, output_sequence=True,
    )  # fmt: skip
    np.testing.assert_allclose(actual[0], reference.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actual[1], reference_h[0].numpy(), rtol=1e-4, atol=1e-5)


def test_gru_resets_before_the_product_by_default(evaluate: Evaluate) -> None:
    x, h, w, r, b = normal(1, 1, 2), normal(1, 2), normal(6, 2), normal(6, 2), normal(6)
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    reset, update = (sigmoid(w[s] @ x[0, 0] + r[s] @ h[0] + b[s]) for s in (slice(0, 2), slice(4, 6)))
    new = np.tanh(w[2:4] @ x[0, 0] + r[2:4] @ (reset * h[0]) + b[2:4])
    actual = evaluate("gru", results=2, x=x, initial_h=h, weight_ih=w, weight_hh=r, bias=b)
    np.testing.assert_allclose(actual[1][0], (1 - update) * new + update * h[0], rtol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_rnn_is_torchs(evaluate: Evaluate, direction: str) -> None:
    module = torch.nn.RNN(3, 4, nonlinearity="relu")
    x, h = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    with torch.no_grad():
        reference, reference_h = module(x if direction == "forward" else x.flip(0), h)
    weights = {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}
    actual = evaluate(
        "rnn", results=2, x=x.numpy(), initial_h=h[0].numpy(), weight_ih=weights["weight_ih_l0"],
        weight_hh=weights["weight_hh_l0"], bias=weights["bias_ih_l0"] + weights["bias_hh_l0"],
        direction=direction, output_sequence=True, activation="relu",
    )  # fmt: skip
    np.testing.assert_allclose(actual[0], reference.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actual[1], reference_h[0].numpy(), rtol=1e-4, atol=1e-5)


# -- reading and writing by index ----------------------------------------------------------------------------------------------

FOLD: dict[str, Callable[[Any, Any], Any]] = {
    "update": lambda a, b: b,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": max,
    "min": min,
}


COUNTING = "CoreML6"  # the last opset whose negative indices count from the end


@pytest.mark.parametrize("mode", FOLD)
class TestScatter:
    def test_along_axis_folds_every_update_into_its_place(self, evaluate: Evaluate, mode: str) -> None:
        data, updates, indices = normal(3, 5, 2), normal(3, 2, 2), np.array([[[0, 4], [2, -1]]] * 3, np.int32)
        reference = data.astype(np.float64)
        for place in np.ndindex(*updates.shape):
            at = (place[0], indices[place], place[2])
            reference[at] = FOLD[mode](reference[at], float(updates[place]))
        actual = evaluate("scatter_along_axis", opset=COUNTING, data=data, indices=indices, updates=updates, axis=1, mode=mode)
        np.testing.assert_allclose(actual, reference, rtol=1e-5)

    def test_whole_slices_are_folded(self, evaluate: Evaluate, mode: str) -> None:
        data, updates, indices = normal(3, 5, 2), normal(3, 2, 2), np.array([4, 1], np.int32)
        reference = data.astype(np.float64)
        for place in np.ndindex(*updates.shape):
            at = (place[0], indices[place[1]], place[2])
            reference[at] = FOLD[mode](reference[at], float(updates[place]))
        actual = evaluate("scatter", data=data, indices=indices, updates=updates, axis=1, mode=mode)
        np.testing.assert_allclose(actual, reference, rtol=1e-5)

    def test_nd_indices_name_slices(self, evaluate: Evaluate, mode: str) -> None:
        data, updates, indices = (
            normal(3, 5, 2),
            normal(4, 2),
            np.array([[0, 1], [2, 4], [1, 0], [0, 1]][: 3 if mode == "update" else 4], np.int32),
        )
        updates = updates[: len(indices)]
        reference = data.astype(np.float64)
        for row, (i, j) in enumerate(indices):
            for k in range(2):
                reference[i, j, k] = FOLD[mode](reference[i, j, k], float(updates[row, k]))
        actual = evaluate("scatter_nd", data=data, indices=indices, updates=updates, mode=mode)
        np.testing.assert_allclose(actual, reference, rtol=1e-5)


@pytest.mark.parametrize("batch_dims", [0, 1, 2])
def test_gather_nd_reads_the_slice_of_every_index(evaluate: Evaluate, batch_dims: int) -> None:
    x = normal(2, 3, 4, 5)
    depth, lead = 2, x.shape[:batch_dims]
    indices = np.stack([RNG.integers(-e, e, (*lead, 6)) for e in x.shape[batch_dims : batch_dims + depth]], -1).astype(np.int32)
    reference = np.stack([x[(*place[:-1], *indices[place])] for place in np.ndindex(*lead, 6)]).reshape(
        *lead, 6, *x.shape[batch_dims + depth :]
    )
    np.testing.assert_allclose(evaluate("gather_nd", opset=COUNTING, x=x, indices=indices, batch_dims=batch_dims), reference, rtol=1e-6)
    from_zero = np.where(indices < 0, indices + x.shape[batch_dims : batch_dims + depth], indices).astype(np.int32)
    np.testing.assert_allclose(evaluate("gather_nd", x=x, indices=from_zero, batch_dims=batch_dims), reference, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot_marks_the_index_and_nothing_for_one_outside(evaluate: Evaluate, axis: int) -> None:
    indices = np.array([[0, 3, 1], [2, -1, 9]], np.int32)
    actual = evaluate("one_hot", indices=indices, one_hot_vector_size=4, axis=axis, on_value=2.5, off_value=-1.0)
    along = np.moveaxis(actual, axis, -1)
    for place in np.ndindex(*indices.shape):
        np.testing.assert_array_equal(along[place], [2.5 if k == indices[place] else -1.0 for k in range(4)])


def test_an_index_outside_the_axis_is_an_error(evaluate: Evaluate) -> None:
    from coreflow.models.errors import UnsupportedError

    with pytest.raises(UnsupportedError, match="gather 'op' cannot be executed"):
        evaluate("gather", x=normal(3, 2), indices=np.array([3], np.int32))


# -- moving values -------------------------------------------------------------------------------------------------------------


def test_interleaved_values_take_turns(evaluate: Evaluate) -> None:
    first, second = np.array([[1, 2], [3, 4], [5, 6]], np.float32), np.array([[7, 8], [9, 10], [11, 12]], np.float32)
    actual = evaluate("concat", values=[first, second], axis=0, interleave=True)
    assert actual.tolist() == [[1, 2], [7, 8], [3, 4], [9, 10], [5, 6], [11, 12]]


def test_exclusive_sums_leave_the_element_out(evaluate: Evaluate) -> None:
    x = np.array([[1, 2, 3, 4]], np.float32)
    assert evaluate("cumsum", x=x, axis=1, exclusive=True).tolist() == [[0, 1, 3, 6]]
    assert evaluate("cumsum", x=x, axis=1, exclusive=True, reverse=True).tolist() == [[9, 7, 4, 0]]


def test_reverse_sequence_reverses_the_head_of_every_row(evaluate: Evaluate) -> None:
    x, lengths = normal(3, 5, 2), np.array([0, 3, 5], np.int32)
    reference = np.stack([np.concatenate((row[:n][::-1], row[n:])) for row, n in zip(x, lengths, strict=True)])
    np.testing.assert_allclose(evaluate("reverse_sequence", x=x, lengths=lengths, seq_axis=1, batch_axis=0), reference)


def test_sliding_windows_lie_behind_the_axis(evaluate: Evaluate) -> None:
    x = normal(2, 7, 3)
    reference = np.stack([x[:, start : start + 3] for start in range(0, 5, 2)], 1)
    np.testing.assert_allclose(evaluate("sliding_windows", x=x, axis=1, size=3, stride=2), reference)


def test_space_and_depth_trade_places_as_documented(evaluate: Evaluate) -> None:
    x = normal(1, 3, 4, 6)
    deep = evaluate("space_to_depth", x=x, block_size=2)
    for block, c, h, w in itertools.product(range(4), range(3), range(2), range(3)):
        assert deep[0, block * 3 + c, h, w] == pytest.approx(x[0, c, 2 * h + block // 2, 2 * w + block % 2])
    np.testing.assert_allclose(evaluate("depth_to_space", x=deep.astype(np.float32), block_size=2), x)


def test_pixel_shuffle_and_its_inverse(evaluate: Evaluate) -> None:
    x = normal(1, 12, 2, 3)
    shuffled = evaluate("pixel_shuffle", x=x, upscale_factor=2)
    for c, i, j, h, w in itertools.product(range(3), range(2), range(2), range(2), range(3)):
        assert shuffled[0, c, 2 * h + i, 2 * w + j] == pytest.approx(x[0, 4 * c + 2 * i + j, h, w])
    np.testing.assert_allclose(evaluate("pixel_unshuffle", x=shuffled.astype(np.float32), downscale_factor=2), x)


def test_space_to_batch_puts_the_places_of_a_block_into_the_batch(evaluate: Evaluate) -> None:
    x, paddings = normal(2, 3, 3, 4), np.array([[1, 0], [2, 0]], np.int32)
    actual = evaluate("space_to_batch", x=x, block_shape=[2, 3], paddings=paddings)
    padded = np.pad(x, [(0, 0), (0, 0), (1, 0), (2, 0)])
    for i, j, n in itertools.product(range(2), range(3), range(2)):
        np.testing.assert_allclose(actual[(i * 3 + j) * 2 + n], padded[n, :, i::2, j::3])
    back = evaluate("batch_to_space", x=actual.astype(np.float32), block_shape=[2, 3], crops=paddings)
    np.testing.assert_allclose(back, x)


def test_reshape_like_takes_its_shape_from_others(evaluate: Evaluate) -> None:
    x = normal(2, 3, 4)
    references = [normal(6, 5), normal(2, 2, 9)]
    arguments: dict[str, list[Any]] = {
        "begins": [np.int32(0), np.int32(0)],
        "ends": [np.int32(1), np.int32(2)],
        "end_masks": [np.bool_(False), np.bool_(False)],
    }
    scalars = {name: [np.array(v) for v in values] for name, values in arguments.items()}
    assert evaluate("reshape_like", x=x, ref_tensors=references, **scalars).shape == (6, 2, 2)


def test_zeros_in_a_shape_count_from_the_end_since_ios17_only(evaluate: Evaluate) -> None:
    x = normal(2, 3, 4)
    assert evaluate("reshape", x=x, shape=[0, 3, 4], opset="CoreML5").shape == (2, 3, 4)
    assert evaluate("reshape", x=x, shape=[1, 2, 0, 0], opset="CoreML7").shape == (1, 2, 3, 4)
