"""Complex numbers as pairs of real ones: what is done between a Fourier transform and its inverse."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

from coreflow.export.targets.lowerings.registry import Ints, known, torch_lowering
from coreflow.export.targets.lowerings.structure import part
from coreflow.export.targets.lowerings.values import Var, axis_of, fixed_size, numpy_dtype, promote
from coreflow.models.errors import ExportError


def _is_complex(x: Any) -> bool:
    return hasattr(x, "dtype") and bool(types.is_complex(x.dtype))


def _pair(x: Var) -> tuple[Var, Var | None]:
    """Real and imaginary part; None for that of a real number."""
    return (mb.complex_real(data=x), mb.complex_imag(data=x)) if _is_complex(x) else (x, None)


def _times(x: Var, y: Any) -> Var:
    x, y = promote(x, y)
    return mb.mul(x=x, y=y)


@torch_lowering("mul", "multiply")
def mul(x: Var, other: Var) -> Var:
    """four real products of complex numbers, two where one is real"""
    if not (_is_complex(x) or _is_complex(other)):
        return NotImplemented
    (a, b), (c, d) = _pair(x), _pair(other)
    if b is None or d is None:
        real, imaginary, factor = (c, d, a) if b is None else (a, b, c)
        return mb.complex(real_data=_times(real, factor), imag_data=_times(imaginary, factor))
    return mb.complex(
        real_data=mb.sub(x=_times(a, c), y=_times(b, d)),
        imag_data=mb.add(x=_times(a, d), y=_times(b, c)),
    )


@torch_lowering("sub", "subtract")
def sub(x: Var, other: Var, alpha: float = 1) -> Var:
    """sub of the real and of the imaginary parts"""
    if alpha != 1:
        return sub(x, _times(other, alpha))
    if not (_is_complex(x) and _is_complex(other)):
        x, other = promote(x, other)
        return mb.sub(x=x, y=other)
    (a, b), (c, d) = _pair(x), _pair(other)
    return mb.complex(real_data=mb.sub(x=a, y=c), imag_data=mb.sub(x=b, y=d))


@torch_lowering("conj", "_conj", "conj_physical", "_conj_physical")
def conj(x: Var) -> Var:
    """the imaginary part times -1"""
    real, imaginary = _pair(x)
    return x if imaginary is None else mb.complex(real_data=real, imag_data=mb.mul(x=imaginary, y=-1.0))


@torch_lowering("resolve_conj", "resolve_neg")
def resolve_conj(x: Var) -> Var:
    """what it is given: nothing is put off"""
    return x


@torch_lowering("view_as_complex")
def view_as_complex(x: Var) -> Var:
    """the two slices of the last dimension"""
    sides = (mb.squeeze(x=part(x, x.rank - 1, place, place + 1), axes=[-1]) for place in (0, 1))
    return mb.complex(real_data=next(sides), imag_data=next(sides))


@torch_lowering("select")
def select(x: Var, dim: Any, index: Any) -> Var:
    """of complex numbers, a slice of both parts without its dimension"""
    if not _is_complex(x):
        return NotImplemented
    axis, place = axis_of(x, known(dim, "select: dim"), "select"), known(index, "select: index")
    place += fixed_size(x, axis, "select") if place < 0 else 0
    sides = (mb.squeeze(x=part(side, axis, place, place + 1), axes=[axis]) for side in _pair(x))
    return mb.complex(real_data=next(sides), imag_data=next(sides))


@torch_lowering("slice")
def slice_(x: Var, dim: Any = 0, start: Any = None, end: Any = None, step: Any = 1) -> Var:
    """of complex numbers, a slice of both parts"""
    if not _is_complex(x):
        return NotImplemented
    dim, start, end, step = (known(value, "slice") for value in (dim, start, end, step))
    axis = axis_of(x, dim, "slice")
    begin, stop, _ = slice(start, end).indices(fixed_size(x, axis, "slice"))
    if step != 1:
        raise ExportError(f"slice of complex numbers in steps of {step}; steps of 1 convert")
    real, imaginary = (part(side, axis, begin, stop) for side in _pair(x))
    return mb.complex(real_data=real, imag_data=imaginary)


@torch_lowering("angle")
def angle(x: Var) -> Var:
    """of complex numbers, the arc of both parts; of real ones 0 or pi"""
    real, imaginary = _pair(x)
    if imaginary is None:
        return mb.select(cond=mb.less(x=x, y=numpy_dtype(x)(0)), a=numpy_dtype(x)(np.pi), b=numpy_dtype(x)(0))
    arc = mb.atan(x=mb.real_div(x=imaginary, y=mb.select(cond=mb.equal(x=real, y=0.0), a=np.float32(1), b=real)))
    sign = mb.select(cond=mb.less(x=imaginary, y=0.0), a=np.float32(-np.pi), b=np.float32(np.pi))
    beside = mb.select(cond=mb.less(x=real, y=0.0), a=mb.add(x=arc, y=sign), b=arc)
    upright = mb.mul(x=mb.sign(x=imaginary), y=np.float32(np.pi / 2))
    return mb.select(cond=mb.equal(x=real, y=0.0), a=upright, b=beside)


@torch_lowering("fft_rfft")
def fft_rfft(x: Var, n: int | None = None, dim: int = -1, norm: str | None = None) -> Var:
    """products with a cosine and a sine matrix"""
    return _forward(x, n, dim, norm, half=True)


@torch_lowering("fft_fft")
def fft_fft(x: Var, n: int | None = None, dim: int = -1, norm: str | None = None) -> Var:
    """products with a cosine and a sine matrix"""
    return _forward(x, n, dim, norm, half=False)


@torch_lowering("fft_ifft")
def fft_ifft(x: Var, n: int | None = None, dim: int = -1, norm: str | None = None) -> Var:
    """products with a cosine and a sine matrix"""
    other = {None: "forward", "backward": "forward", "forward": None}.get(norm, norm)
    return conj(_forward(conj(x), n, dim, other, half=False))


@torch_lowering("fft_irfft")
def fft_irfft(x: Var, n: int | None = None, dim: int = -1, norm: str | None = None) -> Var:
    """products with a cosine and a sine matrix"""
    axis = axis_of(x, dim, "irfft")
    size = 2 * (fixed_size(x, axis, "irfft") - 1) if n is None else n
    other = {None: "forward", "backward": "forward", "forward": None}.get(norm, norm)
    real, imaginary = _pair(x)
    cosine, sine = _matrices(size, other)
    weights = _weights(size)
    result = _product(real, axis, weights * cosine[: len(weights)])
    return result if imaginary is None else mb.sub(x=result, y=_product(imaginary, axis, weights * sine[: len(weights)]))


@torch_lowering("fft_rfft2")
def fft_rfft2(x: Var, s: Ints | None = None, dim: Ints = (-2, -1), norm: str | None = None) -> Var:
    """fft_rfft along the last dimension, fft_fft along the other"""
    first, last = s or (None, None)
    return fft_fft(fft_rfft(x, last, dim[1], norm), first, dim[0], norm)


@torch_lowering("fft_irfft2")
def fft_irfft2(x: Var, s: Ints | None = None, dim: Ints = (-2, -1), norm: str | None = None) -> Var:
    """fft_ifft along the other dimension, fft_irfft along the last"""
    first, last = s or (None, None)
    return fft_irfft(fft_ifft(x, first, dim[0], norm), last, dim[1], norm)


@torch_lowering("stft")
def stft(
    x: Var,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Sequence[float] | None = None,
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Var:
    """a convolution with the windowed waves of all frequencies"""
    if isinstance(onesided, str) or not return_complex or align_to_window:
        raise ExportError("stft converts as torch.stft(..., return_complex=True) calls it, without align_to_window")
    kept = n_fft if onesided is False else n_fft // 2 + 1
    cosine, sine = (matrix[:kept] for matrix in _matrices(n_fft, "ortho" if normalized else None))
    waves = (np.concatenate([cosine, -sine]) * _window(n_fft, win_length, window))[:, None].astype(np.float32)
    signal = mb.expand_dims(x=x, axes=[0, 1] if x.rank == 1 else [1])
    rows = mb.conv(x=signal, weight=waves, strides=[hop_length or n_fft // 4], pad_type="valid")
    sides = (part(rows, 1, begin, begin + kept) for begin in (0, kept))
    real, imaginary = (mb.squeeze(x=side, axes=[0]) if x.rank == 1 else side for side in sides)
    return mb.complex(real_data=real, imag_data=imaginary)


@torch_lowering("istft")
def istft(
    x: Var,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Sequence[float] | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Var:
    """a transposed convolution with the windowed waves of all frequencies, over the sum of the squared windows"""
    if return_complex:
        raise ExportError("istft with return_complex=True; a program gives real numbers")
    hop, kept = hop_length or n_fft // 4, n_fft // 2 + 1  # of all frequencies torch reads these alone
    frames = fixed_size(x, x.rank - 1, "istft")
    shape = _window(n_fft, win_length, window)
    cosine, sine = (matrix[:kept] for matrix in _matrices(n_fft, "ortho" if normalized else "forward"))
    weights = _weights(n_fft)
    waves = (np.concatenate([weights * cosine, -weights * sine]) * shape)[:, None].astype(np.float32)
    rows = mb.concat(values=[part(side, x.rank - 2, 0, kept) for side in _pair(x)], axis=-2)
    rows = rows if x.rank == 3 else mb.expand_dims(x=rows, axes=[0])
    signal = mb.squeeze(x=mb.conv_transpose(x=rows, weight=waves, strides=[hop], pad_type="valid"), axes=[1])
    total = n_fft + hop * (frames - 1)
    envelope = np.zeros(total)
    for frame in range(frames):
        envelope[frame * hop :][:n_fft] += shape**2
    start = n_fft // 2 if center else 0
    end = min(total, start + length) if length is not None else total - start
    signal = mb.mul(x=part(signal, 1, start, end), y=(1 / envelope[start:end]).astype(np.float32))
    if length is not None and start + length > total:
        signal = mb.pad(x=signal, pad=[0, 0, 0, start + length - total], mode="constant", constant_val=0.0)
    return signal if x.rank == 3 else mb.squeeze(x=signal, axes=[0])


def _window(n_fft: int, size: int | None, window: Sequence[float] | None) -> Any:
    """A window, or one of ones, with as many zeros before as behind it."""
    size = size or n_fft
    result = np.zeros(n_fft)
    result[(n_fft - size) // 2 :][:size] = 1.0 if window is None else window
    return result


def _weights(size: int) -> Any:
    """How often the frequencies of a real signal count, as a column: those between the first and the last stand for two."""
    kept = np.arange(size // 2 + 1)
    return np.where((kept == 0) | (2 * kept == size), 1, 2)[:, None]


def _forward(x: Var, n: int | None, dim: int, norm: str | None, *, half: bool) -> Var:
    axis = axis_of(x, dim, "a Fourier transform")
    size = fixed_size(x, axis, "a Fourier transform") if n is None else n
    cosine, sine = (matrix[:, : size // 2 + 1 if half else size] for matrix in _matrices(size, norm))
    real, imaginary = _pair(x)
    above, below = _product(real, axis, cosine), _product(real, axis, -sine)
    if imaginary is not None:
        above = mb.add(x=above, y=_product(imaginary, axis, sine))
        below = mb.add(x=below, y=_product(imaginary, axis, cosine))
    return mb.complex(real_data=above, imag_data=below)


def _matrices(size: int, norm: str | None) -> tuple[Any, Any]:
    """cos and sin of all angles of a transform of ``size``."""
    # Of whole turns nothing is left: coremltools takes the cosine of up to size² / 2 turns in fp32, and loses four digits of a size of 512.
    angles = 2 * np.pi * (np.outer(np.arange(size), np.arange(size)) % size) / size
    scale = {None: 1.0, "backward": 1.0, "ortho": size**-0.5, "forward": 1 / size}[norm]
    return scale * np.cos(angles), scale * np.sin(angles)


def _product(x: Var, axis: int, matrix: Any) -> Var:
    """``x`` times ``matrix`` along ``axis``; what has no row is cut off, rows beyond ``x`` meet zeros."""
    size = min(fixed_size(x, axis, "a Fourier transform"), len(matrix))
    x = part(x, axis, 0, size) if size < x.shape[axis] else x
    order = [place for place in range(x.rank) if place != axis] + [axis]
    last = x if order == list(range(x.rank)) else mb.transpose(x=x, perm=order)
    rows = last if x.rank > 1 else mb.expand_dims(x=last, axes=[0])
    product = mb.matmul(x=rows, y=matrix[:size].astype(np.float32))
    product = product if x.rank > 1 else mb.squeeze(x=product, axes=[0])
    return product if last is x else mb.transpose(x=product, perm=[int(place) for place in np.argsort(order)])
