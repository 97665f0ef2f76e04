"""Tensors made, counted, repeated and padded."""

import numpy as np

from coreflow.export.engine.bounds.bound import Bound, between, join
from coreflow.export.engine.bounds.registry import Call, transfer
from coreflow.export.engine.bounds.transfers.moves import anywhere


@transfer("fill", "fill_like")
def fill(call: Call) -> Bound:
    """One number everywhere."""
    value = call.get("value")
    return between(call.shape(), 0.0, 0.0) if value is None else anywhere(value, call.shape())


@transfer("one_hot")
def one_hot(call: Call) -> Bound:
    """One of two numbers."""
    on, off = (call.get(name) for name in ("on_value", "off_value"))
    ends = [(default, default) if value is None else (value.lowest, value.highest) for value, default in ((on, 1.0), (off, 0.0))]
    return between(call.shape(), min(low for low, _ in ends), max(high for _, high in ends))


@transfer("range_1d")
def range_1d(call: Call) -> Bound:
    """From its start to its end."""
    ends = [call["start"], call["end"]]
    return between(call.shape(), min(end.lowest for end in ends), max(end.highest for end in ends))


@transfer("shape")
def shape(call: Call) -> Bound:
    """Extents; an open one is any number from 0 on."""
    extents = call["x"].shape
    low, high = ([end if extent is None else extent for extent in extents] for end in (0, 2**31 - 1))
    return Bound(call.shape(), np.array(low, np.float64), np.array(high, np.float64))


@transfer("argsort", "reduce_argmax", "reduce_argmin")
def places(call: Call) -> Bound:
    """Places along an axis."""
    x = call["x"]
    extent = x.shape[x.axis(call.integer("axis", -1))]
    return between(call.shape(), 0.0, 2.0**31 - 1 if extent is None else max(0.0, extent - 1.0))


@transfer("non_zero")
def non_zero(call: Call) -> Bound:
    """Places on every axis."""
    return between(call.shape(), 0.0, max((2.0**31 if extent is None else float(extent) for extent in call["x"].shape), default=0.0))


@transfer("topk")
def topk(call: Call) -> tuple[Bound, ...]:
    """Elements of an axis, and their places."""
    x = call["x"]
    axis = x.axis(call.integer("axis", -1))
    low, high = join(x.low, (axis,), least=True), join(x.high, (axis,))
    extent = x.shape[axis]
    values = Bound(call.shape(), low, high)
    if len(call.op.outputs) == 1:
        return (values,)
    return values, between(call.shape(1), 0.0, 2.0**31 - 1 if extent is None else max(0.0, extent - 1.0))


@transfer("tile")
def tile(call: Call) -> Bound:
    """The same elements again."""
    x, repetitions = call["x"], call.integers("reps") or ()
    low, high = (np.tile(end, [times if end.shape[axis] > 1 else 1 for axis, times in enumerate(repetitions)]) for end in (x.low, x.high))
    return Bound(call.shape(), low, high)


@transfer("pad")
def pad(call: Call) -> Bound:
    """The elements, and the constant where there is one."""
    x = call["x"]
    amounts = call.integers("pad") or ()
    axes = [x.rank - len(amounts) // 2 + pair for pair in range(len(amounts) // 2) if any(amounts[2 * pair : 2 * pair + 2])]
    low, high = (join(x.low, axes, least=True), join(x.high, axes)) if axes else (x.low, x.high)
    if call.text("mode", "constant") == "constant" and axes:
        value = call.get("constant_val")
        least, greatest = (0.0, 0.0) if value is None else (value.lowest, value.highest)
        low, high = np.minimum(low, least), np.maximum(high, greatest)
    return Bound(call.shape(), low, high)


@transfer("band_part")
def band_part(call: Call) -> Bound:
    """The elements, or 0."""
    x = call["x"]
    return Bound(x.shape, np.minimum(x.low, 0), np.maximum(x.high, 0))


@transfer("cumsum")
def cumsum(call: Call) -> Bound:
    """Between none and all of the elements on the axis are added up."""
    x = call["x"]
    axis = x.axis(call.integer("axis", 0))
    extent = x.extent(axis)
    times = extent / x.low.shape[axis], extent / x.high.shape[axis]
    low = np.minimum(x.low, 0).sum(axis, keepdims=True) * times[0]
    high = np.maximum(x.high, 0).sum(axis, keepdims=True) * times[1]
    rounding = extent * call.slack.relative * np.maximum(-low, high)
    return Bound(call.shape(), low - rounding, high + rounding)
