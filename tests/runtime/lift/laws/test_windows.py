"""Laws of products, convolutions and pools: every padding, stride, dilation, group and number of axes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view

if TYPE_CHECKING:
    from tests.runtime.lift.laws.conftest import Draw, Law

Arguments = dict[str, Any]
Pads = list[tuple[int, int]]


def linear(draw: "Draw") -> Arguments:
    make = draw.one((draw.floats, draw.floats, draw.ints))
    x, out = draw.shape(1, 5), draw.whole(1, 4)
    return {"x": make(*x), "weight": make(out, x[-1]), "bias": draw.one([None, make(out)])}


def matmul(draw: "Draw") -> Arguments:
    """A vector x goes with a matrix y only: of a batch of them MIL drops the first axis, where its documentation drops the row."""
    rows, inner, columns = draw.wholes(3, 1, 4)
    first, second = (shape[-3:] for shape in draw.broadcastable(2))
    flip_x, flip_y = draw.flag(), draw.flag()
    x = [*first, inner, rows] if flip_x else [*first, rows, inner]
    if not flip_x and draw.whole(0, 4) == 0:
        x, second = [inner], []
    make = draw.one((draw.floats, draw.floats, draw.ints))
    y = make(*second, *((columns, inner) if flip_y else (inner, columns)))
    return {"x": make(*x), "y": y, "transpose_x": draw.one([None, False]) if not flip_x else True, "transpose_y": flip_y}


def einsum(draw: "Draw") -> Arguments:
    """The two equations that MIL has, in any letters; B and H may be 1 on one side."""
    B, C, H, inner, out = draw.wholes(5, 1, 4)
    b, c, h, i, o = draw.perm(26)[:5]
    letters = [chr(ord("a") + k) for k in (b, c, h, i, o)]
    batched = draw.flag()
    one_sided = [draw.one([(extent, extent), (1, extent), (extent, 1)]) for extent in (B, H)]
    x, y = ([one_sided[0][side]] * batched + own for side, own in ((0, [C, one_sided[1][0], inner]), (1, [inner, one_sided[1][1], out])))
    terms = ["bchi", "biho", "bcho"]
    names = dict(zip("bchio", letters, strict=True))
    first, second, result = ("".join(names[k] for k in term if batched or k != "b") for term in terms)
    return {"values": [draw.floats(*x), draw.floats(*y)], "equation": f"{first},{second}->{result}"}


def attention(draw: "Draw") -> Arguments:
    batch = draw.shape(1, 3)
    L, S, E, V = draw.wholes(4, 1, 4)
    mask = draw.one([None, draw.floats(L, S), draw.floats(*batch, L, S), np.tril(np.ones((L, S), bool))])
    return {
        "query": draw.floats(*batch, L, E),
        "key": draw.floats(*batch, S, E),
        "value": draw.floats(*batch, S, V),
        "attn_mask": mask,
        "opset": "CoreML8",
    }


def same_padding(extents: Any, kernel: Any, strides: Any, *, lower: bool = False) -> Pads:
    """An output of ceil(extent / stride); an odd element goes after, or before."""
    result = []
    for extent, size, stride in zip(extents, kernel, strides, strict=True):
        total = max(0, (-(-extent // stride) - 1) * stride + size - extent)
        result.append((total - total // 2, total // 2) if lower else (total // 2, total - total // 2))
    return result


def padding(pad_type: str, pad: Any, extents: Any, kernel: Any, strides: Any) -> Pads:
    if pad_type == "custom":
        return list(zip(pad[::2], pad[1::2], strict=True))
    if pad_type == "valid":
        return [(0, 0)] * len(kernel)
    return same_padding(extents, kernel, strides, lower=pad_type == "same_lower")


def reach(kernel: Any, dilations: Any) -> list[int]:
    return [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]


def conv(draw: "Draw") -> Arguments:
    rank, groups = draw.whole(1, 3), draw.whole(1, 3)
    kernel, strides, dilations = draw.wholes(rank, 1, 3), draw.wholes(rank, 1, 3), draw.wholes(rank, 1, 2)
    extents = [size + draw.whole(0, 4) for size in reach(kernel, dilations)]
    opset = draw.since("CoreML5")
    pad_type = draw.one(["valid", "custom", "same"] + ["same_lower"] * (opset > "CoreML5"))
    C_in, C_out = groups * draw.whole(1, 2), groups * draw.whole(1, 2)
    return {
        "x": draw.floats(draw.whole(1, 2), C_in, *extents),
        "weight": draw.floats(C_out, C_in // groups, *kernel),
        "bias": draw.one([None, draw.floats(C_out)]),
        "strides": strides,
        "dilations": dilations,
        "groups": groups,
        "pad_type": pad_type,
        "pad": draw.wholes(2 * rank, 0, 2) if pad_type == "custom" else None,
        "opset": opset,
    }


def windows_of(x: Any, sizes: Sequence[int]) -> Any:
    """Every window of these sizes over the spatial axes of x (B, C, ...), in axes of its own at the end."""
    return sliding_window_view(x, sizes, tuple(range(2, x.ndim)))  # type: ignore[call-overload]  # numpy's stubs know a single axis only


def convolved(x: Any, weight: Any, strides: Any, dilations: Any, groups: int, pad_type: str, bias: Any = None, pad: Any = None) -> Any:
    """All windows at once, cut out by numpy."""
    rank = x.ndim - 2
    sizes = reach(weight.shape[2:], dilations)
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *padding(pad_type, pad, x.shape[2:], sizes, strides)])
    windows = windows_of(padded, sizes)
    windows = windows[(..., *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))]
    shared = windows.reshape(len(x), groups, -1, *windows.shape[2:])
    own = weight.reshape(groups, -1, *weight.shape[1:]).astype(np.float64)
    out, tap = "xyz"[:rank], "uvw"[:rank]
    result = np.einsum(f"bgi{out}{tap},goi{tap}->bgo{out}", shared, own).reshape(len(x), len(weight), *windows.shape[2 : 2 + rank])
    return result if bias is None else result + bias.reshape(-1, *(1,) * rank)


def conv_transpose(draw: "Draw") -> Arguments:
    """The image of the convolution is drawn first; what is transposed has the shape of its result."""
    rank, groups = draw.whole(1, 3), draw.whole(1, 2)
    kernel, strides, dilations = draw.wholes(rank, 1, 3), draw.wholes(rank, 1, 3), draw.wholes(rank, 1, 2)
    sizes = reach(kernel, dilations)
    image = [size + draw.whole(0, 4) for size in sizes]
    pad_type = draw.one(["valid", "custom", "same"])
    pad = [draw.whole(0, (size - 1) // 2) for size in sizes for _ in range(2)]
    around = padding(pad_type, pad, image, sizes, strides)
    extents = [(e + sum(p) - k) // s + 1 for e, p, k, s in zip(image, around, sizes, strides, strict=True)]
    C_in, C_out, B = groups * draw.whole(1, 2), groups * draw.whole(1, 2), draw.whole(1, 2)
    fixed = [s * n if pad_type == "same" else s * (n - 1) + k - sum(p) for s, n, k, p in zip(strides, extents, sizes, around, strict=True)]
    return {
        "x": draw.floats(B, C_in, *extents),
        "weight": draw.floats(C_in, C_out // groups, *kernel),
        "bias": draw.one([None, draw.floats(C_out)]),
        "strides": strides,
        "dilations": dilations,
        "groups": groups,
        "pad_type": pad_type,
        "pad": pad if pad_type == "custom" else None,
        "output_shape": None if fixed == image and draw.flag() else [B, C_out, *image],
    }


def gradient_of_conv(
    x: Any,
    weight: Any,
    strides: Any,
    dilations: Any,
    groups: int,
    pad_type: str,
    bias: Any = None,
    pad: Any = None,
    output_shape: Any = None,
) -> Any:
    """What torch's autograd says of a convolution whose result is x; of ``same`` without a shape, the image is stride times x."""
    rank = x.ndim - 2
    sizes = reach(weight.shape[2:], dilations)
    if output_shape is None and pad_type == "same":
        image = [s * n for s, n in zip(strides, x.shape[2:], strict=True)]
    elif output_shape is None:
        around = padding(pad_type, pad, (), sizes, strides)
        image = [s * (n - 1) + k - sum(p) for s, n, k, p in zip(strides, x.shape[2:], sizes, around, strict=True)]
    else:
        image = output_shape[2:]
    before = torch.zeros(len(x), weight.shape[1] * groups, *image, dtype=torch.float64, requires_grad=True)
    around = padding(pad_type, pad, image, sizes, strides)
    padded = F.pad(before, [amount for pair in reversed(around) for amount in pair])
    after = (F.conv1d, F.conv2d, F.conv3d)[rank - 1](padded, torch.from_numpy(weight).double(), None, strides, 0, dilations, groups)
    (result,) = torch.autograd.grad(after, before, torch.from_numpy(x).double())
    return result.numpy() if bias is None else result.numpy() + bias.reshape(-1, *(1,) * rank)


def pool(draw: "Draw", *, most: int = 3, average: bool = False) -> Arguments:
    """In ceil_mode no stride is beyond its window: the last window could be empty, and has no value then."""
    rank = draw.whole(1, most)
    kernel = draw.wholes(rank, 1, 3)
    opset = draw.since("CoreML5")
    ceil = rank < 3 and draw.flag()
    strides = [draw.whole(1, size if ceil else 3) for size in kernel]
    pad_type = draw.one(["valid", "custom"] + ([] if ceil else ["same"] + ["same_lower"] * (opset > "CoreML5")))
    sides = [draw.whole(0, size - 1) for size in kernel]
    pad = [side if ceil else draw.whole(0, side) for side in sides for _ in range(2)]
    extents = [size + draw.whole(0, 4) for size in kernel]
    return {
        "x": draw.floats(*draw.wholes(2, 1, 2), *extents),
        "kernel_sizes": kernel,
        "strides": draw.one([strides, strides if ceil else None]),
        "pad_type": pad_type,
        "pad": pad if pad_type == "custom" else None,
        "ceil_mode": ceil if ceil or draw.flag() else None,
        "exclude_padding_from_average": draw.one([None, False, True]) if average else None,
        "opset": opset,
    }


def pooled(fold: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """``fold(windows, axes)`` over windows in which what counts for nothing is NaN."""

    def oracle(
        x: Any, kernel_sizes: Any, pad_type: str, strides: Any = None, pad: Any = None, ceil_mode: bool = False, fill: float = np.nan
    ) -> Any:
        rank, padded, strides = x.ndim - 2, x.astype(np.float64), strides or [1] * (x.ndim - 2)
        for axis, (before, after) in enumerate(padding(pad_type, pad, x.shape[2:], kernel_sizes, strides)):
            extent, size, stride = x.shape[axis + 2], kernel_sizes[axis], strides[axis]
            around = [(0, 0)] * x.ndim
            around[axis + 2] = (before, after)
            padded = np.pad(padded, around, constant_values=fill)
            span = extent + before + after - size
            count = (span + stride - 1 if ceil_mode else span) // stride + 1
            if ceil_mode and before + after and (count - 1) * stride >= extent + before:
                count -= 1
            around[axis + 2] = (0, max(0, (count - 1) * stride + size - padded.shape[axis + 2]))
            padded = np.pad(padded, around, constant_values=np.nan)
            padded = np.take(padded, range((count - 1) * stride + size), axis + 2)
        windows = windows_of(padded, kernel_sizes)
        return fold(windows[(..., *(slice(None, None, s) for s in strides), *[slice(None)] * rank)], tuple(range(-rank, 0)))

    return oracle


def averaged(exclude_padding_from_average: bool = False, **options: Any) -> Any:
    return pooled(np.nanmean)(**options, fill=np.nan if exclude_padding_from_average else 0.0)


LAWS: dict[str, tuple[Callable[["Draw"], Arguments], Callable[..., Any] | None]] = {
    "linear": (linear, None),
    "matmul": (matmul, None),
    "einsum": (einsum, None),
    "scaled_dot_product_attention": (attention, None),
    "conv": (conv, convolved),
    "conv_transpose": (conv_transpose, gradient_of_conv),
    "max_pool": (pool, pooled(np.nanmax)),
    "avg_pool": (lambda draw: pool(draw, average=True), averaged),
    "l2_pool": (lambda draw: pool(draw, most=2), pooled(lambda windows, axes: np.sqrt(np.nansum(windows**2, axes)))),
}


@pytest.mark.parametrize("op", LAWS)
def test_results_are_those_that_mil_infers_and_a_window_says(law: "Law", op: str) -> None:
    law.agrees_with_mil(op, *LAWS[op])


@pytest.mark.parametrize("op", LAWS)
def test_fp16_is_rounded_once(law: "Law", op: str) -> None:
    law.rounds_to_fp16(op, LAWS[op][0])
