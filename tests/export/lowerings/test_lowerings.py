"""Every lowering computes what torch does, through both front ends: floats to 1e-6 in float64, whole numbers exactly."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


def whole(*shape: int, low: int = -9, high: int = 9) -> Any:
    return RANDOM.integers(low, high + 1, shape, dtype=np.int32)


# x / y of these is 1, inf, -inf, NaN, ...: inputs have to be finite.
ODD = np.array([[1, 1, -2, 0], [0, -2.5, 3.4e38, 0]], np.float32), np.array([[1, 0, 0, 0], [3, 1, 1, 0]], np.float32)

CASES: dict[str, tuple[Any, Sequence[Sequence[Any]]]] = {
    "new tensors": (
        lambda x, i: (
            x + x.new_ones(3) + x.new_zeros(()) + x.new_full((2, 1), 0.5),
            i + i.new_ones(4) - i.new_full((1,), 7),
            (x > 0).new_ones(2, 3) & (x > 0),
            (x > 0).new_full((2, 3), 0.25, dtype=torch.float32) * x,
            i.new_zeros((2, 3), dtype=torch.float32) + x,
            x.new_ones(x.shape[0], 3, dtype=torch.bool) ^ (x > 0),
        ),
        [(floats(2, 3), whole(4))],
    ),
    "and, or, xor": (
        lambda x, y: (
            (x > 0) & (y > 0),
            (x > 0) | (y > 0),
            (x > 0) ^ (y > 0),
            torch.bitwise_or(x > 0, y[:1] > 0),
            (x > 0).clone().__ior__(y > 0),
            (x > 0).clone().__iand__(y > 0),
            (x > 0).clone().__ixor__(y > 0),
        ),
        [(floats(3, 4), floats(3, 4))],
    ),
    "finite, infinite, no number": (
        lambda x, y, i: (
            *(test(x / y) for test in (torch.isfinite, torch.isinf, torch.isnan, torch.isposinf, torch.isneginf)),
            *(test(i) for test in (torch.isfinite, torch.isinf, torch.isnan, torch.isposinf, torch.isneginf)),
        ),
        [(*ODD, whole(3))],
    ),
    "roll": (
        lambda x, i, v: (
            x.roll(1), x.roll(-2, 1), x.roll((1, -1), (0, -1)), x.roll(7, -1), x.roll(0, 0), x.roll((2, 3), (1, 1)),
            i.roll(2, 0), (x > 0).roll(1, 1), v.roll(-1, -1),
        ),
        [(floats(2, 3, 4), whole(3, 2), floats(5))],
    ),
    "diff": (
        lambda x, i, v: (
            x.diff(), x.diff(n=2, dim=0), x.diff(dim=-2), x.diff(n=0), i.diff(dim=0), (x > 0).diff(dim=1),
            x.diff(prepend=x[..., :1], append=x[..., -2:]), v.diff(), i.diff(prepend=i.new_zeros(3, 1)),
        ),
        [(floats(4, 3, 5), whole(3, 4), floats(6))],
    ),
    "unsafe_chunk": (
        lambda x: (*x.unsafe_chunk(3), *x.unsafe_chunk(2, -1), *x.unsafe_chunk(1), *x.unsafe_chunk(9, 1)),
        [(floats(6, 5),)],
    ),
    "bicubic": (
        lambda x: (
            *(functional.interpolate(x, size, mode="bicubic", align_corners=True) for size in ((7, 3), (1, 10), (4, 5))),
            *(functional.interpolate(x, size, mode="bicubic", align_corners=False) for size in ((7, 3), (1, 10), (4, 5))),
            functional.interpolate(x, scale_factor=(1.7, 2.0), mode="bicubic"),
            functional.interpolate(x, scale_factor=0.6, mode="bicubic", align_corners=True),
            functional.interpolate(x, scale_factor=1.7, mode="bicubic", recompute_scale_factor=True),
            functional.interpolate(x, (2, 3), mode="bicubic", antialias=True),
            functional.interpolate(x, scale_factor=0.6, mode="bicubic", antialias=True),
        ),
        [(floats(2, 3, 4, 5),)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("front_end", ["trace", "export"])
@pytest.mark.parametrize("name", CASES)
def test_a_lowering_computes_what_torch_does(name: str, front_end: str, equals_torch: Any) -> None:
    function, samples = CASES[name]
    equals_torch(function, front_end, *samples)
