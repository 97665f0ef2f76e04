"""Attention: the fused op, which is wrong on the engine for long sequences and under iOS 26, and masks near the end of fp16."""

from collections.abc import Iterator

import numpy as np

from coreflow.export.engine.finding import Known
from coreflow.export.engine.rule import Context, EngineRule, Hit
from coreflow.export.engine.targets import Evidence
from coreflow.export.package.graph import Op, Value

_LOWEST = -5e4
_OPS = ("add", "sub", "mul", "select")
# Between a mask and its softmax.
_PASSES_ON = ("add", "sub", "mul", "select", "cast", "reshape", "expand_dims", "squeeze", "transpose", "slice_by_index", "concat", "tile")
_LARGEST_LOOK = 2**26  # elements of a constant that are read
_LONG, _VERY_LONG = 512, 2048  # of both query and keys; of either
_IOS_26 = 10  # the specification version
_LONG_IS_WRONG = Known(
    "garbage where query and keys are both 512 or longer, or one is above 2048; the decomposed form is right",
    Evidence("measured", "ANEForge docs/developer/op-quirks.md; M1 and M5 through the private route"),
)


def _lengths(op: Op) -> tuple[int, int]:
    """Of the query and the keys; 0 where they are open."""
    query, key = ((op.argument(name)[0].shape or (None, None))[-2] for name in ("query", "key"))
    return query or 0, key or 0


def _find_fused(context: Context) -> Iterator[Hit]:
    is_wrong_everywhere = context.program.spec_version >= _IOS_26
    for op in context.of_type("scaled_dot_product_attention"):
        query, key = _lengths(op)
        detail = f"{query or 'an open number of'} queries, {key or 'an open number of'} keys"
        is_long = min(query, key) >= _LONG or max(query, key) > _VERY_LONG
        seen = {chip.name for chip in context.chips if chip.family in ("M1", "M5")} if is_long else set()
        if seen:
            yield Hit(op=op, detail=detail, severity="error", chips=tuple(seen), known=_LONG_IS_WRONG)
        rest = tuple(chip.name for chip in context.chips if chip.name not in seen)
        yield Hit(op=op, detail=detail, severity="error" if is_wrong_everywhere else "warning", chips=rest)


def _extreme(value: Value) -> float:
    """The number of a constant, or that of the file, that is nearest to minus infinity, or infinite; 0 where there is none."""
    data = value.data
    if not isinstance(data, np.ndarray) or data.dtype.kind != "f" or not 0 < data.size <= _LARGEST_LOOK:
        return 0.0
    return float(np.inf) if np.isposinf(data).any() else float(data.min())


def _reaches_softmax(context: Context, op: Op) -> bool:
    """Whether a softmax reads the result of ``op``, perhaps through ops that pass it on."""
    pending, known = [op], {id(op)}
    while pending:
        for value in pending.pop().outputs:
            for reader in context.readers(value):
                if reader.type == "softmax":
                    return True
                if reader.type in _PASSES_ON and id(reader) not in known:
                    known.add(id(reader))
                    pending.append(reader)
    return False


def _find_infinite_mask(context: Context) -> Iterator[Hit]:
    for op in context.of_type(*_OPS):
        extremes = [_extreme(value) for name in ("x", "y", "a", "b") if name in op.inputs for value in op.argument(name)]
        worst = min((extreme for extreme in extremes if extreme < _LOWEST or extreme == np.inf), default=0.0)
        if worst and _reaches_softmax(context, op):
            yield Hit(op=op, detail=f"{worst:g}")


RULES = (
    EngineRule(
        id="fused-attention",
        title="fused attention is not exact on the engine of iOS 26 and macOS 26",
        severity="warning",
        known=Known(
            "its implementation there has an accuracy bug, and executorch decomposes it for that target",
            Evidence("reported", "executorch PRs 16057 and 16144"),
        ),
        remedy="write matmul, add, softmax, matmul, as coreflow export --engine-safe does; from iOS18 on coremltools fuses",
        finds=_find_fused,
    ),
    EngineRule(
        id="mask-of-infinity",
        title="a mask of -inf, or so near to it that two of them are",
        severity="warning",
        known=Known(
            "Apple uses -4e4, since -inf is not handled correctly in its softmax; a row of -inf alone is NaN in fp16 on any device",
            Evidence("documented", "Apple, coreai-models; against it, CoreML-LLM saw -inf and -1e4 give the same bits in a small softmax"),
        ),
        remedy="one finite, additive mask of -1e4 to -4e4, composed once; coreflow export --engine-safe makes masks finite",
        finds=_find_infinite_mask,
    ),
)
