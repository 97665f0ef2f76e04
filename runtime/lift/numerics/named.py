"""Numerics by name: fp64, fp32, fp16, and those of the Neural Engine by chip, exact or fast."""

import torch

from coreflow.models.errors import UnsupportedError
from coreflow.runtime.backend import NumericsName
from coreflow.runtime.lift.numerics.engine import EngineNumerics
from coreflow.runtime.lift.numerics.half import Fp16Storage
from coreflow.runtime.lift.numerics.plain import Numerics

NUMERICS: dict[NumericsName, Numerics] = {
    "fp64": Numerics("fp64", torch.float64),
    "fp32": Numerics("fp32", torch.float32),
    "fp16": Fp16Storage("fp16", torch.float32),
    "engine-m1": EngineNumerics("engine-m1", torch.float64, slices_have_gain=True),
    "engine-m2": EngineNumerics("engine-m2", torch.float64, slices_have_gain=True),
    "engine-m4": EngineNumerics("engine-m4", torch.float64),
    "engine-m5": EngineNumerics("engine-m5", torch.float64),
    "engine-m6": EngineNumerics("engine-m6", torch.float64),
    "engine-m1-fast": EngineNumerics("engine-m1-fast", torch.float32, slices_have_gain=True, is_exact=False),
    "engine-m2-fast": EngineNumerics("engine-m2-fast", torch.float32, slices_have_gain=True, is_exact=False),
    "engine-m4-fast": EngineNumerics("engine-m4-fast", torch.float32, is_exact=False),
    "engine-m5-fast": EngineNumerics("engine-m5-fast", torch.float32, is_exact=False),
    "engine-m6-fast": EngineNumerics("engine-m6-fast", torch.float32, is_exact=False),
}


def numerics_named(name: NumericsName) -> Numerics:
    """The numerics of that name."""
    if name not in NUMERICS:
        raise UnsupportedError(f"numerics {name!r}; choose one of {', '.join(NUMERICS)}", expected=NUMERICS)
    return NUMERICS[name]
