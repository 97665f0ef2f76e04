"""How tensors lie in memory: rank, transposes that undo each other, reshapes of the last axis."""

from collections.abc import Iterator
from itertools import chain

from coreflow.export.engine.finding import Known
from coreflow.export.engine.rule import Context, EngineRule, Hit
from coreflow.export.engine.targets import Evidence
from coreflow.export.package.graph import Op

_APPLE = Evidence("documented", "Apple, coreai-models, neural_engine_rules.md")
_FRAGILE_AT_RANK_5 = ("matmul", "softmax", "transpose", "read_state", "write_state", "coreml_update_state", "slice_update")


def _find_rank_5(context: Context) -> Iterator[Hit]:
    for op in context.of_type(*_FRAGILE_AT_RANK_5):
        if any(value.shape is not None and len(value.shape) == 5 for value in chain(op.input_values(), op.outputs)):
            yield Hit(op=op, severity="note" if op.type == "transpose" else "warning")


def _permutation(context: Context, op: Op) -> tuple[int, ...]:
    constant = context.constant(op, "perm")
    return () if constant is None else tuple(int(axis) for axis in constant)


def _find_transpose_pair(context: Context) -> Iterator[Hit]:
    for op in context.of_type("transpose"):
        before = context.maker(op.argument("x")[0])
        if before is None or before.type != "transpose":
            continue
        first, second = _permutation(context, before), _permutation(context, op)
        if len(first) == len(second) > 0:
            undone = [first[axis] for axis in second] == list(range(len(first)))
            yield Hit(op=op, detail=f"behind {before.name}{': both together change nothing' if undone else ''}")


def _find_reshape_of_rows(context: Context) -> Iterator[Hit]:
    for op in context.of_type("reshape"):
        before, after = op.argument("x")[0].shape, op.outputs[0].shape
        if before and after and before[-1] != after[-1]:
            yield Hit(op=op, detail=f"{list(before)} to {list(after)}")


RULES = (
    EngineRule(
        id="rank-5",
        title="an op over five axes that tends to the CPU, or keeps a program from being compiled",
        severity="warning",
        known=Known(
            "a matmul of rank 5 went to the CPU where rank 3 stayed; graphs of rank 5 did not compile, of rank 4 they were placed",
            Evidence("measured", "CoreML-LLM docs/QWEN35_ROADMAP.md; FluidAudio PR 679; against it, K sees transposes of rank 5 placed"),
        ),
        remedy="fold axes that stay together, so that four are left",
        finds=_find_rank_5,
    ),
    EngineRule(
        id="transpose-pair",
        title="one transpose behind another",
        severity="note",
        known=Known("few transposes and reshapes, and none that touches the last axis", _APPLE),
        remedy="one transpose, or none",
        finds=_find_transpose_pair,
    ),
    EngineRule(
        id="reshape-of-rows",
        title="a reshape changes the last axis",
        severity="note",
        known=Known("few transposes and reshapes, and none that touches the last axis", _APPLE),
        remedy="keep (batch, channels, 1, sequence), and split heads along the channels",
        finds=_find_reshape_of_rows,
    ),
)
