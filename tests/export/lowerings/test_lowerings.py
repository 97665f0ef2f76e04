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

HANN = torch.hann_window(16)

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
    "lerp, addcmul, addcdiv": (
        lambda x, y, z, i: (
            x.lerp(y, 0.25), x.lerp(y, z), torch.addcmul(x, y, z), torch.addcmul(x, y, z[:1], value=-0.5), torch.addcmul(i, i, i, value=3),
            torch.addcdiv(x, y, z.abs() + 1), torch.addcdiv(x[:, :1], y, z.abs() + 1, value=2), x.clone().lerp_(y, 0.5),
        ),
        [(floats(2, 3), floats(2, 3), floats(2, 3), whole(4))],
    ),
    "heaviside, hypot, logaddexp, outer": (
        lambda x, y, i, v: (
            torch.heaviside(torch.trunc(x), y), torch.heaviside(i, i + 1), torch.heaviside(torch.trunc(x), y[0, 0]),
            torch.hypot(x, y), torch.hypot(x * 0, y * 0), torch.logaddexp(x * 9, y[:1]), torch.outer(v, v * 2), torch.outer(i[0], i[1]),
        ),
        [(floats(3, 4), floats(3, 4), whole(2, 5), floats(6))],
    ),
    "trunc, fmod, sgn": (
        lambda x, y, i: (
            x.trunc(), (x * 5).fix(), i.sgn(), x.sgn(), torch.fmod(x * 5, y), torch.fmod(x * 5, 0.75), torch.fmod(i, 4), (i * 1.0).fmod(-2),
        ),
        [(floats(3, 4), floats(3, 4), whole(9))],
    ),
    "nan_to_num": (
        lambda x, y, i: (
            torch.nan_to_num(x / y, nan=0.5, posinf=3, neginf=-4), torch.nan_to_num(x / y, 1.0, 1e4, -1e4).sum(-1), torch.nan_to_num(i),
        ),
        [(*ODD, whole(3))],
    ),
    "index_add, index_copy, index_fill": (
        lambda x, i, s, t, v: (
            x.index_add(0, i, s), x.index_add(-2, i, s, alpha=-0.5), x.index_copy(1, torch.tensor([3, 0]), t), v.index_add(0, i, s[:, 0]),
            x.index_fill(1, torch.tensor([2, 0]), 0.5), (x > 0).index_fill(-1, torch.tensor([1]), 1), x.clone().index_add_(0, i, s) + x,
            (x * 4).int().index_add(0, i, (s * 4).int()), (x > 0).index_copy(1, torch.tensor([1, 2]), t > 0),
            v.index_add(0, i[0], s[0, :1]),
        ),
        [(floats(5, 4), np.array([1, 1, 4, 0], np.int32), floats(4, 4), floats(5, 2), floats(5))],
    ),
    "scatter_reduce": (
        lambda x, s, i: (
            *(
                x.scatter_reduce(0, i.long(), s, how, include_self=own)
                for how in ("sum", "prod", "mean", "amax", "amin") for own in (True, False)
            ),
            *(
                (x * 9).int().scatter_reduce(-1, i.long(), (s * 9).int(), how, include_self=own)
                for how in ("sum", "prod", "mean", "amax", "amin") for own in (True, False)
            ),
        ),
        [(floats(4, 5), floats(3, 6), whole(2, 4, low=0, high=3))],
    ),
    "take_along_dim": (
        lambda x, i, v: (
            torch.take_along_dim(x, i.long(), 1), torch.take_along_dim(x, i[:1].long(), -1), torch.take_along_dim(x[:1], i.long(), 1),
            torch.take_along_dim(x, i.long()), torch.take_along_dim(v, i[0].long(), 0), torch.take_along_dim((x > 0), i.long(), 1),
            torch.take_along_dim(x, x.argsort(1), 1),
        ),
        [(floats(3, 5), whole(3, 2, low=0, high=4), floats(6))],
    ),
    "bucketize": (
        lambda x, i: (
            torch.bucketize(x, torch.tensor([-1.0, 0.0, 0.5, 0.5, 2.0])), torch.bucketize(i, torch.tensor([-3, 0, 4]), right=True),
            torch.bucketize(x / 0 * 0, torch.tensor([1.0, 2.0])), torch.bucketize(i, torch.tensor([-3, 0, 4]), out_int32=True),
        ),
        [(floats(3, 4), whole(12))],
    ),
    "count_nonzero, prod": (
        lambda x, i: (
            torch.count_nonzero(i), torch.count_nonzero(x.trunc(), 1), torch.count_nonzero(i, (0, -1)), torch.count_nonzero(x > 0, dim=0),
            x.prod(), x.prod(1), x.prod(-1, keepdim=True), i.prod(0),
            (x > 0).prod(1), i.prod(1, dtype=torch.float32), (i * 0.5).prod(dtype=torch.float32),
        ),
        [(floats(3, 4), whole(2, 3, low=-3, high=3))],
    ),
    "moments and extremes": (
        lambda x: (
            *torch.var_mean(x, 1), *torch.var_mean(x, (0, -1), correction=0, keepdim=True), *torch.var_mean(x),
            *torch.std_mean(x, -1, unbiased=False),
            *torch.std_mean(x, correction=2), *torch.aminmax(x), *torch.aminmax(x, dim=1, keepdim=True), *torch.var_mean(x, unbiased=False),
        ),
        [(floats(3, 4, 5),)],
    ),
    "any, all": (
        lambda x, i: (
            i.any(), i.any(1), (x * 0.3).any(0), (x.abs() + 0.1).all(1, keepdim=True), i.all(0), (x > 0).any(), (x > 0).all(dim=1),
            torch.any(i, (0, 1)), i[0].any(), i[0, 0].any(),
        ),
        [(floats(3, 4), np.array([[-1, 0, -2], [0, 0, 0]], np.int32))],
    ),
    "variances": (
        lambda x: (
            x.var(), x.std(), x.var(1), x.std((0, 1), unbiased=False), x.std(-1, correction=2), x.var(dim=0, correction=0, keepdim=True),
            x.var(unbiased=False), x.std(unbiased=True),
        ),
        [(floats(3, 4, 5),)],
    ),
    "diagonals": (
        lambda x: (x.diagonal(), x.diagonal(1, 1, 2), x.diagonal(-1, -1, 0), x[0].diagonal(), (x > 0).int().diagonal(2, 2, 1)),
        [(floats(3, 4, 5),)],
    ),
    "cosine similarity": (
        lambda x, y: (
            functional.cosine_similarity(x, y), functional.cosine_similarity(x * 1e-5, y * 1e-5, dim=-1, eps=1e-4),
            functional.cosine_similarity(x * 0, y[:1], dim=0),
        ),
        [(floats(3, 4), floats(3, 4))],
    ),
    "nearest and smoothed bilinear": (
        lambda x: (
            functional.interpolate(x, scale_factor=0.6), functional.interpolate(x, (7, 3)), functional.interpolate(x, scale_factor=(2, 3)),
            functional.interpolate(x, (3, 4), mode="nearest-exact"), functional.interpolate(x, scale_factor=1.7, mode="nearest-exact"),
            functional.interpolate(x, (3, 4), mode="bilinear", antialias=True), functional.interpolate(x, (16, 9)),
            functional.interpolate(x, (13, 4), mode="bilinear", antialias=True, align_corners=True),
        ),
        [(floats(1, 2, 8, 9),)],
    ),
    "spectra": (
        lambda x, k, v: (
            torch.fft.irfft(torch.fft.rfft(x, 16) * torch.fft.rfft(k, 16), 16), torch.fft.irfft(torch.fft.rfft(x).conj() * 2.0, n=7),
            (torch.fft.fft(x, dim=0) - torch.fft.fft(k, dim=0)).real, (torch.fft.ifft(torch.fft.fft(x, 5)) * k[:, :5]).imag,
            torch.fft.rfft(x, norm="ortho").imag, torch.fft.irfft2(torch.fft.rfft2(x) * torch.fft.rfft2(k), s=(3, 8)),
            torch.view_as_complex(torch.stack([x, k], -1)).abs(), torch.fft.rfft(v, norm="forward").real,
            torch.fft.ifft(torch.fft.rfft(v)).real,
        ),
        [(floats(3, 8), floats(3, 8), floats(300))],
    ),
    "short-time spectra": (
        lambda x, z: (
            *(torch.stft(x, 16, hop, size, HANN[:size], return_complex=True).abs() for hop, size in ((4, 16), (5, 12))),
            torch.stft(x, 16, 4, normalized=True, window=HANN, return_complex=True).real,
            torch.view_as_real(torch.stft(x[0], 16, 8, center=False, onesided=False, window=HANN, return_complex=True)),
            torch.istft(torch.stft(x, 16, 4, window=HANN, return_complex=True) * 0.5, 16, 4, window=HANN),
            torch.istft(torch.view_as_complex(z), 16, 4, window=HANN), torch.istft(torch.view_as_complex(z)[0], 16, window=HANN),
            *(torch.istft(torch.view_as_complex(z), 16, 4, window=HANN, length=length) for length in (20, 32, 45)),
            torch.istft(torch.view_as_complex(z), 16, 3, 12, HANN[:12] + 0.1, normalized=True),
            torch.istft(torch.view_as_complex(z), 16, 4, window=HANN + 0.1, center=False),
            (y := torch.view_as_complex(z))[1, 2:-3].angle(), y[..., -1].real, (y - y.conj()).angle(), z.angle(),
            torch.istft(torch.view_as_complex(torch.cat([z, z[:, 1:8]], 1)), 16, 4, window=HANN, onesided=False),
        ),
        [(floats(2, 64), floats(2, 9, 9, 2))],
    ),
    "cdist": (
        lambda x, y: (*(torch.cdist(x, y, p=p) for p in (2.0, 1.0, 0.0, float("inf"), 3.0, 0.5)), torch.cdist(x[0], y[0])),
        [(floats(2, 3, 4), floats(2, 5, 4))],
    ),
    "norms": (
        lambda x: (
            functional.rms_norm(x, (4,)), functional.rms_norm(x * 1000, (3, 4), eps=1e-3), functional.rms_norm(x * 0, (4,), x[0, 0], 1e-6),
            functional.rms_norm(x / 1000, (4,), x[0, 0], 1e-5), functional.log_softmax(x * 50, -1), functional.log_softmax(x, 0),
            (x > 0).int().log_softmax(1, dtype=torch.float32), x[0, 0].log_softmax(0),
        ),
        [(floats(2, 3, 4),)],
    ),
    "activations": (
        lambda x: (
            functional.softplus(x * 50), functional.softplus(x, 2.5), functional.softplus(x[0], 0.5, 30), functional.logsigmoid(x * 50),
            functional.celu(x, 0.7), functional.hardshrink(x, 0.8), functional.softshrink(x, 0.3), functional.celu(x),
        ),
        [(floats(2, 3, 4, 5),)],
    ),
    "unfold": (
        lambda x, v: (
            x.unfold(1, 3, 2), x.unfold(-1, 2, 1), x.unfold(0, 2, 5), v.unfold(0, 3, 1), v.unfold(0, 7, 1),
            (x > 0).int().unfold(1, 2, 2),
        ),
        [(floats(2, 6, 3), floats(7))],
    ),
    "triangles": (
        lambda x, i: (
            *(x.triu(d) for d in (-2, 0, 1, 3)), *(x.tril(d) for d in (-2, -1, 0, 1)), (x > 0).triu(1), i.tril(-1), i.triu(2),
            torch.where((x[0] * 0 + float("-inf")).triu(1) < 0, -1.0, x),
        ),
        [(floats(2, 4, 5), whole(3, 3))],
    ),
}  # fmt: skip


@pytest.mark.sampled(12)
@pytest.mark.filterwarnings("ignore:The length of signal is shorter")  # of an istft, whose rest is zero
@pytest.mark.parametrize("front_end", ["trace", "export"])
@pytest.mark.parametrize("name", CASES)
def test_a_lowering_computes_what_torch_does(name: str, front_end: str, equals_torch: Any) -> None:
    function, samples = CASES[name]
    equals_torch(function, front_end, *samples)
