"""Elements picked by computed indices."""

import numpy as np

from coreflow.export.engine.bounds.bound import Bound
from coreflow.export.engine.bounds.registry import Call, transfer
from coreflow.export.engine.bounds.transfers.products import row_blocks


@transfer("gather")
def gather(call: Call) -> Bound:
    """Rows of a table: the least and greatest of those that the indices may name, element by element."""
    x, indices = call["x"], call["indices"]
    axis = x.axis(call.integer("axis", 0))
    batch = call.integer("batch_dims", 0)
    table = call.array("x")
    shape = call.shape()
    if table is not None and axis == 0 and batch == 0 and table.ndim > 1:
        first, last = int(max(indices.lowest, 0)), int(min(indices.highest, len(table) - 1))
        if indices.lowest < 0 or first > last:
            first, last = 0, len(table) - 1
        rows = table.reshape(len(table), -1)[first : last + 1]
        parts = [(block.min(0), block.max(0)) for _, block in row_blocks(rows)]
        low, high = np.min([part[0] for part in parts], 0), np.max([part[1] for part in parts], 0)
        ends = (1,) * indices.rank + table.shape[1:]
        return Bound(shape, low.reshape(ends), high.reshape(ends))
    low, high = x.low.min(axis, keepdims=True), x.high.max(axis, keepdims=True)
    new = low.shape[:axis] + (1,) * (indices.rank - batch) + low.shape[axis + 1 :]
    return Bound(shape, low.reshape(new), high.reshape(new))
