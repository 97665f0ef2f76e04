"""Elements read or written at computed places."""

import numpy as np

from coreflow.export.engine.bounds.bound import Bound, between, hull, join
from coreflow.export.engine.bounds.registry import Call, transfer
from coreflow.export.engine.bounds.transfers.moves import anywhere
from coreflow.export.engine.bounds.transfers.products import row_blocks


@transfer("gather")
def gather(call: Call) -> Bound:
    """Rows of a table: the least and greatest of those that the indices may name, element by element."""
    x, indices = call["x"], call["indices"]
    axis = x.axis(call.integer("axis", 0))
    batch = call.integer("batch_dims", 0)
    fetch, shape = call.fetch("x"), call.shape()
    if fetch is not None and axis == 0 and batch == 0 and x.rank > 1:
        table = fetch()
        first, last = int(max(indices.lowest, 0)), int(min(indices.highest, len(table) - 1))
        if indices.lowest < 0 or first > last:
            first, last = 0, len(table) - 1
        rows = table.reshape(len(table), -1)[first : last + 1]
        parts = [(block.min(0), block.max(0)) for _, block in row_blocks(rows)]
        low, high = np.min([part[0] for part in parts], 0), np.max([part[1] for part in parts], 0)
        ends = (1,) * indices.rank + table.shape[1:]
        return Bound(shape, low.reshape(ends), high.reshape(ends))
    low, high = join(x.low, (axis,), least=True), join(x.high, (axis,))
    new = low.shape[:axis] + (1,) * (indices.rank - batch) + low.shape[axis + 1 :]
    return Bound(shape, low.reshape(new), high.reshape(new))


@transfer("gather_along_axis")
def gather_along_axis(call: Call) -> Bound:
    """Elements of an axis."""
    x = call["x"]
    axis = (x.axis(call.integer("axis", 0)),)
    return Bound(call.shape(), join(x.low, axis, least=True), join(x.high, axis))


@transfer("gather_nd")
def gather_nd(call: Call) -> Bound:
    """Elements of x."""
    return anywhere(call["x"], call.shape())


@transfer("scatter", "scatter_along_axis", "scatter_nd")
def scatter(call: Call) -> Bound:
    """Put, the least or greatest of both; added, as many as there are updates; of products and quotients nothing is known."""
    data, updates, mode = call["data"], call["updates"], call.text("mode", "add")
    if mode in ("update", "max", "min"):
        return hull(data.shape, [data, anywhere(updates, data.shape)])
    if mode not in ("add", "sub"):
        return between(data.shape, -np.inf, np.inf)
    count = 1
    for axis in range(updates.rank):
        count *= updates.extent(axis)
    least, greatest = (updates.lowest, updates.highest) if mode == "add" else (-updates.highest, -updates.lowest)
    rounding = count * call.slack.relative * (data.largest + count * updates.largest)
    return Bound(data.shape, data.low + count * min(least, 0.0) - rounding, data.high + count * max(greatest, 0.0) + rounding)
