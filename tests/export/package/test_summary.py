"""Figures of a package: every count against a closed form, or against coremltools' own types."""

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.graph import Graph, Op, Value
from coreflow.export.package.mlpackage import read_program
from coreflow.export.package.summary import count_multiply_adds, summarize


def op_graph(kind: str, shapes: dict[str, Any], result: tuple[int | None, ...], **constants: Any) -> Graph:
    """A graph of one op with tensors of these shapes."""

    def value(name: str, shape: Any) -> Any:
        return tuple(value(name, extents) for extents in shape) if isinstance(shape, list) else Value(name, "float16", shape)

    inputs = {name: value(name, shape) for name, shape in shapes.items()}
    for name, data in constants.items():
        inputs[name] = Value(name, "bool", (), data=data if isinstance(data, str) else np.asarray(data))
    output = Value("y", "float16", result)
    return Graph("main", "CoreML8", (), (output,), (Op(kind, "op", inputs, (output,)),), ())


B, S, INNER, OUTER, H, W, K = 2, 5, 8, 12, 6, 7, 3
LSTM = {"x": (S, B, INNER), "weight_ih": (4 * H, INNER), "weight_hh": (4 * H, H), "bias": (4 * H,)}
BOTH_WAYS = LSTM | {"weight_ih_back": (4 * H, INNER), "weight_hh_back": (4 * H, H)}
GRU = {"x": (S, B, INNER), "weight_ih": (3 * H, INNER), "weight_hh": (3 * H, H)}
IMAGE = (B, INNER, H, W)
CASES: list[tuple[str, Graph, int]] = [
    ("linear", op_graph("linear", {"x": (B, S, INNER), "weight": (OUTER, INNER)}, (B, S, OUTER)), B * S * INNER * OUTER),
    ("matmul", op_graph("matmul", {"x": (B, S, INNER), "y": (B, INNER, OUTER)}, (B, S, OUTER)), B * S * INNER * OUTER),
    (
        "matmul, x transposed",
        op_graph("matmul", {"x": (B, INNER, S), "y": (B, INNER, OUTER)}, (B, S, OUTER), transpose_x=True),
        B * S * INNER * OUTER,
    ),
    ("matmul, y a vector", op_graph("matmul", {"x": (S, INNER), "y": (INNER,)}, (S,)), S * INNER),
    ("conv", op_graph("conv", {"x": IMAGE, "weight": (OUTER, INNER, K, K)}, (B, OUTER, H, W)), B * OUTER * H * W * INNER * K * K),
    (
        "depthwise conv",
        op_graph("conv", {"x": IMAGE, "weight": (INNER, 1, K, K)}, (B, INNER, H, W)),
        B * INNER * H * W * K * K,
    ),
    (
        "conv with a stride",
        op_graph("conv", {"x": (B, INNER, 8, 8), "weight": (OUTER, INNER, 1, 1)}, (B, OUTER, 4, 4)),
        B * OUTER * 16 * INNER,
    ),
    (
        "conv_transpose, two groups",
        op_graph("conv_transpose", {"x": IMAGE, "weight": (INNER, OUTER // 2, K, K)}, (B, OUTER, 99, 99)),
        B * INNER * H * W * OUTER // 2 * K * K,
    ),
    ("einsum", op_graph("einsum", {"values": [(B, INNER, H, S), (B, S, H, OUTER)]}, (B, INNER, H, OUTER), equation="bihs,bsho->biho"),
     B * INNER * H * S * OUTER),
    ("einsum, broadcast", op_graph("einsum", {"values": [(1, S), (B, S)]}, (B,), equation="bs,bs->b"), B * S),
    (
        "attention",
        op_graph("scaled_dot_product_attention", {"query": (B, 4, S, 8), "key": (B, 4, 9, 8), "value": (B, 4, 9, 6)}, (B, 4, S, 6)),
        B * 4 * S * 9 * (8 + 6),
    ),
    (
        "lstm, both ways",
        op_graph("lstm", BOTH_WAYS, (S, B, 2 * H)),
        2 * S * B * 4 * H * (INNER + H),
    ),
    ("gru", op_graph("gru", GRU, (1, B, H)), S * B * 3 * H * (INNER + H)),
    ("add", op_graph("add", {"x": (B, S), "y": (B, S)}, (B, S)), 0),
]  # fmt: skip


@pytest.mark.parametrize(("graph", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_multiply_adds_are_those_of_the_closed_form(graph: Graph, expected: int) -> None:
    actual = count_multiply_adds(graph)
    assert (actual.total, actual.open) == (expected, ())


def test_an_open_shape_is_named_and_not_guessed() -> None:
    actual = count_multiply_adds(op_graph("linear", {"x": (None, INNER), "weight": (OUTER, INNER)}, (None, OUTER)))
    assert (actual.total, actual.open) == (0, ("op",))


def test_ops_in_nested_blocks_count() -> None:
    inner = op_graph("linear", {"x": (B, INNER), "weight": (OUTER, INNER)}, (B, OUTER))
    outer = Graph("main", "CoreML8", (), (), (Op("cond", "c", {}, (), (inner, inner)),), ())
    assert count_multiply_adds(outer).total == 2 * B * INNER * OUTER


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``packages(weight)``: y = linear(x, weight), saved; ``weight`` is called while the program is built."""
    ct = quiet_coremltools()
    from coremltools.converters.mil.mil import Builder, types

    def make(weight: Callable[[Any, Any], Any]) -> Path:
        def program(x: Any) -> Any:
            return Builder.linear(x=x, weight=weight(Builder, types), bias=np.ones(32, np.float16), name="y")

        path = tmp_path_factory.mktemp("summary") / "model.mlpackage"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = ct.convert(
                Builder.program(input_specs=[Builder.TensorSpec((1, 64), dtype=types.fp16)], opset_version=ct.target.iOS18)(program),
                convert_to="mlprogram",
                skip_model_load=True,
                minimum_deployment_target=ct.target.iOS18,
                pass_pipeline=ct.PassPipeline.EMPTY,
            )
            model.save(str(path))
            del model
            gc.collect()
        return path

    return make


RANDOM = np.random.default_rng(0)
DENSE = RANDOM.standard_normal((32, 64)).astype(np.float16)
TABLE = RANDOM.standard_normal((1, 1, 16, 1)).astype(np.float16)
INDICES = RANDOM.integers(0, 16, (32, 64)).astype(np.uint8)
MASK = RANDOM.integers(0, 2, (32, 64)).astype(np.uint8)
SCALE = np.full((32, 4), 0.5, np.float16)


def palette(mb: Any, types: Any) -> Any:
    return mb.constexpr_lut_to_dense(indices=INDICES.astype(types.np_uint4_dtype), lut=TABLE)


def blockwise(mb: Any, types: Any) -> Any:
    return mb.constexpr_blockwise_shift_scale(data=(INDICES.astype(np.int8) - 8).astype(types.np_int4_dtype), scale=SCALE)


def sparse_palette(mb: Any, types: Any) -> Any:
    mask, values = mb.constexpr_lut_to_sparse(
        indices_mask=MASK.astype(types.np_uint1_dtype), indices_nonzero_data=INDICES[MASK == 1].astype(types.np_uint4_dtype), lut=TABLE
    )
    return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("weight", "compression", "stored"),
    [
        (lambda mb, types: DENSE, "", 32 * 64 * 2),
        (palette, "lut_to_dense 4-bit", 32 * 64 // 2 + 32),
        (blockwise, "blockwise_shift_scale 4-bit", 32 * 64 // 2 + 32 * 4 * 2),
        (sparse_palette, "lut_to_sparse 4-bit + sparse_to_dense", 32 * 64 // 8 + (int(MASK.sum()) + 1) // 2 + 32),
    ],
    ids=["plain", "palette", "blockwise", "sparse palette"],
)
def test_weights_are_grouped_by_how_they_are_stored(
    packages: Callable[..., Path], weight: Callable[..., Any], compression: str, stored: int
) -> None:
    path = packages(weight)
    summary = summarize(read_program(path))
    actual = {group.compression: group for group in summary.weights}
    bias = 0 if compression else 1  # the bias is plain, as the weight is in the first case
    assert (actual[compression].dtype, actual[compression].tensors) == ("float16", 1 + bias)
    assert actual[compression].parameters == 32 * 64 + bias * 32
    assert actual[compression].stored_bytes == stored + bias * 64
    assert summary.parameters == 32 * 64 + 32
    assert summary.multiply_adds.total == 32 * 64
    assert summary.size_bytes == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert summary.ops["linear"] == 1


def test_shapes_and_axes_are_no_weights(exported: Path) -> None:
    (package,) = (exported / "bundle").glob("packages/mapper_out.mlpackage")
    summary = summarize(read_program(package))
    graph, _ = summary.program.function()
    weights = [value.data for value in graph.constants if isinstance(value.data, np.ndarray) and value.dtype == "float16" and value.shape]
    assert summary.parameters == sum(weight.size for weight in weights)
    assert [group.dtype for group in summary.weights] == ["float16"]
