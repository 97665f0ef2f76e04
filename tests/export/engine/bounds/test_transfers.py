"""Every op has a transfer function but for a few, and the bounds that matter are as tight as their formulas say."""

from typing import Any

import numpy as np
import pytest

from coreflow.export.engine.bounds.analysis import Bounds, bounds_of
from coreflow.export.engine.bounds.registry import load_transfers
from coreflow.export.engine.bounds.slack import EXACT
from coreflow.export.engine.bounds.spectrum import Work
from coreflow.export.package.graph import Graph, Op, Value
from coreflow.runtime.lift.registry import load_lowerings, supported_ops
from tests.export.engine.bounds.programs import constant, flag, text, whole

# Nothing is said of their results.
WITHOUT = {
    *("affine", "crop_resize", "resample", "resize"),  # pixels by computed coordinates
    *("list_gather", "list_length", "list_read", "list_scatter", "list_write", "make_list"),
    *("classify", "non_maximum_suppression", "random_categorical", "random_normal", "softplus_parametric", "tan"),
}


def test_ops_without_a_transfer_function_are_these() -> None:
    load_lowerings()
    assert supported_ops().keys() - load_transfers().keys() == WITHOUT


def program(*ops: Op, inputs: tuple[Value, ...]) -> Graph:
    return Graph("main", "CoreML8", inputs, ops[-1].outputs, ops, ())


def value(name: str, *shape: int) -> Value:
    return Value(name, "float16", shape)


def op(kind: str, result: Value, **arguments: Any) -> Op:
    return Op(kind, result.name, arguments, (result,))


def exact(graph: Graph, **inputs: tuple[float, float]) -> Bounds:
    return bounds_of(graph, inputs, EXACT)


def test_layer_norm_bounds_the_rows_of_a_linear_by_their_length() -> None:
    """|w . (beta + gamma u) - w . beta| <= |w gamma|_2 sqrt(n), whatever x is."""
    random = np.random.default_rng(0)
    gamma, beta, weight = (random.normal(size=shape).astype(np.float16) for shape in (64, 64, (8, 64)))
    x, normal, y = value("x", 1, 5, 64), value("normal", 1, 5, 64), value("y", 1, 5, 8)
    norm = op("layer_norm", normal, x=x, axes=whole([-1]), gamma=constant(gamma), beta=constant(beta), epsilon=constant(1e-5))
    bound = exact(program(norm, op("linear", y, x=normal, weight=constant(weight)), inputs=(x,))).of(y)
    rows = weight.astype(np.float64)
    centre, reach = rows @ beta.astype(np.float64), np.linalg.norm(rows * gamma, axis=1) * 8
    np.testing.assert_allclose(np.ravel(bound.high), centre + reach, rtol=1e-9)
    np.testing.assert_allclose(np.ravel(bound.low), centre - reach, rtol=1e-9)


def test_a_mean_of_values_stays_among_them() -> None:
    """Softmax times V is within V, at any length; without that it would grow with the length."""
    scores, weights, values, mean = (
        value("scores", 1, 9, 100),
        value("weights", 1, 9, 100),
        value("values", 1, 100, 4),
        value("mean", 1, 9, 4),
    )
    graph = program(
        op("softmax", weights, x=scores, axis=whole(-1)),
        op("matmul", mean, x=weights, y=values, transpose_x=flag(False), transpose_y=flag(False)),
        inputs=(scores, values),
    )
    bounds = exact(graph, values=(-3.0, 5.0))
    assert -3.01 < bounds.of(mean).lowest <= -3 and 5 <= bounds.of(mean).highest < 5.01
    assert 5 <= bounds.inner(graph.ops[1])["sum"] < 5.01


def test_scores_of_heads_are_bounded_by_the_largest_singular_values() -> None:
    """Of every head alone: |q . k| <= |W_q,h gamma| sqrt(n) |W_k,h gamma| sqrt(n), within the factor 64^(1/16) of the estimate."""
    random = np.random.default_rng(1)
    weights = (random.normal(size=(2, 64, 64)) / 8).astype(np.float16)
    weights[:, 32:] *= 0.1  # the second head is small
    x, normal = value("x", 1, 5, 64), value("normal", 1, 5, 64)
    ops = [op("layer_norm", normal, x=x, axes=whole([-1]), epsilon=constant(1e-5))]
    heads = []
    for number in range(2):
        y, split, turned = value(f"y{number}", 1, 5, 64), value(f"s{number}", 1, 5, 2, 32), value(f"t{number}", 1, 2, 5, 32)
        ops.append(op("linear", y, x=normal, weight=constant(weights[number])))
        ops.append(op("reshape", split, x=y, shape=whole([1, 5, 2, 32])))
        ops.append(op("transpose", turned, x=split, perm=whole([0, 2, 1, 3])))
        heads.append(turned)
    scores = value("scores", 1, 2, 5, 5)
    ops.append(op("matmul", scores, x=heads[0], y=heads[1], transpose_x=flag(False), transpose_y=flag(True)))
    actual = exact(program(*ops, inputs=(x,))).of(scores).high[0, :, 0, 0]
    largest = [[np.linalg.norm(weight[part].astype(np.float64), 2) for weight in weights] for part in (slice(0, 32), slice(32, 64))]
    for bound, (query, key) in zip(actual, largest, strict=True):
        assert query * key * 64 <= bound <= query * key * 64 * 32 ** (1 / 16)


def test_rms_norm_written_as_ops_has_a_length() -> None:
    """x rsqrt(mean x^2 + epsilon) has the length sqrt(n); of fp16 numbers only where epsilon is above what squares lose."""
    x, squares, mean, total, root, y = (
        value(name, 1, 4, 1 if small else 16) for name, small in zip("xsmtry", (0, 0, 1, 1, 1, 0), strict=True)
    )

    def written(epsilon: float) -> Graph:
        return program(
            op("square", squares, x=x),
            op("reduce_mean", mean, x=squares, axes=whole([-1]), keep_dims=flag(True)),
            op("add", total, x=mean, y=constant(epsilon, "float32")),
            op("rsqrt", root, x=total, epsilon=constant(0.0)),
            op("mul", y, x=x, y=root),
            inputs=(x,),
        )

    assert exact(written(1e-6), x=(-100.0, 100.0)).of(y).largest == pytest.approx(4, rel=1e-6)
    assert bounds_of(written(1e-6), {"x": (-100.0, 100.0)}).of(y).largest < 4.1
    assert bounds_of(written(1e-8), {"x": (-100.0, 100.0)}).of(y).largest == np.inf  # 1e-8 is stored as 0


def test_a_state_holds_what_the_program_writes() -> None:
    state, x, cache, joined = Value("state", "float16", (1, 4), "state"), value("x", 1, 4), value("cache", 1, 4), value("joined", 1, 4)

    def graph(kind: str) -> Graph:
        written = Op("write_state", "write", {"input": state, "data": joined}, ())
        return program(op("read_state", cache, input=state), op(kind, joined, x=cache, y=x), written, inputs=(state, x))

    assert exact(graph("maximum"), x=(-2.0, 3.0)).of(cache).highest == pytest.approx(3)
    assert exact(graph("add"), x=(-2.0, 3.0)).of(cache).highest == np.inf  # it grows with every prediction


def test_an_op_of_an_unknown_kind_says_so() -> None:
    x, y = value("x", 2), value("y", 2)
    bounds = exact(program(op("tan", y, x=x), inputs=(x,)), x=(0.0, 1.0))
    assert bounds.of(y).highest == np.inf
    assert bounds.reasons == {"y": "tan has no transfer function"}


def test_the_largest_singular_value_is_never_underestimated() -> None:
    random = np.random.default_rng(2)
    for shape in ((5, 5), (3, 40), (64, 8), (1, 7), (100, 100)):
        matrix = random.normal(size=shape) * random.choice([1e-6, 1.0, 1e4])
        largest, work = np.linalg.norm(matrix, 2), Work(1e9)
        assert largest <= work.spectral_norm(matrix) * (1 + 1e-12) <= largest * min(shape) ** (1 / 32) * (1 + 1e-6)
        assert work.left < 1e9 or min(shape) == 1
        assert Work(0).spectral_norm(matrix) == pytest.approx(np.linalg.norm(matrix))


def test_compressed_weights_are_decoded_as_the_lowerings_do(evaluate: Any) -> None:
    random = np.random.default_rng(3)
    data, scale = np.array(random.integers(-128, 128, (4, 6)), np.int8), np.array(random.random((4, 3)) + 0.1, np.float16)
    cases: dict[str, dict[str, Any]] = {
        "constexpr_blockwise_shift_scale": {"data": data, "scale": scale, "offset": np.array(random.integers(-5, 5, (4, 3)), np.int8)},
        "constexpr_affine_dequantize": {
            "quantized_data": data,
            "scale": np.array(random.random(4), np.float16),
            "zero_point": np.array([1, 2, 3, 4], np.int8),
            "axis": 0,
        },
        "constexpr_lut_to_dense": {
            "indices": np.array(random.integers(0, 4, (4, 6)), np.uint8),
            "lut": np.array(random.normal(size=(2, 1, 4, 1)), np.float16),
        },
        "constexpr_sparse_to_dense": {"mask": np.array([[1, 0], [0, 1]], np.uint8), "nonzero_data": np.array([3.0, 4.0], np.float16)},
    }
    for kind, arguments in cases.items():
        reference = evaluate(kind, declared="float16", **arguments)
        result = value("w", *reference.shape)
        values = {
            name: text(given) if isinstance(given, str) else constant(given, np.asarray(given).dtype.name)
            for name, given in arguments.items()
        }
        fetch = exact(program(op(kind, result, **values), inputs=())).of(result).fetch
        assert fetch is not None
        np.testing.assert_allclose(fetch().astype(np.float64), reference, rtol=2e-3)
