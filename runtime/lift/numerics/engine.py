"""The Neural Engine's arithmetic, by published rules: numerics ``engine-m1`` to ``engine-m6``. A published model, not measured by us."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import Tensor

from coreflow.export.package.graph import Op, Value
from coreflow.export.package.op_facts import facts_of
from coreflow.runtime.lift.numerics.engine_fp16 import decode, round_to_fp16
from coreflow.runtime.lift.numerics.engine_ops import EngineOps
from coreflow.runtime.lift.numerics.plain import Numerics, Rounding

_GAIN = 16.0  # of the fixed-point copy that a slice along the last axis makes on the first two generations
_SLICES = ("slice_by_index", "slice_by_size")


@dataclass(frozen=True, slots=True)
class EngineNumerics(Numerics):
    """Ops as the engine of one generation of chips computes them; what is declared fp32 or whole is computed as on the CPU.

    >>> load_model("encoder.mlpackage", "lifted", numerics="engine-m4").predict(inputs)

    ``is_exact`` False draws the errors of matrix products from their size instead of computing them. Sources and the confidence of every
    rule: ``engine_products``, ``engine_tables``, ``engine_sums``, ``engine_ops``.
    """

    slices_have_gain: bool = False  # seen on M1, M1 Max, M2 Pro, M2 Max; not on M4, M4 Max, M5, M5 Pro, M6 (ANEForge op-quirks, MIT)
    is_exact: bool = True

    def function(self, op: Op, function: Callable[..., Any]) -> Callable[..., Any]:
        """The engine's form of ``op``, or ``function`` on numbers as the engine reads them."""
        if not _is_on_engine(op):
            return function
        if self.slices_have_gain and op.type in _SLICES:
            return _with_gain(function)
        form = EngineOps(self.is_exact).forms().get(op.type)
        return form or (function if facts_of(op.type).rounds_nothing else _on_decoded(function))

    def rounding(self, op: Op, output: Value) -> Rounding | None:
        """To fp16, ties away from zero, unless the op rounds nothing."""
        return None if facts_of(op.type).rounds_nothing or output.dtype != "float16" else round_to_fp16


def _is_on_engine(op: Op) -> bool:
    """Whether all floats that run through an op are fp16; comparisons give truth values. Constants may be fp32, as epsilons are."""
    floats = {value.dtype for value in (*op.input_values(), *op.outputs) if value.data is None and value.dtype.startswith("float")}
    return floats == {"float16"} and not any(value.dtype == "int32" for value in op.outputs) and not op.blocks


def _on_decoded(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def decoded(**arguments: Any) -> Any:
        return function(**{name: _decoded(argument) for name, argument in arguments.items()})

    return decoded


def _decoded(argument: Any) -> Any:
    if isinstance(argument, tuple):
        return tuple(map(_decoded, argument))
    return decode(argument) if isinstance(argument, Tensor) and argument.is_floating_point() else argument


def _with_gain(function: Callable[..., Any]) -> Callable[..., Any]:
    """E10: 4094 passes a slice that begins inside the last axis, 4095 comes out infinite (M1, M2; G3 and G19 in ane-hardware.md)."""

    @wraps(function)
    def sliced(x: Tensor, begin: Sequence[int], **further: Any) -> Any:
        result = function(x=x, begin=begin, **further)
        mask = further.get("begin_mask")
        is_inside = begin[-1] % max(1, x.shape[-1]) != 0 and not (mask and mask[-1])
        return round_to_fp16(result * _GAIN) / _GAIN if is_inside and result.is_floating_point() else result

    return sliced
