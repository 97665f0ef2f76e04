"""Convolutions, pools and batch norm over (B, C, spatial...)."""

import math

import numpy as np

from coreflow.export.engine.bounds.bound import Bound, UnboundedError, full, hull, join, middle_and_reach
from coreflow.export.engine.bounds.registry import Call, transfer
from coreflow.export.engine.bounds.transfers.products import CommonBall, common_ball, contracted, row_blocks
from coreflow.models.arrays import Array, Floats


def _is_padded(call: Call) -> bool:
    kind = call.text("pad_type", "valid")
    return kind.startswith("same") or (kind == "custom" and any(call.integers("pad") or ()))


def _constants(call: Call) -> tuple[Array, Floats | None]:
    weight, bias = call.array("weight"), call.array("bias")
    if weight is None or ("bias" in call.op.inputs and bias is None):
        raise UnboundedError("the weight is computed")
    return weight, None if bias is None else bias.astype(np.float64).reshape(-1)


@transfer("conv")
def conv(call: Call) -> Bound:
    """A kernel of 1 is a linear over channels; of others every tap is one, and its pixel may lie in the padding."""
    x, groups = call["x"], call.integer("groups", 1)
    weight, bias = _constants(call)
    if groups == 1 and math.prod(weight.shape[2:]) == 1 and not _is_padded(call):
        strides = call.integers("strides") or (1,)
        result = contracted(call, x, lambda: _matrix(call), bias, axis=1)
        places = result.rank - 2
        if max(strides) == 1:
            return result
        low, high = (join_spatial(end, least=least) for end, least in ((result.low, True), (result.high, False)))
        return Bound(call.shape(), low, high, rule=result.rule if places else None)
    low, high = _by_taps(call, x, weight, bias, groups)
    return Bound(call.shape(), low, high)


def _matrix(call: Call) -> Array:
    weight = _constants(call)[0]
    return weight.reshape(weight.shape[:2])


def join_spatial(array: Floats, *, least: bool) -> Floats:
    """One bound for all places."""
    return join(array, range(2, array.ndim), least) if array.ndim > 2 else array


def _by_taps(call: Call, x: Bound, weight: Array, bias: Floats | None, groups: int) -> tuple[Floats, Floats]:
    """Ends (1, C_out, 1...) of a convolution of any kernel: each row of the weight is C_in / groups x taps."""
    channels, taps = x.extent(1), math.prod(weight.shape[2:])
    low, high = (join(join_spatial(full(end, 1, channels), least=least), (0,), least) for end, least in ((x.low, True), (x.high, False)))
    low, high = low.reshape(-1), high.reshape(-1)
    ball = common_ball(x.ball(1), channels) if groups == 1 else None
    if _is_padded(call):
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    middle, reach = middle_and_reach(low, high)
    rows = weight.reshape(groups, len(weight) // groups, weight.shape[1], taps)
    offset = np.zeros(len(weight)) if bias is None else bias
    ends = []
    for group in range(groups):
        part = slice(group * weight.shape[1], (group + 1) * weight.shape[1])
        sums = [
            _tap_sums(block.reshape(len(block), weight.shape[1], taps), middle[part], reach[part], ball)
            for _, block in row_blocks(rows[group].reshape(len(rows[group]), -1))
        ]
        ends.append([np.concatenate(parts) for parts in zip(*sums, strict=True)])
    least, greatest, partial = (np.concatenate(parts) for parts in zip(*ends, strict=True))
    slack = weight.shape[1] * taps * call.slack.product + 1e-12 * (partial + np.abs(offset))
    call.note("sum", float(np.max(partial + np.abs(offset) + slack, initial=0.0)))
    shape = [len(weight) if axis == 1 else 1 for axis in range(x.rank)]
    return (least + offset - slack).reshape(shape), (greatest + offset + slack).reshape(shape)


def _tap_sums(block: Floats, middle: Floats, reach: Floats, ball: CommonBall | None) -> tuple[Floats, Floats, Floats]:
    """Least, greatest and largest partial sum of rows (R, C, taps), without the bias."""
    magnitude = np.abs(block)
    centre = np.einsum("rct,c->r", block, middle)
    around = np.einsum("rct,c->r", magnitude, reach)
    partial = np.einsum("rct,c->r", magnitude, np.abs(middle) + reach)
    least, greatest = centre - around, centre + around
    if ball is not None:  # of every pixel; one in the padding is 0
        lengths = np.square(block * ball.scale[:, None]).reshape(len(block), len(ball.radius), -1, block.shape[2]).sum(2)
        around = np.einsum("rbt,b->r", np.sqrt(lengths), ball.radius) + np.einsum("rct,c->r", magnitude, ball.error)
        centres = np.einsum("rct,c->rt", block, ball.centre)
        least = np.maximum(least, np.minimum(centres, 0).sum(1) - around)
        greatest = np.minimum(greatest, np.maximum(centres, 0).sum(1) + around)
        partial = np.minimum(partial, np.einsum("rct,c->r", magnitude, np.abs(ball.centre)) + around)
    return least, greatest, partial


@transfer("conv_transpose")
def conv_transpose(call: Call) -> Bound:
    """Each result sums some taps of every channel: between none and all of them."""
    x, groups = call["x"], call.integer("groups", 1)
    weight, bias = _constants(call)  # (C_in, C_out / groups, kernel...)
    channels = x.extent(1)
    low, high = (join(join_spatial(full(end, 1, channels), least=least), (0,), least) for end, least in ((x.low, True), (x.high, False)))
    magnitude = np.maximum(np.abs(low), np.abs(high)).reshape(groups, channels // groups, 1)
    rows = np.abs(weight.astype(np.float64)).reshape(groups, channels // groups, weight.shape[1], -1).sum(-1)
    partial = (rows * magnitude).sum(1).reshape(-1)
    offset = np.zeros(len(partial)) if bias is None else bias
    slack = channels // groups * math.prod(weight.shape[2:]) * call.slack.product + 1e-12 * (partial + np.abs(offset))
    call.note("sum", float(np.max(partial + np.abs(offset) + slack, initial=0.0)))
    shape = [len(partial) if axis == 1 else 1 for axis in range(x.rank)]
    return Bound(call.shape(), (offset - partial - slack).reshape(shape), (offset + partial + slack).reshape(shape))


@transfer("batch_norm")
def batch_norm(call: Call) -> Bound:
    """A factor and an offset a channel."""
    x = call["x"]
    mean, variance = call.array("mean"), call.array("variance")
    if mean is None or variance is None:
        raise UnboundedError("the statistics are computed")
    shape = [-1 if axis == 1 else 1 for axis in range(x.rank)]
    gamma, beta = (
        np.full(1, default) if (array := call.array(name)) is None else array.astype(np.float64)
        for name, default in (("gamma", 1.0), ("beta", 0.0))
    )
    factor = gamma / np.sqrt(variance.astype(np.float64) + call.number("epsilon", 1e-5))
    offset = beta - mean.astype(np.float64) * factor
    factor, offset = (np.broadcast_to(array, mean.shape).reshape(shape) for array in (factor, offset))
    slack = 4 * call.slack.relative * (np.abs(factor) * x.magnitude + np.abs(offset))
    one, other = factor * x.low + offset, factor * x.high + offset
    return Bound(x.shape, np.minimum(one, other) - slack, np.maximum(one, other) + slack)


@transfer("max_pool", "avg_pool", "l2_pool")
def pool(call: Call) -> Bound:
    """Of an extreme or a mean what holds for the channel, with 0 where padding counts; a length is at most that of a full window."""
    x = call["x"]
    low, high = (join_spatial(end, least=least) for end, least in ((x.low, True), (x.high, False)))
    if call.op.type == "l2_pool":
        length = np.maximum(np.abs(low), np.abs(high)) * math.sqrt(math.prod(call.integers("kernel_sizes") or ()))
        return Bound(call.shape(), 0 * length, length * (1 + call.slack.relative * 8))
    if call.op.type == "avg_pool":
        rounding = 8 * call.slack.relative * np.maximum(np.abs(low), np.abs(high))
        if _is_padded(call) or call.flag("ceil_mode"):
            low, high = np.minimum(low, 0), np.maximum(high, 0)
        low, high = low - rounding, high + rounding
    return Bound(call.shape(), low, high)


@transfer("upsample_nearest_neighbor", "resize_nearest_neighbor", "upsample_bilinear", "resize_bilinear")
def resize(call: Call) -> Bound:
    """Pixels, or means of pixels."""
    x = call["x"]
    low, high = (join(end, (x.rank - 2, x.rank - 1), least) for end, least in ((x.low, True), (x.high, False)))
    return hull(call.shape(), [Bound(call.shape(), low, high)])
