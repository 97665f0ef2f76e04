"""Placements of graphs: devices, regions, reasons, what turns them, and what would change them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreflow.export.engine.advice import obstacles, shortfalls
from coreflow.export.engine.placement import Placement, place
from coreflow.export.engine.targets import all_targets, find_targets, op_evidence
from coreflow.export.package.graph import Graph, Op, Value

M4 = find_targets("M4/macOS27")[0]


class Chain:
    """A graph under construction: every op reads the result of the one before.

    >>> Chain((1, 64), "float16").add("relu", (1, 64)).graph()
    """

    def __init__(self, shape: tuple[int, ...], dtype: str = "float16") -> None:
        self.last = Value("x", dtype, shape)
        self.inputs = (self.last,)
        self.ops: list[Op] = []

    def add(self, op_type: str, shape: tuple[int | None, ...], dtype: str = "float16", **constants: np.ndarray) -> "Chain":
        """One more op with a result of this shape; integers of ``constants`` are arguments too."""
        result = Value(f"{op_type}_{len(self.ops)}", dtype, shape)
        inputs = {"x": self.last} | {name: Value(name, str(data.dtype), data.shape, data=data) for name, data in constants.items()}
        self.ops.append(Op(op_type, result.name, inputs, (result,)))
        self.last = result
        return self

    def linear(self, rows: int, length: int) -> "Chain":
        """A square linear op."""
        return self.add("linear", (rows, length), weight=np.zeros((length, length), np.float16), bias=np.zeros(length, np.float16))

    def conv(self, channels: int, size: int, kernel: int) -> "Chain":
        """A convolution that keeps the shape (1, channels, size, size)."""
        return self.add("conv", (1, channels, size, size), weight=np.zeros((channels, channels, kernel, kernel), np.float16))

    def graph(self) -> Graph:
        return Graph("main", "CoreML8", self.inputs, (self.last,), tuple(self.ops), ())


def devices(placement: Placement) -> str:
    return "".join("A" if op.device == "engine" else "C" for op in placement.ops)


def matmul(size: int) -> Graph:
    shape = (1, size, size)
    x, y, z = Value("x", "float16", shape), Value("y", "float16", shape), Value("z", "float16", shape)
    return Graph("main", "CoreML8", (x, y), (z,), (Op("matmul", "z", {"x": x, "y": y}, (z,)),), ())


# Seen by others on an M4, or computed from published rates: the size, what the engine would save in ms, and the device.
@pytest.mark.parametrize(
    ("graph", "gain", "device"),
    [
        (matmul(384), 0.138, "C"),
        (matmul(512), 0.334, "A"),
        (Chain((1, 4096)).linear(1, 4096).graph(), 0.194, "C"),
        (Chain((1, 4992)).linear(1, 4992).graph(), 0.288, "A"),
        (Chain((1, 128, 32, 32)).conv(128, 32, 3).graph(), 0.382, "A"),
        (Chain((1, 256, 32, 32)).conv(256, 32, 3).graph(), 1.53, "A"),
    ],
    ids=["matmul 384", "matmul 512", "linear 4096", "linear 4992", "conv 128", "conv 256"],
)
def test_single_ops_go_to_the_engine_where_they_save_a_quarter_of_a_millisecond(graph: Graph, gain: float, device: str) -> None:
    placement = place(graph, M4)
    (op,) = placement.ops
    assert op.ms["bnns"] - op.ms["ane"] == pytest.approx(gain, rel=5e-3)
    assert devices(placement) == device
    assert op.margin_ms == pytest.approx(abs(gain - 0.25), abs=5e-3)


def test_a_row_of_4654_is_enough_where_4096_is_not() -> None:
    (short,) = shortfalls(place(Chain((1, 4096)).linear(1, 4096).graph(), M4))
    assert short.inner_extent == (4096, 4654)  # 0.19368 ms x (4654 / 4096)^2 is the first above 0.25
    assert short.needed_ms == 0.25
    assert short.batch_factor == 2


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_the_batch_that_is_said_to_be_enough_is_the_least(rows: int) -> None:
    def chain(factor: int) -> Placement:
        return place(Chain((rows * factor, 512)).linear(rows * factor, 512).add("gelu", (rows * factor, 512)).graph(), M4)

    (short,) = shortfalls(chain(1))
    assert short.batch_factor is not None
    assert "A" in devices(chain(short.batch_factor))
    assert "A" not in devices(chain(short.batch_factor - 1))


def test_one_integer_op_in_the_middle_splits_the_engine() -> None:
    chain = Chain((1, 256, 32, 32)).conv(256, 32, 3).add("cumsum", (1, 256, 32, 32)).conv(256, 32, 3)
    placement = place(chain.graph(), M4)
    assert [(region.device, region.size) for region in placement.regions] == [("engine", 1), ("cpu", 1), ("engine", 1)]
    middle = placement.regions[1]
    assert middle.margin_ms == middle.flip_ms == math.inf
    (obstacle,) = obstacles(placement.ops)
    assert (obstacle.count, obstacle.types) == (1, ("cumsum",))
    assert obstacle.evidence is not None and obstacle.evidence.label == "measured"
    assert sum(region.share for region in placement.regions) == pytest.approx(1)
    assert sum(region.multiply_adds for region in placement.regions) == 2 * 256 * 256 * 9 * 1024


def test_a_second_segment_that_turns_on_the_price_of_its_launch_is_fragile() -> None:
    """The published miss: linear, relu, linear, relu, band_part, and the four again, of 128 rows of 128."""
    chain = Chain((1, 128, 128))
    for part in range(2):
        for _ in range(2):
            chain.add("linear", (1, 128, 128), weight=np.zeros((128, 128), np.float16)).add("relu", (1, 128, 128))
        if part == 0:
            chain.add("band_part", (1, 128, 128))
    placement = place(chain.graph(), M4)
    assert devices(placement) != "AAAACAAAA"
    assert {reason for op in placement.ops for reason in op.turns_on} == {"second launch"}
    assert devices(place(chain.graph(), M4.with_second_launch(0.1))) == "AAAACAAAA"


def test_a_size_between_two_published_rates_says_so_where_it_decides() -> None:
    placement = place(Chain((64, 304)).linear(64, 304).graph(), M4)
    (op,) = placement.ops
    assert op.turns_on == ("rates",) and op.is_fragile


def test_ties_are_ties() -> None:
    placement = place(Chain((1, 256, 32, 32)).conv(256, 32, 3).add("relu", (1, 256, 32, 32)).graph(), M4)
    assert devices(placement) == "AA"
    assert [op.is_tied for op in placement.ops] == [False, True]


@pytest.mark.parametrize(
    ("op_type", "dtype", "reason"),
    [("add", "int32", "int32"), ("relu", "float32", "fp32"), ("cumsum", "float16", "no such op"), ("argsort", "int32", "int32")],
)
def test_a_refused_op_says_why(op_type: str, dtype: str, reason: str) -> None:
    (op,) = place(Chain((1, 64), dtype).add(op_type, (1, 64), dtype).graph(), M4).ops
    assert not op.support.engine
    assert reason in op.support.reason


def test_casts_at_the_edge_are_the_engine_s_since_macos_26() -> None:
    graph = Chain((1, 64), "float32").add("cast", (1, 64), "float16").graph()
    assert place(graph, M4).ops[0].support.engine
    assert not place(graph, find_targets("M1/macOS14")[0]).ops[0].support.engine


def test_open_shapes_and_ops_of_no_plan_are_not_sure() -> None:
    ops = place(Chain((1, 64)).add("relu", (None, 64)).add("einsum", (1, 64)).graph(), M4).ops
    assert [op.support.is_sure for op in ops] == [False, False]
    assert all(op.support.engine for op in ops)


def test_an_empty_function_has_no_region() -> None:
    assert place(Chain((1, 64)).graph(), M4).regions == ()


def test_three_thousand_ops_are_placed() -> None:
    chain = Chain((1, 512))
    for index in range(1000):
        chain.linear(1, 512).add("gelu", (1, 512)).add("cumsum" if index % 7 == 0 else "add", (1, 512))
    graph = chain.graph()
    placement = place(graph, M4)
    assert len(list(shortfalls(placement))) > 10
    assert len(placement.ops) == 3000


@given(st.data())
def test_what_a_run_lacks_is_what_the_best_path_through_it_costs_more(data: st.DataObject) -> None:
    """The advice counts savings and prices by itself; the margins of the cheapest path are its oracle."""
    rows = data.draw(st.sampled_from([1, 16, 128]))
    chain = Chain((rows, 64))
    for kind in data.draw(st.lists(st.sampled_from(["linear", "gelu", "relu", "cumsum"]), min_size=1, max_size=8)):
        if kind == "linear":
            chain.linear(rows, 64)
        else:
            chain.add(kind, (rows, 64))
    placement = place(chain.graph(), M4)
    if placement.count("engine"):
        return
    for short in shortfalls(placement):
        assert short.needed_ms - short.saved_ms == pytest.approx(min(op.margin_ms for op in placement.ops[short.first : short.last + 1]))
        assert all(op.support.engine for op in placement.ops[short.first : short.last + 1])
        assert short.batch_factor is None or short.batch_factor > 1


def test_one_long_run_that_stays_on_the_cpu_is_quick() -> None:
    chain = Chain((1, 16))
    for _ in range(3000):
        chain.add("gelu", (1, 16))
    placement = place(chain.graph(), M4)
    (short,) = shortfalls(placement)
    assert short.batch_factor is not None


def test_the_first_input_is_what_runs_through_whatever_the_order_of_arguments() -> None:
    x, y = Value("x", "float16", (1, 8, 16, 16)), Value("y", "float16", (1, 8, 16, 16))
    run_time_weight = Value("w", "float16", (4, 8, 1, 1))
    forward = Op("conv", "y", {"x": x, "weight": run_time_weight}, (y,))
    backward = Op("conv", "y", {"weight": run_time_weight, "x": x}, (y,))
    placements = [place(Graph("main", "CoreML8", (x, run_time_weight), (y,), (op,), ()), M4) for op in (forward, backward)]
    assert placements[0].ops[0].ms == placements[1].ops[0].ms


def test_a_compressed_weight_counts_as_what_it_stands_for() -> None:
    x, y = Value("x", "float16", (4, 64)), Value("y", "float16", (4, 64))
    plain = Value("w", "float16", (64, 64), data=np.zeros((64, 64), np.float16))
    dense = Value("w", "float16", (64, 64))
    palette = Op("constexpr_lut_to_dense", "w", {"indices": Value("i", "uint8", (2048,), data=np.zeros(2048, np.uint8))}, (dense,))
    linear = [Op("linear", "y", {"x": x, "weight": weight}, (y,)) for weight in (plain, dense)]
    ((one,), (other,)) = (place(Graph("main", "CoreML8", (x,), (y,), ops, ()), M4).ops for ops in ((linear[0],), (palette, linear[1])))
    assert one.ms == other.ms
    assert one.features == other.features


ANY_OP = st.sampled_from(sorted({*op_evidence("never"), *op_evidence("taken"), *op_evidence("unsure"), "no_such_op"}))
ANY_SHAPE = st.lists(st.one_of(st.none(), st.integers(0, 70000)), max_size=6).map(tuple)
ANY_DTYPE = st.sampled_from(["float16", "float32", "int32", "int16", "uint8", "int4", "bool", "string", ""])
ANY_NAME = st.sampled_from(["x", "y", "weight", "bias", "indices", "begin", "values", "query"])


@st.composite
def any_value(draw: st.DrawFn) -> Value:
    return Value("v", draw(ANY_DTYPE), draw(st.one_of(st.none(), ANY_SHAPE)))


def test_estimates_of_years_round_away_no_path() -> None:
    """Sums of 1e11 ms are 6e-5 ms apart in another order, more than what counts as a tie."""
    huge = Value("v", "float32", (418, 1126, 17061, 18898, 24798))
    values: tuple[dict[str, Value], ...] = ({}, {"x": Value("v", "float16", (82,))}, {"x": huge})
    ops = tuple(Op(kind, f"op_{i}", inputs, ()) for i, (kind, inputs) in enumerate(zip(("lstm", "abs", "abs"), values, strict=True)))
    assert len(place(Graph("main", "CoreML8", (), (), ops, ()), all_targets()["H19/macOS27"]).ops) == 3


def test_a_linear_op_of_unknown_shape_has_no_length_to_advise() -> None:
    linear = Op("linear", "op", {"x": Value("v", "float16", None)}, ())
    assert [short.inner_extent for short in shortfalls(place(Graph("main", "CoreML8", (), (), (linear,), ()), M4))] in ([], [None])


@given(
    st.lists(st.tuples(ANY_OP, st.dictionaries(ANY_NAME, any_value(), max_size=3), st.lists(any_value(), max_size=2)), max_size=4),
    st.sampled_from(sorted(all_targets())),
)
def test_any_op_is_placed_whatever_it_lacks(ops: list[tuple[str, dict[str, Value], list[Value]]], name: str) -> None:
    """The reader checks names and types, not signatures: a program may hold an op without its arguments."""
    graph = Graph(
        "main", "CoreML8", (), (), tuple(Op(kind, f"op_{i}", inputs, tuple(out)) for i, (kind, inputs, out) in enumerate(ops)), ()
    )
    placement = place(graph, all_targets()[name])
    list(shortfalls(placement))
    obstacles(placement.ops)
    assert all(math.isfinite(ms) and ms >= 0 for op in placement.ops for ms in op.ms.values())
    assert len(placement.ops) == len(ops)
