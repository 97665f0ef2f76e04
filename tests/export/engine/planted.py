"""Programs with one planted fault, as coremltools saves them, and their healthy twins: by rule, with the place and the chips."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coreflow.export.engine.chips import CHIPS
from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.graph import Program
from coreflow.export.package.mlpackage import read_program

Shape = tuple[int, ...]
Build = Callable[..., Any]  # the builder and the inputs
OLDER, NEWER = ("M1", "M2", "M3"), ("M4", "M5", "M6")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A fault at the op named ``here`` (or of the function, where ``op`` is empty) on ``chips`` and no others, and its twin without.

    >>> Planted(inputs={"x": (1, 64)}, fault=lambda mb, x: mb.softplus(x=x, name="here"), twin=lambda mb, x: mb.relu(x=x), chips=("M4",))
    """

    inputs: Mapping[str, Shape | tuple[Shape, str]]  # the shape of an fp16 input, or shape and type
    fault: Build
    twin: Build
    chips: tuple[str, ...] = CHIPS
    op: str = "here"
    twin_inputs: Mapping[str, Shape | tuple[Shape, str]] | None = None
    target: str = "iOS18"


def saved(inputs: Mapping[str, Any], build: Build, package: Path, target: str = "iOS18") -> Program:
    """The program that ``build`` makes of the inputs, saved by coremltools without any of its passes and read again."""
    ct = quiet_coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    kinds = {"float16": types.fp16, "float32": types.fp32, "int32": types.int32}
    given = [value if isinstance(value[-1], str) else (value, "float16") for value in inputs.values()]
    specs = [mb.TensorSpec(shape, kinds[dtype]) for shape, dtype in given]
    opset = getattr(ct.target, target)
    # The builder names inputs after the arguments of the function.
    arguments = ", ".join(inputs)
    function = eval(f"lambda {arguments}: build(mb, {arguments})", {"build": build, "mb": mb})
    program = mb.program(input_specs=specs, opset_version=opset)(function)
    ct.convert(
        program,
        minimum_deployment_target=opset,
        pass_pipeline=ct.PassPipeline.EMPTY,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    ).save(str(package))
    return read_program(package)


def half(*shape: int) -> Any:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float16).reshape(shape)


def _conv(mb: Any, x: Any, *kernel: int, **settings: Any) -> Any:
    channels = x.shape[1] // settings.get("groups", 1)
    return mb.conv(x=x, weight=half(x.shape[1], channels, *kernel), name="here", **{"pad_type": "same", **settings})


def _attention(mb: Any, query: Any, key: Any) -> Any:
    return mb.scaled_dot_product_attention(query=query, key=key, value=key, name="here")


def _masked(mb: Any, x: Any, least: float) -> Any:
    return mb.softmax(x=mb.add(x=x, y=np.array([0, least], np.float16), name="here"), axis=-1)


def _rms(mb: Any, x: Any, epsilon: float, *, is_centred: bool = False) -> Any:
    if is_centred:
        x = mb.sub(x=x, y=mb.reduce_mean(x=x, axes=[-1], keep_dims=True))
    mean = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[-1], keep_dims=True)
    guarded = mb.add(x=mean, y=np.float16(epsilon), name="guarded")
    return mb.mul(x=x, y=mb.rsqrt(x=guarded, epsilon=np.float16(0.0), name="here"))


def _norm(mb: Any, x: Any, epsilon: float = 1e-5) -> Any:
    return mb.layer_norm(x=x, axes=[-1], epsilon=np.float16(epsilon), name="here")


def _joined(mb: Any, x: Any, begins: Sequence[int]) -> Any:
    parts = [mb.slice_by_index(x=x, begin=[0, begin], end=[2, begin + 32]) for begin in begins]
    return mb.concat(values=parts, axis=1, name="here")


def _guarded(mb: Any, table: Any, places: Any) -> Any:
    is_counted = mb.greater_equal(x=places, y=np.int32(0))
    shifted = mb.add(x=places, y=np.int32(table.shape[0]))
    return mb.gather(x=table, indices=mb.select(cond=is_counted, a=places, b=shifted, name="here"), axis=0)


def _int8(mb: Any, x: Any) -> Any:
    data, scale = np.ones((64, 64), np.int8), np.full((64, 1), 0.5, np.float16)
    return mb.linear(x=x, weight=mb.constexpr_blockwise_shift_scale(data=data, scale=scale), name="here")


def as_type(array: Any, kind: str) -> Any:
    """The numbers as coremltools holds those of less than a byte."""
    from coremltools.converters.mil.mil import types

    return array.astype(types.nptype_from_builtin(types.string_to_builtin(kind)))


def _palette(mb: Any, x: Any, bits: int) -> Any:
    indices = as_type(np.zeros((64, 64), np.uint8), f"uint{bits}")
    return mb.linear(x=x, weight=mb.constexpr_lut_to_dense(indices=indices, lut=half(1, 1, 2**bits, 1), name="here"))


def _int4(mb: Any, x: Any, blocks: int) -> Any:
    data, scale = as_type(np.ones((64, 64), np.int8), "int4"), np.full((64, blocks), 0.5, np.float16)
    return mb.linear(x=x, weight=mb.constexpr_blockwise_shift_scale(data=data, scale=scale, name="here"))


ROW: Mapping[str, Shape] = {"x": (2, 64)}
IMAGE: Mapping[str, Shape] = {"x": (1, 64, 32, 32)}
PLANTED: dict[str, list[Planted]] = {
    "softplus": [
        Planted(inputs=ROW, fault=lambda mb, x: mb.softplus(x=x, name="here"), twin=lambda mb, x: mb.relu(x=x), chips=("M4", "M5")),
        Planted(
            inputs=ROW,
            fault=lambda mb, x: mb.softplus(x=mb.abs(x=x), name="here"),
            twin=lambda mb, x: mb.softplus(x=mb.mul(x=mb.abs(x=x), y=np.float16(-1))),
            chips=("M4", "M5"),
        ),
        Planted(
            inputs=ROW,
            fault=lambda mb, x: mb.softplus(x=mb.minimum(x=x, y=np.float16(11)), name="here"),
            twin=lambda mb, x: mb.softplus(x=mb.clip(x=x, alpha=np.float16(-10), beta=np.float16(10))),
            chips=("M4", "M5"),
        ),
    ],
    "log-sum-exp": [
        Planted(
            inputs=ROW,
            fault=lambda mb, x: mb.reduce_log_sum_exp(x=x, axes=[-1], name="here"),
            twin=lambda mb, x: mb.reduce_log_sum(x=x, axes=[-1]),
        )
    ],
    "fp16-overflow": [
        Planted(inputs=ROW, fault=lambda mb, x: mb.square(x=x, name="here"), twin=lambda mb, x: mb.square(x=mb.tanh(x=x))),
    ],
    "sum-overflow": [
        Planted(
            inputs=ROW,
            fault=lambda mb, x: mb.linear(x=x, weight=half(4, 64), name="here"),
            twin=lambda mb, x: mb.linear(x=mb.tanh(x=x), weight=half(4, 64)),
        )
    ],
    "square-overflow": [
        Planted(
            inputs=ROW,
            fault=lambda mb, x: mb.layer_norm(x=x, axes=[-1], name="here"),
            twin=lambda mb, x: mb.layer_norm(x=mb.tanh(x=x), axes=[-1]),
        )
    ],
    "sin-cos": [Planted(inputs=ROW, fault=lambda mb, x: mb.cos(x=x, name="here"), twin=lambda mb, x: mb.tanh(x=x), chips=("M2",))],
    "never-on-engine": [
        Planted(
            inputs=ROW,
            fault=lambda mb, x: mb.cumsum(x=x, axis=1, name="here"),
            twin=lambda mb, x: mb.matmul(x=x, y=np.tril(np.ones((64, 64), np.float16))),
        ),
        Planted(inputs=ROW, fault=lambda mb, x: mb.sin(x=x, name="here"), twin=lambda mb, x: mb.relu(x=x), chips=("M1",)),
        Planted(inputs=ROW, fault=lambda mb, x: mb.topk(x=x, k=5, name="here")[0], twin=lambda mb, x: mb.relu(x=x), chips=OLDER),
        Planted(
            inputs=IMAGE,
            fault=lambda mb, x: mb.gather(x=x, indices=np.arange(8, dtype=np.uint16), axis=1, name="here"),
            twin=lambda mb, x: mb.slice_by_index(x=x, begin=[0, 0, 0, 0], end=[1, 8, 32, 32]),
            chips=("M1",),
        ),
    ],
    "fp32-op": [
        Planted(
            inputs={"x": ((2, 64), "float32")},
            fault=lambda mb, x: mb.tanh(x=x, name="here"),
            twin=lambda mb, x: mb.cast(x=mb.tanh(x=mb.cast(x=x, dtype="fp16")), dtype="fp32"),
        )
    ],
    "integer-work": [
        Planted(
            inputs={"x": ((2, 64), "int32")},
            twin_inputs=ROW,
            fault=lambda mb, x: mb.add(x=x, y=np.int32(1), name="here"),
            twin=lambda mb, x: mb.add(x=x, y=np.float16(1)),
        )
    ],
    "run-time-index": [
        Planted(
            inputs={"x": (64, 64), "places": ((4,), "int32")},
            fault=lambda mb, x, places: mb.gather(x=x, indices=mb.cast(x=places, dtype="int16"), axis=0, name="here"),
            twin=lambda mb, x, places: mb.gather(x=x, indices=np.arange(4, dtype=np.int16), axis=0),
            chips=("M2", "M3", *NEWER),  # an M1 has no gather at all
        )
    ],
    "gather-guard": [
        Planted(
            inputs={"x": (64, 64), "places": ((4,), "int32")},
            fault=_guarded,
            twin=lambda mb, x, places: mb.gather(
                x=x, indices=mb.select(cond=mb.greater(x=places, y=np.int32(9)), a=places, b=places), axis=0
            ),
        )
    ],
    "rank-5": [
        Planted(
            inputs={"x": (2, 2, 2, 32, 32)},
            twin_inputs={"x": (2, 4, 32, 32)},
            fault=lambda mb, x: mb.matmul(x=x, y=x, name="here"),
            twin=lambda mb, x: mb.matmul(x=x, y=x),
        )
    ],
    "extent": [
        Planted(
            inputs={"x": (1, 20000)},
            twin_inputs={"x": (1, 16384)},
            fault=lambda mb, x: mb.relu(x=x, name="here"),
            twin=lambda mb, x: mb.relu(x=x),
            chips=OLDER,
        ),
        Planted(
            inputs={"x": (65537, 8, 2)},
            twin_inputs={"x": (65536, 8, 2)},
            fault=lambda mb, x: mb.relu(x=x, name="here"),
            twin=lambda mb, x: mb.relu(x=x),
        ),
    ],
    "matmul-inner": [
        Planted(
            inputs={"x": (1, 40000)},
            twin_inputs={"x": (1, 32768)},
            fault=lambda mb, x: mb.matmul(x=x, y=half(40000, 8), name="here"),
            twin=lambda mb, x: mb.matmul(x=x, y=half(32768, 8)),
            chips=NEWER,  # for the others the axis is too long already
        )
    ],
    "conv-kernel": [
        Planted(inputs=IMAGE, fault=lambda mb, x: _conv(mb, x, 1, 14), twin=lambda mb, x: _conv(mb, x, 1, 13), chips=OLDER),
        Planted(inputs=IMAGE, fault=lambda mb, x: _conv(mb, x, 1, 16), twin=lambda mb, x: _conv(mb, x, 3, 3)),
    ],
    "pool-window": [
        Planted(
            inputs=IMAGE,
            fault=lambda mb, x: mb.max_pool(x=x, kernel_sizes=[1, 9], strides=[1, 1], pad_type="same", name="here"),
            twin=lambda mb, x: mb.max_pool(x=x, kernel_sizes=[9, 1], strides=[1, 1], pad_type="same"),
            chips=("M3", *NEWER),  # the published window of older chips is wider
        )
    ],
    "odd-stride": [
        Planted(
            inputs=IMAGE, fault=lambda mb, x: _conv(mb, x, 3, 3, strides=[5, 5]), twin=lambda mb, x: _conv(mb, x, 3, 3, strides=[2, 2])
        ),
        Planted(
            inputs=IMAGE, fault=lambda mb, x: _conv(mb, x, 3, 3, strides=[1, 2]), twin=lambda mb, x: _conv(mb, x, 3, 3, strides=[6, 6])
        ),
    ],
    "odd-dilation": [
        Planted(
            inputs=IMAGE, fault=lambda mb, x: _conv(mb, x, 3, 3, dilations=[4, 4]), twin=lambda mb, x: _conv(mb, x, 3, 3, dilations=[3, 3])
        )
    ],
    "depthwise-column": [
        Planted(
            inputs={"x": (1, 64, 1, 3)},
            fault=lambda mb, x: _conv(mb, x, 1, 3, groups=64, pad_type="valid"),
            twin=lambda mb, x: _conv(mb, x, 1, 2, groups=64, pad_type="valid"),
        )
    ],
    "long-compile": [
        Planted(inputs=IMAGE, fault=lambda mb, x: _conv(mb, x, 13, 13), twin=lambda mb, x: _conv(mb, x, 12, 12), chips=("M4", "M6"))
    ],
    "conv-transpose": [
        Planted(
            inputs=IMAGE,
            fault=lambda mb, x: mb.conv_transpose(x=x, weight=half(64, 8, 2, 2), strides=[2, 2], name="here"),
            twin=lambda mb, x: mb.conv_transpose(x=x, weight=half(64, 8, 2, 2), strides=[1, 1]),
        )
    ],
    "transpose-pair": [
        Planted(
            inputs=IMAGE,
            fault=lambda mb, x: mb.transpose(x=mb.transpose(x=x, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2], name="here"),
            twin=lambda mb, x: mb.transpose(x=mb.relu(x=x), perm=[0, 2, 3, 1]),
        )
    ],
    "reshape-of-rows": [
        Planted(
            inputs={"x": (1, 32, 64)},
            fault=lambda mb, x: mb.reshape(x=x, shape=[1, 32, 2, 32], name="here"),
            twin=lambda mb, x: mb.reshape(x=x, shape=[1, 4, 8, 64]),
        )
    ],
    "fused-attention": [
        Planted(
            inputs={"query": (1, 8, 128, 64), "key": (1, 8, 128, 64)},
            fault=_attention,
            twin=lambda mb, query, key: mb.softmax(x=mb.matmul(x=query, y=key, transpose_y=True)),
        )
    ],
    "mask-of-infinity": [
        Planted(inputs={"x": (4, 2)}, fault=lambda mb, x: _masked(mb, x, -np.inf), twin=lambda mb, x: _masked(mb, x, -1e4)),
        Planted(inputs={"x": (4, 2)}, fault=lambda mb, x: _masked(mb, x, -65504), twin=lambda mb, x: mb.add(x=x, y=np.float16(-65504))),
    ],
    "small-epsilon": [Planted(inputs=ROW, fault=lambda mb, x: _rms(mb, x, 1e-6), twin=lambda mb, x: _rms(mb, x, 1e-3), op="guarded")],
    "small-norm-epsilon": [Planted(inputs=ROW, fault=lambda mb, x: _norm(mb, x, 1e-7), twin=_norm)],
    "plain-rms-norm": [Planted(inputs=ROW, fault=lambda mb, x: _rms(mb, x, 1e-3), twin=_norm)],
    "layer-norm-by-hand": [
        Planted(inputs=ROW, fault=lambda mb, x: _rms(mb, x, 1e-3, is_centred=True), twin=lambda mb, x: _rms(mb, x, 1e-3))
    ],
    "layer-norm-size": [
        Planted(inputs={"x": (512, 1024)}, twin_inputs={"x": (512, 1023)}, fault=_norm, twin=_norm, chips=("M1", "M2")),
        Planted(inputs={"x": (4, 10240)}, twin_inputs={"x": (4, 10239)}, fault=_norm, twin=_norm, chips=("M5",)),
    ],
    "local-response-norm": [
        Planted(
            inputs={"x": (1, 16, 8, 8)},
            twin_inputs={"x": (1, 15, 8, 8)},
            fault=lambda mb, x: mb.local_response_norm(x=x, size=3, name="here"),
            twin=lambda mb, x: mb.local_response_norm(x=x, size=3),
        )
    ],
    "lost-factor": [
        Planted(
            inputs=ROW,
            fault=lambda mb, x: mb.mul(x=mb.floor(x=x), y=np.float16(3), name="here"),
            twin=lambda mb, x: mb.add(x=mb.mul(x=mb.floor(x=x), y=half(2, 64)), y=np.float16(3)),
            chips=("M5",),
        )
    ],
    "round-of-large": [
        Planted(inputs=ROW, fault=lambda mb, x: mb.round(x=x, name="here"), twin=lambda mb, x: mb.floor(x=x), chips=("M5",))
    ],
    "zero-product": [
        Planted(
            inputs=ROW,
            fault=lambda mb, x: mb.mul(x=mb.reduce_sum(x=x, axes=[-1], keep_dims=True), y=np.float16(0), name="here"),
            twin=lambda mb, x: mb.mul(x=mb.relu(x=x), y=np.float16(0)),
            chips=("M5",),
        )
    ],
    "slice-gain": [
        Planted(
            inputs=ROW,
            fault=lambda mb, x: mb.slice_by_index(x=x, begin=[0, -32], end=[2, 64], name="here"),
            twin=lambda mb, x: mb.slice_by_index(x=x, begin=[1, 0], end=[2, 32]),
            chips=("M1", "M2"),
        )
    ],
    "joined-slices": [
        Planted(inputs=ROW, fault=lambda mb, x: _joined(mb, x, (8, 32)), twin=lambda mb, x: _joined(mb, x, (0, 32)), chips=OLDER)
    ],
    "int8-weights": [Planted(inputs=ROW, fault=_int8, twin=lambda mb, x: mb.linear(x=x, weight=half(64, 64)), chips=("M1", "M2", "M5"))],
    "ragged-rows": [
        Planted(
            inputs={"x": (1, 64, 32, 1)},
            twin_inputs=IMAGE,
            fault=lambda mb, x: mb.reshape(x=x, shape=[64, 32]),
            twin=lambda mb, x: mb.relu(x=x),
            op="",
        )
    ],
    "fp32-door": [
        Planted(
            inputs={"x": ((2, 64), "float32")},
            twin_inputs=ROW,
            fault=lambda mb, x: mb.relu(x=mb.cast(x=x, dtype="fp16")),
            twin=lambda mb, x: mb.relu(x=x),
            op="",
        )
    ],
    "slow-on-engine": [
        Planted(inputs=ROW, fault=lambda mb, x: mb.topk(x=x, k=5, name="here")[0], twin=lambda mb, x: mb.relu(x=x), chips=("M4",))
    ],
    "small-program": [
        Planted(
            inputs={"x": (1, 64)},
            twin_inputs={"x": (4096, 4096)},
            fault=lambda mb, x: mb.linear(x=x, weight=half(64, 64)),
            twin=lambda mb, x: mb.linear(x=x, weight=half(64, 4096)),
            op="",
        )
    ],
    "int4-blocks": [Planted(inputs=ROW, fault=lambda mb, x: _int4(mb, x, 2), twin=lambda mb, x: _int4(mb, x, 1))],
    "palette-bits": [
        Planted(inputs=ROW, fault=lambda mb, x: _palette(mb, x, 2), twin=lambda mb, x: _palette(mb, x, 4)),
        Planted(inputs=ROW, fault=lambda mb, x: _palette(mb, x, 3), twin=lambda mb, x: _palette(mb, x, 4), chips=("M1",)),
    ],
    "int8-activations": [
        Planted(
            inputs=ROW,
            fault=lambda mb, x: mb.dequantize(
                input=mb.quantize(input=x, scale=np.float16(0.5), output_dtype="int8", name="here"), scale=np.float16(0.5)
            ),
            twin=lambda mb, x: mb.relu(x=x),
            chips=OLDER,
        )
    ],
    "square-in-front": [
        Planted(
            inputs={"x": (2, 100)},
            twin_inputs=ROW,
            fault=lambda mb, x: mb.tanh(x=mb.square(x=x, name="here")),
            twin=lambda mb, x: mb.tanh(x=mb.square(x=x)),
            chips=("M5",),
        )
    ],
    "gelu-table": [
        Planted(
            inputs=ROW, fault=lambda mb, x: mb.gelu(x=x, mode="EXACT", name="here"), twin=lambda mb, x: mb.relu(x=x), chips=("M1", "M6")
        )
    ],
    "silu-table": [Planted(inputs=ROW, fault=lambda mb, x: mb.silu(x=x, name="here"), twin=lambda mb, x: mb.sigmoid(x=x), chips=("M6",))],
    "open-shape": [
        Planted(inputs=ROW, fault=lambda mb, x: mb.cast(x=mb.non_zero(x=x, name="here"), dtype="fp16"), twin=lambda mb, x: mb.relu(x=x))
    ],
}
