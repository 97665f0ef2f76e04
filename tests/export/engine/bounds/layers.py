"""Families of ops beyond arithmetic: convolutions, pools, norms by hand, recurrence, control flow, indexing, rearrangements."""

import math

import numpy as np

from coreflow.export.package.graph import Graph, Op, Value
from tests.export.engine.bounds.programs import Shape, Writer, constant, family, flag, shape_of, text, whole


@family
def more_functions(w: Writer) -> None:
    x = w.value()
    a, b = round(float(w.random.normal()), 2), round(float(w.random.normal()), 2)
    pair = {"alpha": constant(a), "beta": constant(b)}
    kind, arguments = w.one(
        [
            ("leaky_relu", {"alpha": constant(a)}),
            ("elu", {"alpha": constant(a)}),
            ("thresholded_relu", {"alpha": constant(a)}),
            ("clamped_relu", {"alpha": constant(a), "beta": constant(abs(b))}),
            ("linear_activation", pair),
            ("sigmoid_hard", pair),
            ("scaled_tanh", pair),
            ("clip", {"alpha": constant(min(a, b)), "beta": constant(max(a, b))}),
            ("threshold", {"alpha": constant(a)}),
            ("pow", {"y": constant(w.one([2.0, 3.0, 1.0]))}),
            ("mod", {"y": constant(abs(a) + 0.1)}),
            ("floor_div", {"y": constant(abs(a) + 0.1)}),
            ("exp2", {}),
            ("sinh", {}),
            ("cosh", {}),
        ]
    )
    w.emit(kind, {"x": x, **arguments}, shape_of(x))


@family
def parametric(w: Writer) -> None:
    x = w.value(least=3)
    channels = shape_of(x)[1]
    if w.whole(0, 1):
        w.emit("prelu", {"x": x, "alpha": constant(w.array(channels))}, shape_of(x))
        return
    arguments = {"mean": constant(w.array(channels)), "variance": constant(np.abs(w.array(channels)) + 0.1)}
    arguments |= {name: constant(w.array(channels)) for name in ("gamma", "beta") if w.whole(0, 1)}
    w.emit("batch_norm", {"x": x, "epsilon": constant(1e-3, "float32"), **arguments}, shape_of(x))


@family
def convolutions(w: Writer) -> None:
    rank = w.one([1, 2])
    x = w.value(rank + 2)
    shape = shape_of(x)
    groups = w.one([factor for factor in range(1, shape[1] + 1) if shape[1] % factor == 0])
    kernel = [w.whole(1, min(3, extent)) for extent in shape[2:]]
    strides = [w.whole(1, 2) for _ in kernel]
    pad_type = w.one(["valid", "custom"])
    pad = [w.whole(0, 1) for _ in range(2 * rank)] if pad_type == "custom" else [0] * 2 * rank
    results = groups * w.whole(1, 3)
    weight = constant(w.array(results, shape[1] // groups, *kernel))
    spatial = tuple((e + pad[2 * a] + pad[2 * a + 1] - kernel[a]) // strides[a] + 1 for a, e in enumerate(shape[2:]))
    settings = {"strides": whole(strides), "pad_type": text(pad_type), "pad": whole(pad), "groups": whole(groups)}
    bias = {"bias": constant(w.array(results))} if w.whole(0, 1) else {}
    w.emit("conv", {"x": x, "weight": weight, **settings, **bias}, (shape[0], results, *spatial))


@family
def channels_first(w: Writer) -> None:
    """Layer norm over channels, convolutions of 1 x 1, an activation, a convolution of 1 x 1."""
    fitting = [v for v in w.pool if len(shape_of(v)) == 4]
    x = w.one(fitting) if fitting else constant(w.array(1, 4, 1, 3))
    shape = shape_of(x)
    (y,) = w.emit(
        "layer_norm", {"x": x, "axes": whole([1]), "gamma": constant(w.array(shape[1])), "beta": constant(w.array(shape[1]))}, shape
    )
    for hidden in (w.whole(2, 6), shape[1]):
        weight = constant(w.array(hidden, shape_of(y)[1], 1, 1))
        (y,) = w.emit("conv", {"x": y, "weight": weight, "bias": constant(w.array(hidden))}, (shape[0], hidden, *shape[2:]))
        (y,) = w.emit(w.one(["gelu", "relu", "silu", "tanh"]), {"x": y}, shape_of(y))
    w.emit("reduce_l2_norm", {"x": y, "axes": whole([1]), "keep_dims": flag(True)}, (shape[0], 1, *shape[2:]))


@family
def pools(w: Writer) -> None:
    x = w.value(4)
    shape = shape_of(x)
    kernel = [w.whole(1, min(3, extent)) for extent in shape[2:]]
    pad_type = w.one(["valid", "custom"])
    pad = [min(w.whole(0, 1), k - 1) for k in kernel for _ in range(2)] if pad_type == "custom" else [0] * 4
    spatial = tuple(e + pad[2 * a] + pad[2 * a + 1] - kernel[a] + 1 for a, e in enumerate(shape[2:]))
    settings = {"kernel_sizes": whole(kernel), "strides": whole([1, 1]), "pad_type": text(pad_type), "pad": whole(pad)}
    w.emit(w.one(["max_pool", "avg_pool", "l2_pool"]), {"x": x, **settings}, (*shape[:2], *spatial))


@family
def transposed(w: Writer) -> None:
    x = w.value(3)
    shape = shape_of(x)
    kernel, stride, results = w.whole(1, 3), w.whole(1, 2), w.whole(1, 3)
    weight = constant(w.array(shape[1], results, kernel))
    length = (shape[2] - 1) * stride + kernel
    w.emit("conv_transpose", {"x": x, "weight": weight, "strides": whole([stride])}, (shape[0], results, length))


@family
def norms_by_hand(w: Writer) -> None:
    """x over the root of the mean of its squares, in the forms that converters write; behind it a factor and a linear."""
    x = w.value()
    shape = shape_of(x)
    axes, kept = whole([len(shape) - 1]), (*shape[:-1], 1)
    epsilon = w.one([1e-6, 1e-3, 0.1])
    form = w.one(["rsqrt", "root", "norm"])
    if form == "norm":
        (length,) = w.emit("reduce_l2_norm", {"x": x, "axes": axes, "keep_dims": flag(True)}, kept)
        (length,) = w.emit("maximum", {"x": length, "y": constant(epsilon)}, kept)
        (y,) = w.emit("real_div", {"x": x, "y": length}, shape)
    else:
        squaring = w.one([("mul", {"y": x}), ("square", {}), ("pow", {"y": constant(2.0)})])
        (squares,) = w.emit(squaring[0], {"x": x, **squaring[1]}, shape)
        (mean,) = w.emit(w.one(["reduce_mean", "reduce_sum"]), {"x": squares, "axes": axes, "keep_dims": flag(True)}, kept)
        (mean,) = w.emit("add", {"x": mean, "y": constant(epsilon)}, kept)
        if form == "rsqrt":
            (length,) = w.emit("rsqrt", {"x": mean, "epsilon": constant(1e-12, "float32")}, kept)
            (y,) = w.emit("mul", {"x": x, "y": length}, shape)
        else:
            (length,) = w.emit("sqrt", {"x": mean}, kept)
            (y,) = w.emit("real_div", {"x": x, "y": length}, shape)
    (y,) = w.emit("mul", {"x": y, "y": constant(w.array(shape[-1]))}, shape)
    w.emit("linear", {"x": y, "weight": constant(w.array(3, shape[-1]))}, (*shape[:-1], 3))


@family
def more_norms(w: Writer) -> None:
    x = w.value(4)
    shape = shape_of(x)
    kind = w.one(["instance_norm", "l2_norm", "local_response_norm"])
    extra = {"size": whole(w.one([1, 3]))} if kind == "local_response_norm" else {"epsilon": constant(1e-3, "float32")}
    w.emit(kind, {"x": x, **extra}, shape)


@family
def more_reductions(w: Writer) -> None:
    x = w.value()
    shape = shape_of(x)
    axes = sorted(set(w.random.integers(0, len(shape), w.whole(1, len(shape))).tolist()))
    result = tuple(1 if axis in axes else extent for axis, extent in enumerate(shape))
    kind = w.one(["reduce_l1_norm", "reduce_l2_norm", "reduce_sum_square", "reduce_log_sum_exp", "reduce_prod"])
    w.emit(kind, {"x": x, "axes": whole(axes), "keep_dims": flag(True)}, result)


@family
def recurrence(w: Writer) -> None:
    x = w.value(3)
    steps, batch, size = shape_of(x)
    hidden = w.whole(1, 3)
    kind, gates, states = w.one([("lstm", 4, 2), ("gru", 3, 1), ("rnn", 1, 1)])
    names = {"initial_h": constant(w.array(batch, hidden))}
    if kind == "lstm":
        names["initial_c"] = constant(w.array(batch, hidden))
    names["weight_ih"], names["weight_hh"] = constant(w.array(gates * hidden, size)), constant(w.array(gates * hidden, hidden))
    names["bias"] = constant(w.array(gates * hidden))
    every = bool(w.whole(0, 1))
    shapes = [(steps if every else 1, batch, hidden), *[(batch, hidden)] * states]
    w.emit(kind, {"x": x, **names, "output_sequence": flag(every)}, *shapes)


@family
def rearrangements(w: Writer) -> None:
    x = w.value()
    shape = shape_of(x)
    axis = w.whole(0, len(shape) - 1)
    kind = w.one(["reverse", "tile", "pad", "cumsum", "topk", "slice_update", "reduce_argmax"])
    if kind == "reverse":
        w.emit(kind, {"x": x, "axes": whole([axis])}, shape)
    elif kind == "tile":
        times = [w.whole(1, 2) for _ in shape]
        w.emit(kind, {"x": x, "reps": whole(times)}, tuple(extent * t for extent, t in zip(shape, times, strict=True)))
    elif kind == "pad":
        before, after = w.whole(0, 2), w.whole(0, 2)
        mode = w.one(["constant", "replicate"])
        extra = {"constant_val": constant(float(w.whole(-1, 1)))} if mode == "constant" else {}
        w.emit(kind, {"x": x, "pad": whole([before, after]), "mode": text(mode), **extra}, (*shape[:-1], shape[-1] + before + after))
    elif kind == "cumsum":
        w.emit(kind, {"x": x, "axis": whole(axis), "exclusive": flag(w.whole(0, 1)), "reverse": flag(w.whole(0, 1))}, shape)
    elif kind == "topk":
        kept = (*shape[:axis], 1, *shape[axis + 1 :])
        outputs = (Value(f"v{next(w.numbers)}", "float16", kept), Value(f"v{next(w.numbers)}", "int32", kept))
        w.ops.append(Op(kind, outputs[0].name, {"x": x, "k": whole(1), "axis": whole(axis)}, outputs))
        w.pool.append(outputs[0])
    elif kind == "reduce_argmax":
        kept = (*shape[:axis], 1, *shape[axis + 1 :])
        (place,) = w.emit(kind, {"x": x, "axis": whole(axis), "keep_dims": flag(True)}, kept, dtype="int32")
        w.emit("cast", {"x": place, "dtype": text("fp16")}, kept)
    else:
        begin, end = [0] * len(shape), list(shape)
        begin[axis] = w.whole(0, shape[axis] - 1)
        end[axis] = w.whole(begin[axis] + 1, shape[axis])
        update = constant(w.array(*(high - low for low, high in zip(begin, end, strict=True))))
        w.emit(kind, {"x": x, "update": update, "begin": whole(begin), "end": whole(end)}, shape)


@family
def computed_places(w: Writer) -> None:
    x = w.value()
    shape = shape_of(x)
    axis = w.whole(0, len(shape) - 1)
    kind = w.one(["gather", "gather_along_axis", "scatter_along_axis"])
    if kind == "gather":
        indices = whole(w.random.integers(0, shape[axis], w.whole(1, 3)))
        w.emit(kind, {"x": x, "indices": indices, "axis": whole(axis)}, (*shape[:axis], *shape_of(indices), *shape[axis + 1 :]))
        return
    indices = whole(w.random.integers(0, shape[axis], shape))
    if kind == "gather_along_axis":
        w.emit(kind, {"x": x, "indices": indices, "axis": whole(axis)}, shape)
        return
    mode = text(w.one(["add", "sub", "update", "max", "min", "mul"]))
    arguments: dict[str, Value | tuple[Value, ...]] = {
        "data": x,
        "indices": indices,
        "updates": constant(w.array(*shape)),
        "axis": whole(axis),
        "mode": mode,
    }
    w.emit(kind, arguments, shape)


@family
def einstein(w: Writer) -> None:
    x = w.value(4)
    b, c, h, q = shape_of(x)
    k = w.whole(1, 3)
    equation, shape, result = w.one([("bchq,bkhc->bkhq", (b, k, h, c), (b, k, h, q)), ("bchq,bhqk->bchk", (b, h, q, k), (b, c, h, k))])
    fitting = [v for v in w.pool if shape_of(v) == shape]
    y = w.one(fitting) if fitting else constant(w.array(*shape))
    w.emit("einsum", {"values": (x, y), "equation": text(equation)}, result)


@family
def fused_attention(w: Writer) -> None:
    x = w.value(4)
    shape = shape_of(x)
    length = w.whole(1, 4)
    key, value = (constant(w.array(*shape[:2], length, extent)) for extent in (shape[3], w.whole(1, 4)))
    mask = {"attn_mask": constant(w.one([0.0, -30.0]) * w.random.integers(0, 2, (shape[2], length)))} if w.whole(0, 1) else {}
    w.emit("scaled_dot_product_attention", {"query": x, "key": key, "value": value, **mask}, (*shape[:3], shape_of(value)[-1]))


@family
def branches(w: Writer) -> None:
    """One of two blocks, by the sum of a value."""
    x = w.value()
    shape = shape_of(x)
    (total,) = w.emit("reduce_sum", {"x": x, "axes": whole(range(len(shape))), "keep_dims": flag(False)}, ())
    w.pool.remove(total)
    (pred,) = w.emit("less", {"x": total, "y": constant(0.0)}, (), dtype="bool")
    blocks = tuple(_block(w, f"block{i}", (), x, shape) for i in range(2))
    outputs = (Value(f"v{next(w.numbers)}", "float16", shape),)
    w.ops.append(Op("cond", outputs[0].name, {"pred": pred}, outputs, blocks))
    w.pool.append(outputs[0])


def _block(w: Writer, name: str, inputs: tuple[Value, ...], x: Value, shape: Shape) -> Graph:
    result = Value(f"v{next(w.numbers)}", "float16", shape)
    op = Op(w.one(["add", "mul", "maximum"]), result.name, {"x": x, "y": constant(w.one([-1.5, 0.5, 2.0]))}, (result,))
    return Graph(name, "CoreML8", inputs, (result,), (op,), ())


@family
def loops(w: Writer) -> None:
    """A few rounds of one op, counted."""
    x = w.value()
    shape, rounds = shape_of(x), w.whole(0, 4)
    counter, variable = Value(f"v{next(w.numbers)}", "int32", ()), Value(f"v{next(w.numbers)}", "float16", shape)
    more, onward = Value(f"v{next(w.numbers)}", "bool", ()), Value(f"v{next(w.numbers)}", "int32", ())
    less = Op("less", more.name, {"x": counter, "y": whole(rounds)}, (more,))
    condition = Graph("condition", "CoreML8", (counter, variable), (more,), (less,), ())
    body = _block(w, "body", (counter, variable), variable, shape)
    count = Op("add", onward.name, {"x": counter, "y": whole(1)}, (onward,))
    body = Graph("body", "CoreML8", body.inputs, (onward, *body.outputs), (count, *body.ops), ())
    outputs = (Value(f"v{next(w.numbers)}", "int32", ()), Value(f"v{next(w.numbers)}", "float16", shape))
    w.ops.append(Op("while_loop", outputs[0].name, {"loop_vars": (whole(0), x)}, outputs, (condition, body)))
    w.pool.append(outputs[1])


@family
def depths(w: Writer) -> None:
    block = 2
    x = constant(w.array(1, 4, 2, 2)) if not (fitting := [v for v in w.pool if shape_of(v) == (1, 4, 2, 2)]) else w.one(fitting)
    kind = w.one(["depth_to_space", "space_to_depth", "pixel_shuffle"])
    shape = (1, 1, 4, 4) if kind != "space_to_depth" else (1, 16, 1, 1)
    name = "upscale_factor" if kind == "pixel_shuffle" else "block_size"
    assert math.prod(shape) == math.prod(shape_of(x))
    w.emit(kind, {"x": x, name: whole(block)}, shape)
