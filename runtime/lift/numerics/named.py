"""Numerics by name: fp64, fp32, fp16, and those of the Neural Engine by chip, exact or fast."""

from typing import get_args

import torch

from coreflow.models.errors import UnsupportedError
from coreflow.runtime.backend import EngineNumericsName, FastNumericsName, NumericsName
from coreflow.runtime.lift.numerics.engine import EngineNumerics
from coreflow.runtime.lift.numerics.half import Fp16Storage
from coreflow.runtime.lift.numerics.plain import Numerics

_WITH_GAIN = ("engine-m1", "engine-m2")
NUMERICS: dict[NumericsName, Numerics] = {
    "fp64": Numerics("fp64", torch.float64),
    "fp32": Numerics("fp32", torch.float32),
    "fp16": Fp16Storage("fp16", torch.float32),
    **{name: EngineNumerics(name, torch.float64, slices_have_gain=name in _WITH_GAIN) for name in get_args(EngineNumericsName)},
    **{
        name: EngineNumerics(name, torch.float32, slices_have_gain=name.removesuffix("-fast") in _WITH_GAIN, is_exact=False)
        for name in get_args(FastNumericsName)
    },
}


def numerics_named(name: NumericsName) -> Numerics:
    """The numerics of that name."""
    if name not in NUMERICS:
        raise UnsupportedError(f"numerics {name!r}; choose one of {', '.join(NUMERICS)}", expected=NUMERICS)
    return NUMERICS[name]
