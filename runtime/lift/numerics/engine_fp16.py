"""Numbers of fp16 as the Neural Engine reads and rounds them, in tensors of float64 or float32.

Sources: 751K/Apple-Neural-Engine-Microarchitecture-Study-M6 (MIT), notes/numerics.md at 60d79c2 and data/06_numerics at a51e0db: single
probes on an M6 and in part on an M4, macOS 27.0.1. What each function says is measured there unless it is marked otherwise.
"""

import torch
from torch import Tensor

from coreflow.models import fp16

SMALLEST_EXPONENT = -14  # of normal numbers; those below share it
SIGNIFICAND_BITS = 10
DECODED_NAN, DECODED_INFINITY = 98304.0, 65536.0  # 1.5 * 2**16 and 2**16: exponent field 31 is an exponent like any other


def decode(x: Tensor) -> Tensor:
    """``x`` as arithmetic units read it: infinity is 2**16, NaN 1.5 * 2**16, and there is no negative zero."""
    return torch.nan_to_num(x, nan=DECODED_NAN, posinf=DECODED_INFINITY, neginf=-DECODED_INFINITY) + 0.0


def exponents(x: Tensor) -> Tensor:
    """The exponent of every number, as int32: that of the smallest normal number for all below it."""
    return (torch.frexp(x).exponent - 1).clamp_min_(SMALLEST_EXPONENT)


def round_to_fp16(x: Tensor) -> Tensor:
    """The nearest fp16 numbers, of two the one farther from zero (2049 gives 2050); infinite from 65520 on, never NaN or -0.

    An indeterminate form is +0, as inf - inf and 0 * inf are (M1; G3 in ane-hardware.md: arXiv 2606.22283). In float32, where errors are
    drawn anyway, ties go to even: one conversion instead of ten operations.
    """
    if x.dtype == torch.float32:
        return torch.nan_to_num(x.half().float(), nan=0.0, posinf=torch.inf, neginf=-torch.inf) + 0.0
    step = torch.exp2((exponents(x) - SIGNIFICAND_BITS).to(x.dtype))
    rounded = half_away(x / step) * step
    rounded = torch.where(rounded.abs() > fp16.MAX, torch.copysign(torch.full_like(rounded, torch.inf), rounded), rounded)
    return torch.nan_to_num(rounded, nan=0.0, posinf=torch.inf, neginf=-torch.inf) + 0.0


def half_away(x: Tensor) -> Tensor:
    """The nearest whole numbers, of two the one farther from zero."""
    return torch.trunc(x + torch.copysign(torch.full_like(x, 0.5), x))
