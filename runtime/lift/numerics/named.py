"""Numerics by name: fp64, fp32 and fp16."""

import torch

from coreflow.models.errors import UnsupportedError
from coreflow.runtime.backend import NumericsName
from coreflow.runtime.lift.numerics.half import Fp16Storage
from coreflow.runtime.lift.numerics.plain import Numerics

NUMERICS: dict[NumericsName, Numerics] = {
    "fp64": Numerics("fp64", torch.float64),
    "fp32": Numerics("fp32", torch.float32),
    "fp16": Fp16Storage("fp16", torch.float32),
}


def numerics_named(name: NumericsName) -> Numerics:
    """The numerics of that name."""
    if name not in NUMERICS:
        raise UnsupportedError(f"numerics {name!r}; choose one of {', '.join(NUMERICS)}", expected=NUMERICS)
    return NUMERICS[name]
