"""A program that runs away ends in an error that says so; the memory it asked for is never taken."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coreflow.export.package.graph import Graph, Op, Value
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.lift import limits
from coreflow.runtime.lift.engines.interpreter import Interpreter
from coreflow.runtime.lift.numerics.named import numerics_named

HUGE = 10**15
LONG = 10**6
REFUSED = r"are the limit|shape \[-5\] cannot be|8 bytes are not those of"
ONE = np.ones((1, 1, 1, 1), np.float32)


@contextmanager
def little_memory() -> Iterator[None]:
    """Room for 512 MiB more than is taken already: whoever asks for more gets torch's error and not ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = Path("/proc/self/statm")
    if not taken.exists():
        pytest.skip("the size of this process is not known here")
    resource.setrlimit(resource.RLIMIT_AS, (int(taken.read_text().split()[0]) * resource.getpagesize() + (512 << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def constant(data: Any) -> Value:
    if isinstance(data, str):
        return Value("", "string", (), data=data)
    array = np.asarray(data)
    return Value("", array.dtype.name, array.shape, data=array)


def run(op: str, **arguments: Any) -> Any:
    """One op on constants, under opset iOS16."""
    result = Value("y", "float32", None)
    graph = Graph("main", "CoreML6", (), (result,), (Op(op, "op", {k: constant(v) for k, v in arguments.items()}, (result,)),), ())
    return Interpreter(graph, numerics_named("fp32")).run({})["y"]


GREEDY: dict[str, dict[str, Any]] = {
    "fill": {"shape": [HUGE], "value": np.float32(1)},
    "fill of many axes": {"shape": [10**5, 10**5, 10**5], "value": np.float32(1)},
    "fill below zero": {"shape": [-5], "value": np.float32(1)},
    "tile": {"x": ONE, "reps": [HUGE, 1, 1, 1]},
    "one_hot": {"indices": np.zeros(3, np.int32), "one_hot_vector_size": HUGE},
    "range_1d": {"start": np.float32(0), "end": np.float32(1e15), "step": np.float32(1)},
    "pad": {"x": ONE, "pad": [0, HUGE], "mode": "constant"},
    "random_normal": {"shape": [HUGE], "seed": 1},
    "random_uniform": {"shape": [HUGE], "seed": 1},
    "random_bernoulli": {"shape": [HUGE], "seed": 1},
    "random_categorical": {"x": np.ones((1, 3), np.float32), "size": HUGE},
    "resize_bilinear": {"x": ONE, "target_size_height": HUGE, "target_size_width": 1},
    "resize_nearest_neighbor": {"x": ONE, "target_size_height": 1, "target_size_width": HUGE},
    "upsample_nearest_neighbor": {"x": ONE, "scale_factor_height": 1e15, "scale_factor_width": 1.0},
    "upsample_bilinear": {"x": ONE, "scale_factor_height": 1e15, "scale_factor_width": 1.0},
    "crop_resize": {"x": ONE, "roi": np.ones((1, 1, 4, 1, 1), np.float32), "target_height": HUGE, "target_width": 1},
    "constexpr_lut_to_dense": {"indices": np.zeros(8, np.uint8), "lut": np.ones(4, np.float32), "shape": np.array([HUGE])},
    "constexpr_sparse_to_dense": {"nonzero_data": np.ones(4, np.float32), "mask": np.zeros(8, np.uint8), "shape": np.array([HUGE])},
    "make_list": {"init_length": HUGE, "elem_shape": [1]},
}


@pytest.mark.parametrize("case", GREEDY)
def test_an_absurd_extent_is_refused(case: str) -> None:
    with little_memory(), pytest.raises(UnsupportedError, match=REFUSED):
        run(case.partition(" ")[0], **GREEDY[case])


def ones(*shape: int, dtype: Any = np.float32) -> Any:
    return np.ones(shape, dtype)


COLUMN, ROW, PAIR = ones(LONG, 1), ones(1, LONG), ones(1, LONG, 1)
WINDOW = {"kernel_sizes": [HUGE], "strides": [1], "pad_type": "custom", "pad": [HUGE, HUGE]}

# What an op reads is small, what it would give is not. A list is an argument of several values.
GROWING: dict[str, dict[str, Any]] = {
    **{op: {"x": COLUMN, "y": ROW} for op in ("add", "sub", "mul", "real_div", "floor_div", "mod", "pow", "maximum", "less", "equal")},
    "logical_and": {"x": COLUMN > 0, "y": ROW > 0},
    "select": {"cond": ones(1, 1, 30_000) > 0, "a": ones(1, 30_000, 1), "b": ones(30_000, 1, 1)},
    "linear": {"x": COLUMN, "weight": COLUMN},
    "matmul": {"x": COLUMN, "y": ROW},
    "matmul of transposed": {"x": ROW, "y": COLUMN, "transpose_x": True, "transpose_y": True},
    "matmul of batches": {"x": ones(LONG, 1, 1, 1), "y": PAIR},
    "matmul of a repeated matrix": {"x": ones(1, 3, 1000, 1000), "y": ones(1000, 1, 1000, 1)},
    "matmul of nothing": {"x": ones(LONG, 0), "y": ones(0, LONG)},
    "einsum": {"values": [ones(LONG, 1, 1), ones(1, 1, LONG)], "equation": "chw,whu->chu"},
    "scaled_dot_product_attention": {"query": PAIR, "key": PAIR, "value": PAIR},
    "conv of many channels": {"x": ones(1, 1, LONG), "weight": ones(LONG, 1, 1)},
    "conv of much padding": {"x": ones(1, 1, 1), "weight": ones(1, 1, 1), "pad_type": "custom", "pad": [HUGE, 0]},
    "conv_transpose of a stride": {"x": ones(1, 1, 2), "weight": ones(1, 1, 1), "strides": [HUGE]},
    "conv_transpose of a shape": {"x": ones(1, 1, 2), "weight": ones(1, 1, 1), "output_shape": [1, 1, HUGE]},
    **{f"{kind}_pool": {"x": ones(1, 1, 1), **WINDOW} for kind in ("max", "avg", "l2")},
    "local_response_norm": {"x": ONE, "size": HUGE},
    "reduce_sum of nothing": {"x": ones(LONG, LONG, 0), "axes": [2]},
    "gather": {"x": ROW, "indices": np.zeros(LONG, np.int32), "axis": 0},
    "gather_nd": {"x": ROW, "indices": np.zeros((LONG, 1), np.int32)},
    "stack": {"values": [COLUMN] * 2000, "axis": 0},
    "concat": {"values": [COLUMN] * 2000, "axis": 0},
    "sliding_windows": {"x": COLUMN, "axis": 0, "size": LONG // 2},
    "tile": {"x": COLUMN, "reps": [1, LONG]},
    "one_hot": {"indices": np.zeros(LONG, np.int32), "one_hot_vector_size": LONG},
    "pad": {"x": COLUMN, "pad": [0, LONG], "mode": "reflect"},
    "space_to_batch": {"x": ONE, "block_shape": [1, 1], "paddings": np.array([[2**30, 2**30], [0, 0]], np.int32)},
    "band_part": {"x": ones(0, LONG, LONG), "lower": 1, "upper": 1},
    "non_maximum_suppression": {
        "boxes": ones(1, 10**5, 4), "scores": ones(1, 10**5, 1), "iou_threshold": np.float32(0.5), "max_boxes": 3
    },
    "crop_resize": {"x": ones(1, LONG, 1, 1), "roi": ones(20, 1, 4, 1, 1), "target_height": 10, "target_width": 10},
    "resample": {
        "x": ones(1, LONG, 1, 1), "coordinates": ones(1, LONG, 1, 2), "sampling_mode": "nearest", "padding_mode": "border",
        "padding_value": np.float32(0), "coordinates_mode": "unnormalized", "align_corners": True,
    },
    "resize_bilinear": {"x": ones(LONG, 1, 1), "target_size_height": 2000, "target_size_width": 2000},
    "rnn": {"x": ones(LONG, 1, 1), "initial_h": ones(1, 2000), "weight_ih": ones(2000, 1), "weight_hh": ones(2000, 2000)},
    "constexpr_lut_to_dense": {"indices": np.zeros(LONG, np.uint8), "lut": ones(1, 4, 2000), "vector_axis": 0},
}  # fmt: skip
NUMBERS_ONLY = {"size", "one_hot_vector_size", "axes", "reps", "pad", "paddings", "block_shape", "iou_threshold", "padding_value"}


@pytest.mark.parametrize("declared", ["as they are", "open", "falsely"])
@pytest.mark.parametrize("case", GROWING)
def test_a_result_that_outgrows_its_inputs_is_refused(case: str, declared: str) -> None:
    """Whether the shapes of the inputs are declared and the result's is not, or none is, or the result is said to be small."""
    op = case.partition(" ")[0]
    given: dict[str, torch.Tensor] = {}
    shared: dict[int, Value] = {}  # the same array is the same value

    def value_of(name: str, data: Any) -> Value:
        computed = isinstance(data, np.ndarray) and data.ndim > 0 and name not in NUMBERS_ONLY and not op.startswith("constexpr_")
        if not computed:
            return constant(data)
        if id(data) not in shared:
            value = shared[id(data)] = Value(f"{name}{len(shared)}", data.dtype.name, None if declared == "open" else data.shape)
            given[value.name] = torch.from_numpy(data)
        return shared[id(data)]

    inputs: dict[str, Any] = {
        name: tuple(value_of(name, part) for part in data) if name == "values" else value_of(name, data)
        for name, data in GROWING[case].items()
    }
    results = tuple(Value(f"y{i}", "float32", (1,) if declared == "falsely" else None) for i in range(4 if "maximum_" in op else 1))
    opset = "CoreML8" if op in ("scaled_dot_product_attention", "constexpr_lut_to_dense") else "CoreML6"
    graph = Graph("main", opset, tuple(shared.values()), results, (Op(op, "op", inputs, results),), ())
    with little_memory(), pytest.raises(UnsupportedError, match=f"program: {op} 'op' cannot be executed: .* are the limit"):
        Interpreter(graph, numerics_named("fp32")).run(given)


@pytest.mark.parametrize("shape", [(10**5, 10**5), (None, 10**15), (HUGE,) * 5], ids=str)
def test_an_absurd_declaration_is_refused_before_anything_runs(shape: tuple[int | None, ...]) -> None:
    x, y = Value("x", "float32", (1,)), Value("much", "float32", shape)
    graph = Graph("main", "CoreML6", (x,), (y,), (Op("relu", "op", {"x": x}, (y,)),), ())
    with little_memory(), pytest.raises(UnsupportedError, match=r"gives 'much' of shape \[.*\], \d+ elements; 1073741824 are the limit"):
        Interpreter(graph, numerics_named("fp32"))


def test_a_list_read_too_often_is_refused() -> None:
    made, y = Value("l", "float32", None, "list"), Value("y", "float32", None)
    make = Op("make_list", "make", {"elem_shape": constant([LONG]), "init_length": constant(1)}, (made,))
    gather = Op("list_gather", "op", {"ls": made, "indices": constant(np.zeros(2000, np.int32))}, (y,))
    with little_memory(), pytest.raises(UnsupportedError, match="2000000000 elements; 1073741824 are the limit"):
        Interpreter(Graph("main", "CoreML6", (), (y,), (make, gather), ()), numerics_named("fp32")).run({})


def test_a_broadcast_of_declared_shapes_is_not_asked_about_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decided when a program is planned costs nothing when it runs; what is open is asked about every time."""
    for shape, refused in (((3,), False), (None, True)):
        x, y = Value("x", "float32", shape), Value("y", "float32", None)
        graph = Graph("main", "CoreML6", (x,), (y,), (Op("add", "op", {"x": x, "y": x}, (y,)),), ())
        interpreter = Interpreter(graph, numerics_named("fp32"))
        with monkeypatch.context() as patch:
            patch.setattr(limits, "MAX_ELEMENTS", 2)
            if refused:
                with pytest.raises(UnsupportedError, match="2 are the limit"):
                    interpreter.run({"x": torch.ones(3)})
            else:
                assert interpreter.run({"x": torch.ones(3)})["y"].tolist() == [2, 2, 2]


def loop(step: str, end: float, **arguments: Any) -> Graph:
    """From [1] on, ``step`` again and again for as long as the last element is less than ``end``."""
    x, y, last, more = Value("x", "float32", None), Value("y", "float32", None), Value("l", "float32", None), Value("go", "bool", None)
    known = {name: constant(data) for name, data in (("axes", np.array([0])), ("end", np.float32(end)), ("one", np.ones(1, np.float32)))}
    condition = Graph(
        "c",
        "CoreML6",
        (x,),
        (more,),
        (Op("reduce_max", "last", {"x": x, "axes": known["axes"]}, (last,)), Op("less", "less", {"x": last, "y": known["end"]}, (more,))),
        (),
    )
    own: dict[str, Any] = {
        name: {"x": x, "xx": (x, x)}[value] if isinstance(value, str) else constant(value) for name, value in arguments.items()
    }
    body = Graph("b", "CoreML6", (x,), (y,), (Op(step, step, own, (y,)),), ())
    result = Value("z", "float32", None)
    return Graph(
        "main", "CoreML6", (), (result,), (Op("while_loop", "loop", {"loop_vars": known["one"]}, (result,), (condition, body)),), ()
    )


def execute(graph: Graph) -> Any:
    return Interpreter(graph, numerics_named("fp32")).run({})["z"]


def test_a_loop_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ITERATIONS", 200)
    with pytest.raises(UnsupportedError, match="has not ended after 200 rounds"):
        execute(loop("add", np.inf, x="x", y=np.float32(1)))


def test_a_loop_with_an_end_is_not() -> None:
    assert execute(loop("add", 10, x="x", y=np.float32(1))).item() == 10


def test_a_loop_that_doubles_a_tensor_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ELEMENTS", 1 << 16)
    with pytest.raises(UnsupportedError, match="131072 elements; 65536 are the limit"):
        execute(loop("concat", 10, values="xx", axis=np.int32(0)))


def test_shapes_that_memory_can_hold_are_made() -> None:
    assert run("fill", shape=[1000, 1000], value=np.float32(2)).sum().item() == 2e6
