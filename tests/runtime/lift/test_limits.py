"""A program that runs away ends in an error that says so; the memory it asked for is never taken."""

import resource
from typing import Any

import numpy as np
import pytest

from coreflow.export.program import Graph, Op, Value
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.lift import limits
from coreflow.runtime.lift.interpreter import Interpreter
from coreflow.runtime.lift.numerics import numerics_named

HUGE = 10**15
ONE = np.ones((1, 1, 1, 1), np.float32)


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
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsupportedError, match=r"are the limit|shape \[-5\] cannot be|8 bytes are not those of"):
        run(case.partition(" ")[0], **GREEDY[case])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def loop(step: str, end: float, **arguments: Any) -> Graph:
    """From [1] on, ``step`` again and again for as long as the last element is less than ``end``."""
    x, y, last, more = Value("x", "float32", None), Value("y", "float32", None), Value("l", "float32", None), Value("go", "bool", None)
    known = {name: constant(data) for name, data in (("axes", np.array([0])), ("end", np.float32(end)), ("one", np.float32([1])))}
    condition = Graph(
        "c",
        "CoreML6",
        (x,),
        (more,),
        (Op("reduce_max", "last", {"x": x, "axes": known["axes"]}, (last,)), Op("less", "less", {"x": last, "y": known["end"]}, (more,))),
        (),
    )
    own = {name: {"x": x, "xx": (x, x)}[value] if isinstance(value, str) else constant(value) for name, value in arguments.items()}
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


def test_what_memory_can_hold_is_made() -> None:
    assert run("fill", shape=[1000, 1000], value=np.float32(2)).sum().item() == 2e6
