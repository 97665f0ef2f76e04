"""fp16 storage: fp32 arithmetic, with every value rounded to fp16 where an op can make one that fp16 does not hold."""

from dataclasses import dataclass

import torch
from torch import Tensor

from coreflow.export.package.graph import Op, Value
from coreflow.export.package.op_facts import facts_of
from coreflow.runtime.lift.numerics.plain import Numerics, Rounding


@dataclass(frozen=True, slots=True)
class Fp16Storage(Numerics):
    """Rounds every value that is declared fp16.

    >>> numerics_named("fp16").rounding(op, op.outputs[0])  # None where the op rounds nothing

    The op itself accumulates in fp32: fp16 kernels on a CPU are 6 to 30 times slower and round inside as no device does.
    Overflow becomes inf, as it does in fp16.
    """

    def rounding(self, op: Op, output: Value) -> Rounding | None:
        """Rounding to fp16 unless the op rounds nothing."""
        return None if facts_of(op.type).rounds_nothing or output.dtype != "float16" else _to_fp16_and_back


def _to_fp16_and_back(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float16).to(tensor.dtype)
