"""Rounding ops, products with constants, and squares that come out wrong, or do not compile, on an M5."""

from collections.abc import Iterator

import numpy as np

from coreflow.export.engine.finding import Known
from coreflow.export.engine.rule import Context, EngineRule, Hit, number
from coreflow.export.engine.targets import Evidence

_ROUNDS = ("round", "floor", "ceil")
_ACTIVATIONS = ("relu", "sigmoid", "tanh", "gelu", "silu", "erf", "exp", "log", "sqrt", "rsqrt", "softplus", "elu")


def _find_lost_factor(context: Context) -> Iterator[Hit]:
    for op in context.of_type("mul"):
        for name, other in (("x", "y"), ("y", "x")):
            maker, factor = context.maker(op.argument(name)[0]), number(context.constant(op, other))
            if maker is not None and maker.type in _ROUNDS and factor is not None and op.outputs[0].dtype == "float16":
                yield Hit(op=op, detail=f"{maker.type} times {factor:g}")


def _find_round(context: Context) -> Iterator[Hit]:
    return (Hit(op=op) for op in context.of_type("round") if op.outputs[0].dtype == "float16")


def _find_zero_product(context: Context) -> Iterator[Hit]:
    for op in context.of_type("mul"):
        for name, other in (("x", "y"), ("y", "x")):
            maker, factor = context.maker(op.argument(name)[0]), context.constant(op, other)
            is_zero = isinstance(factor, np.ndarray) and factor.dtype == np.float16 and not factor.any()
            if maker is not None and maker.type.startswith("reduce_") and is_zero:
                yield Hit(op=op, detail=f"{maker.type} times 0")


def _find_square(context: Context) -> Iterator[Hit]:
    for op in context.of_type("square"):
        if op.outputs[0].dtype != "float16":
            continue
        shape = op.outputs[0].shape or (0,)
        reader = next((reader for reader in context.readers(op.outputs[0]) if reader.type in _ACTIVATIONS), None)
        if reader is not None and (shape[-1] or 0) % 128 > 64:
            yield Hit(op=op, detail=f"in front of {reader.type}, {shape[-1]} wide")


RULES = (
    EngineRule(
        id="lost-factor",
        title="a product of round, floor or ceil with one number loses the number",
        severity="error",
        chips=("M5",),
        known=Known(
            "the multiplier is lost; a constant of the full shape avoids it, and adding a number is fine",
            Evidence("measured", "ANEForge issue 112; M5 Pro, through the private route"),
        ),
        remedy="multiply with a constant of the full shape, or multiply first",
        finds=_find_lost_factor,
    ),
    EngineRule(
        id="round-of-large",
        title="round is one off from 1024 on, and takes ties away from zero, not to even",
        severity="warning",
        strength="open",
        chips=("M5",),
        known=Known(
            "0.5 is added in fp16: 1024 gives 1025, -2047 gives -2048",
            Evidence("measured", "ANEForge PR 116; M5 Pro, through the private route"),
        ),
        remedy="floor(x + 0.5) has the same fault; round on the host, or where |x| is below 1024",
        finds=_find_round,
    ),
    EngineRule(
        id="zero-product",
        title="a product with exactly 0 behind a reduction does not compile for the engine",
        severity="error",
        chips=("M5",),
        known=Known("compiling fails", Evidence("measured", "PyPI aneforge 0.4.0; M5, through the private route")),
        remedy="leave the branch out: it is 0",
        finds=_find_zero_product,
    ),
    EngineRule(
        id="square-in-front",
        title="a square in front of an activation does not compile for the engine at this width",
        severity="warning",
        chips=("M5",),
        known=Known(
            "compiling fails where the width is 65 to 127 beyond a multiple of 128; which activations is not said",
            Evidence("measured", "PyPI aneforge 0.4.0; M5, through the private route"),
        ),
        remedy="write x * x, or another width",
        finds=_find_square,
    ),
)
