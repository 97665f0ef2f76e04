"""Complex numbers as pairs of real ones: what is done between a Fourier transform and its inverse."""

from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

from coreflow.export.targets.lowerings.registry import Ints, torch_lowering
from coreflow.export.targets.lowerings.structure import part
from coreflow.export.targets.lowerings.values import Var, axis_of, fixed_size, promote


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
    kept = size // 2 + 1  # the others are these, conjugate
    weights = np.where((np.arange(kept) == 0) | (2 * np.arange(kept) == size), 1, 2)[:, None]
    result = _product(real, axis, weights * cosine[:kept])
    return result if imaginary is None else mb.sub(x=result, y=_product(imaginary, axis, weights * sine[:kept]))


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
