"""The guard that coremltools puts in front of a gather since iOS17: negative places are counted from the end, in integers."""

from collections.abc import Iterator

from coreflow.export.engine.finding import Known
from coreflow.export.engine.rule import Context, EngineRule, Hit
from coreflow.export.engine.targets import Evidence
from coreflow.export.package.graph import Op, Value


def _guards(context: Context) -> Iterator[tuple[Op, ...]]:
    """select(cond=greater_equal(places, 0), a=places, b=add(places, length)), with the casts around; the select comes first."""
    for select in context.of_type("select"):
        compared, added = (context.maker(select.argument(name)[0]) for name in ("cond", "b"))
        if compared is None or added is None or compared.type != "greater_equal" or added.type != "add":
            continue
        gathers = [reader for value in select.outputs for reader in _readers(context, value) if reader.type.startswith("gather")]
        if gathers and "int" in select.outputs[0].dtype:
            read = (value for op in (select, compared, added) for value in op.input_values())
            casts = {id(cast): cast for value in read for cast in _casts_before(context, value)}
            behind = [reader for reader in context.readers(select.outputs[0]) if reader.type == "cast"]
            yield (select, compared, added, *casts.values(), *behind)


def _casts_before(context: Context, value: Value) -> Iterator[Op]:
    """The casts that ``value`` has come through."""
    maker = context.maker(value)
    if maker is not None and maker.type == "cast":
        yield maker
        yield from _casts_before(context, maker.argument("x")[0])


def _readers(context: Context, value: Value) -> Iterator[Op]:
    """The ops that read ``value``, through casts."""
    for reader in context.readers(value):
        if reader.type == "cast":
            yield from _readers(context, reader.outputs[0])
        else:
            yield reader


def guard_ops(context: Context) -> frozenset[int]:
    """The ids of all ops of guards."""
    return frozenset(id(op) for guard in _guards(context) for op in guard)


def _find(context: Context) -> Iterator[Hit]:
    for guard in _guards(context):
        yield Hit(op=guard[0], detail=f"{len(guard)} ops")


RULES = (
    EngineRule(
        id="gather-guard",
        title="a guard of integers around the places of a gather runs on the CPU",
        severity="note",
        known=Known(
            "six of the seven ops that a published DistilBERT has on the CPU are this guard",
            Evidence("measured", "erwinzhang7/coreml-compute-placement; M4 Pro and M5 Max, macOS 26"),
        ),
        remedy="where places are never negative, convert with coreflow export, which leaves the guard out, or for iOS16",
        finds=_find,
    ),
)
