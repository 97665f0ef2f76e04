"""Elementary functions that leave fp16, or some chips: softplus, the log of a sum of exponentials, sin and cos, gelu, silu."""

import math
from collections.abc import Callable, Iterator

from coreflow.export.engine.finding import Known
from coreflow.export.engine.rule import Context, EngineRule, Hit, number
from coreflow.export.engine.targets import Evidence
from coreflow.export.package.graph import Value


def _find(*types: str) -> Callable[[Context], Iterator[Hit]]:
    return lambda context: (Hit(op=op) for op in context.of_type(*types))


_END = 10.394  # of what softplus takes
_POSITIVE = ("abs", "relu", "relu6", "square", "exp", "exp2", "sigmoid", "softmax", "sqrt")


def _find_softplus(context: Context) -> Iterator[Hit]:
    for op in context.of_type("softplus", "softplus_parametric"):
        if _most(context, op.argument("x")[0]) > _END:
            yield Hit(op=op)


def _most(context: Context, value: Value) -> float:
    """A number that ``value`` is not above, where the op that gives it says so: a clip, or a negated magnitude."""
    maker = context.maker(value)
    if maker is None or maker.type not in ("clip", "minimum", "mul"):
        return math.inf
    if maker.type == "clip":
        limit = number(context.constant(maker, "beta"))
        return math.inf if limit is None else limit
    limits = [(other, limit) for name, other in (("x", "y"), ("y", "x")) if (limit := number(context.constant(maker, name))) is not None]
    if not limits:
        return math.inf
    ((other, limit),) = limits[:1]
    if maker.type == "minimum":
        return limit
    factor = context.maker(maker.argument(other)[0])
    return 0.0 if limit <= 0 and factor is not None and factor.type in _POSITIVE else math.inf


RULES = (
    EngineRule(
        id="softplus",
        title="softplus comes out as 0 where its input is above 10.4; Mish too",
        severity="warning",
        strength="open",
        chips=("M4", "M5"),
        known=Known(
            "0 from 10.394 on through Core ML on an M4, from 11 on on an M5 through the private route",
            Evidence("measured", "coremltools issues 2687 and 2359; ANEForge issue 113"),
        ),
        remedy="write relu(x) + softplus(-|x|), as coreflow export --engine-safe does",
        finds=_find_softplus,
    ),
    EngineRule(
        id="log-sum-exp",
        title="reduce_log_sum_exp does not subtract the maximum",
        severity="warning",
        strength="open",
        known=Known("with 32 terms it comes out as 0 near x = 7.6", Evidence("measured", "coremltools PR 2726")),
        remedy="write m + log(sum(exp(x - m))) with the maximum m, as coreflow export --engine-safe does",
        finds=_find("reduce_log_sum_exp"),
    ),
    EngineRule(
        id="sin-cos",
        title="sin and cos, which may not be on the engine of an M2",
        severity="note",
        chips=("M2",),
        known=Known(
            "from the M3 on in the tables of Apple's compiler; against it, K's compiler for an M2 takes all that an M4 takes but topk",
            Evidence("decompiled", "ane-guide, appendix A"),
        ),
        remedy="tables of sin and cos as constants, or passed in",
        finds=_find("sin", "cos"),
    ),
    EngineRule(
        id="gelu-table",
        title="gelu is read off a table: up to 6e-3 off, in both its forms",
        severity="note",
        chips=("M1", "M6"),
        known=Known(
            "at most 6.2e-3 off on an M6, 5.9e-3 on an M1; gelu(0) is not 0",
            Evidence("measured", "K, notes/numerics.md; ane-guide, chapter 3"),
        ),
        remedy="validate with --numerics engine-m6; Apple's own models write x * sigmoid(1.5958 * (x + 0.0447 * x**3))",
        finds=_find("gelu"),
    ),
    EngineRule(
        id="silu-table",
        title="silu is read off a table: up to 1.5e-2 off",
        severity="note",
        chips=("M6",),
        known=Known("at most 1.49e-2 off; it is not x times sigmoid", Evidence("measured", "K, notes/numerics.md")),
        remedy="validate with --numerics engine-m6; coremltools makes silu of x * sigmoid(x) too",
        finds=_find("silu"),
    ),
)
