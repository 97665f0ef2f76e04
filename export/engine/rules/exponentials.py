"""Exponentials that leave fp16 on the engine: softplus, and the log of a sum of exponentials."""

from collections.abc import Iterator

from coreflow.export.engine.finding import Known
from coreflow.export.engine.rule import Context, EngineRule, Hit
from coreflow.export.engine.targets import Evidence


def _find_softplus(context: Context) -> Iterator[Hit]:
    for op in context.ops:
        if op.type in ("softplus", "softplus_parametric"):
            yield Hit(op=op)


RULES = (
    EngineRule(
        id="softplus",
        title="softplus comes out as 0 where its input is above 10.4; Mish too",
        severity="warning",
        strength="open",
        chips=("M4", "M5"),
        known=Known(
            "0 from 10.394 on through Core ML on an M4, from 11 on an M5 through the private route",
            Evidence("measured", "coremltools issues 2687 and 2359; ANEForge issue 113"),
        ),
        remedy="write relu(x) + log(1 + exp(-|x|))",
        finds=_find_softplus,
    ),
)
