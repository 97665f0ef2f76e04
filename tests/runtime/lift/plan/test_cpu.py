"""The policy of a CPU: with fp16 storage it gives the other's bits, products are within a rounding, and no weight is held twice."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coreflow.export.bundle import build
from coreflow.export.package.graph import Graph, Op, Value
from coreflow.export.package.mlpackage import read_program
from coreflow.export.package.op_facts import FACTS
from coreflow.export.package.weights import is_mapped
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Array
from coreflow.models.spec import TensorSpec
from coreflow.runtime.backend import LoadOptions, NumericsName
from coreflow.runtime.lift.engines.interpreter import Interpreter
from coreflow.runtime.lift.numerics.named import numerics_named
from coreflow.runtime.lift.plan import cpu
from coreflow.runtime.lifted import LiftedModel
from coreflow.runtime.load import load_model

# Every number of fp16: both zeros, subnormals, both infinities, all NaNs.
EVERY = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
UNARY = ("square",)
BINARY = ("add", "sub", "mul", "real_div")
# oneDNN's layouts are an x86 and ARM build of torch; without them products run as in the general plan, and the tests of results still hold.
needs_onednn = pytest.mark.skipif(not cpu.ONEDNN, reason="this torch has no oneDNN")


def ignore(op: Op, results: tuple[Any, ...]) -> None:
    """An observer that does nothing."""


def interpreted(package: Path, numerics: NumericsName = "fp16") -> LiftedModel:
    return LiftedModel(read_program(package), LoadOptions(numerics=numerics, engine="interpreter"))


def fp16(name: str, shape: tuple[int, ...], data: Any = None) -> Value:
    return Value(name, "float16", shape, data=None if data is None else np.asarray(data, np.float16))


def number(name: str, data: Any) -> Value:
    array = np.asarray(data)
    return Value(name, str(array.dtype), array.shape, data=array)


def one_op(kind: str, inputs: dict[str, Value], shape: tuple[int, ...] | None = None) -> Graph:
    made = Value("y", "float16", shape)
    passed = tuple(value for value in inputs.values() if value.data is None)
    return Graph("main", "CoreML8", passed, (made,), (Op(kind, "op", inputs, (made,)),), ())


def both(graph: Graph, *tensors: torch.Tensor, numerics: NumericsName = "fp16") -> tuple[torch.Tensor, torch.Tensor]:
    """The result of an unobserved run, and that of an observed one."""
    interpreter, passed = Interpreter(graph, numerics_named(numerics)), {v.name: t for v, t in zip(graph.inputs, tensors, strict=True)}
    return interpreter.run(passed)["y"], interpreter.run(passed, ignore)["y"]


def fp64_result(kind: str, x: torch.Tensor, weight: Array, bias: Array | None = None, **rest: Value) -> torch.Tensor:
    """The op in fp64, on the same numbers."""
    inputs = {"x": fp16("x", tuple(x.shape)), ("y" if kind == "matmul" else "weight"): fp16("w", weight.shape, weight), **rest}
    if bias is not None:
        inputs["bias"] = fp16("b", bias.shape, bias)
    return Interpreter(one_op(kind, inputs), numerics_named("fp64")).run({"x": x.double()})["y"]


class TestRoundedOnce:
    def test_the_lists_here_are_the_list_there(self) -> None:
        assert {*UNARY, *BINARY} == {op for op, facts in FACTS.items() if facts.rounds == "once"}

    @pytest.mark.parametrize("kind", UNARY)
    def test_every_number_of_fp16_gives_the_bits_of_the_observed_plan(self, kind: str) -> None:
        unobserved, observed = both(one_op(kind, {"x": fp16("x", (2**16,))}), EVERY)
        assert unobserved.dtype == torch.float16 and observed.dtype == torch.float32
        np.testing.assert_array_equal(unobserved.float().numpy(), observed.numpy())

    @pytest.mark.parametrize("kind", BINARY)
    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(shift=st.integers(0, 2**16 - 1), scalar=st.booleans())
    def test_pairs_of_all_numbers_do(self, kind: str, shift: int, scalar: bool) -> None:
        other = EVERY[shift] if scalar else EVERY.flip(0).roll(shift)
        unobserved, observed = both(one_op(kind, {"x": fp16("x", (2**16,)), "y": fp16("other", tuple(other.shape))}), EVERY, other)
        np.testing.assert_array_equal(unobserved.float().numpy(), observed.numpy())

    def test_a_threshold_is_not_rounded_with_the_tensor_beside_it(self) -> None:
        for alpha, x in ((-2.5370915, -2.5371094), (1e9, 65504.0)):  # as fp16, alpha would be x, or infinite
            inputs = {"x": fp16("x", (1,)), "alpha": number("alpha", np.float32(alpha))}
            unobserved, observed = both(one_op("thresholded_relu", inputs), torch.tensor([x]))
            assert unobserved.tolist() == observed.tolist() == [0.0]

    def test_boxes_overlap_as_far_as_fp32_says(self) -> None:
        """Sides of a thousand and one: their areas are no fp16 numbers, and neither are the overlaps, which lie at the threshold."""
        boxes = torch.tensor([[[0.0, 0.0, 1001.0, 1001.0], [0.0, 1.0, 1001.0, 1002.0]]]).half()
        inputs = {
            "boxes": fp16("boxes", (1, 2, 4)),
            "scores": fp16("scores", (1, 2, 1)),
            "iou_threshold": number("", np.float16(0.998)),
            "score_threshold": number("", np.float16(0.0)),
            "max_boxes": number("", np.int32(2)),
            "per_class_suppression": number("", False),
        }
        outputs = tuple(Value(name, "float16" if place < 2 else "int32", None) for place, name in enumerate("abcd"))
        op = Op("non_maximum_suppression", "op", inputs, outputs)
        graph = Graph("main", "CoreML5", (inputs["boxes"], inputs["scores"]), outputs, (op,), ())
        interpreter = Interpreter(graph, numerics_named("fp16"))
        passed = {"boxes": boxes, "scores": torch.tensor([[[0.9], [0.8]]]).half()}
        unobserved, observed = interpreter.run(passed), interpreter.run(passed, ignore)
        for name in "abcd":
            np.testing.assert_array_equal(unobserved[name].float().numpy(), observed[name].float().numpy(), err_msg=name)

    def test_a_result_that_is_declared_wider_is_not_rounded(self) -> None:
        x, y = fp16("x", (1,)), Value("y", "float32", (1,))
        unobserved, _ = both(Graph("main", "CoreML8", (x,), (y,), (Op("square", "op", {"x": x}, (y,)),), ()), torch.tensor([1.0009765625]))
        assert unobserved.item() == pytest.approx(1.0009765625**2, rel=1e-7)


class TestProducts:
    """Weights in oneDNN's layout and products of one row: an fp64 product within one rounding, whatever the strides of x."""

    @staticmethod
    def check(kind: str, x: torch.Tensor, weight: Array, bias: Array | None = None, **rest: Value) -> None:
        inputs = {"x": fp16("x", tuple(x.shape)), ("y" if kind == "matmul" else "weight"): fp16("w", weight.shape, weight), **rest}
        if bias is not None:
            inputs["bias"] = fp16("b", bias.shape, bias)
        reference = fp64_result(kind, x, weight, bias, **rest)
        tolerances: dict[NumericsName, float] = {"fp16": 2**-10, "fp32": 1e-5}
        for numerics, close in tolerances.items():
            unobserved, observed = both(one_op(kind, inputs, tuple(reference.shape)), x, numerics=numerics)
            limit = close * max(1.0, float(reference.abs().max()))
            assert unobserved.shape == observed.shape == reference.shape
            assert float((unobserved.double() - reference).abs().max()) <= limit

    @pytest.mark.parametrize("with_bias", [False, True])
    @pytest.mark.parametrize("shape", [(1, 33), (1, 1, 33), (7, 33), (2, 3, 5, 33), (128, 33)])
    @pytest.mark.parametrize("columns", [1, 2, 40])
    def test_linear(self, shape: tuple[int, ...], columns: int, with_bias: bool) -> None:
        random = np.random.default_rng(0)
        weight = random.standard_normal((columns, 33)).astype(np.float16)
        bias = random.standard_normal(columns).astype(np.float16) if with_bias else None
        self.check("linear", torch.from_numpy(random.standard_normal(shape).astype(np.float16)), weight, bias)

    @pytest.mark.parametrize("shape", [(1, 6), (4, 6), (2, 4, 6)])
    @pytest.mark.parametrize("turned", [False, True])
    def test_matmul_with_a_constant(self, shape: tuple[int, ...], turned: bool) -> None:
        random = np.random.default_rng(1)
        weight = random.standard_normal((5, 6) if turned else (6, 5)).astype(np.float16)
        x = torch.from_numpy(random.standard_normal(shape).astype(np.float16))
        self.check("matmul", x, weight, transpose_y=number("", turned))

    def test_matmul_of_a_turned_x(self) -> None:
        random = np.random.default_rng(2)
        x = torch.from_numpy(random.standard_normal((6, 4)).astype(np.float16))
        self.check("matmul", x, random.standard_normal((6, 5)).astype(np.float16), transpose_x=number("", True))

    def test_x_with_strides_of_its_own(self) -> None:
        random = np.random.default_rng(3)
        columns_apart = torch.from_numpy(random.standard_normal((33, 9)).astype(np.float16))
        weight = random.standard_normal((4, 33)).astype(np.float16)
        self.check("linear", columns_apart.t(), weight)
        self.check("linear", torch.cat([columns_apart.t(), columns_apart.t()], 1)[::2, :33], weight)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        groups=st.sampled_from([1, 2, 4]),
        kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
        dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
        pad_type=st.sampled_from(["valid", "same", "same_lower", "custom"]),
        pad=st.tuples(*[st.integers(0, 2)] * 4),
        extents=st.tuples(st.integers(6, 9), st.integers(6, 9)),
        with_bias=st.booleans(),
        channels_last=st.booleans(),
    )
    def test_convolutions_of_every_geometry(self, **drawn: Any) -> None:
        random = np.random.default_rng(4)
        x = torch.from_numpy(random.standard_normal((2, 8, *drawn["extents"])).astype(np.float16))
        weight = random.standard_normal((12, 8 // drawn["groups"], *drawn["kernel"])).astype(np.float16)
        rest = {name: number("", np.int32(drawn[name])) for name in ("strides", "dilations", "pad", "groups")}
        rest["pad_type"] = Value("", "string", (), data=drawn["pad_type"])
        bias = random.standard_normal(12).astype(np.float16) if drawn["with_bias"] else None
        self.check("conv", x.to(memory_format=torch.channels_last) if drawn["channels_last"] else x, weight, bias, **rest)

    @needs_onednn
    def test_only_products_of_known_shape_with_constants_are_laid_out(self) -> None:
        weight = fp16("w", (5, 6), np.ones((5, 6)))
        planned = [
            one_op("linear", {"x": fp16("x", (4, 6)), "weight": weight}, (4, 5)),
            one_op("linear", {"x": Value("x", "float16", (None, 6)), "weight": weight}, None),
            one_op("linear", {"x": fp16("x", (4, 6)), "weight": fp16("w", (5, 6))}, (4, 5)),
        ]
        laid_out = [not Interpreter(graph, numerics_named("fp16"))._unobserved_plan.steps[0].fixed for graph in planned]
        assert laid_out == [True, False, True]  # the last has no constants at all
        known = [step.reads for graph in planned for step in Interpreter(graph, numerics_named("fp16"))._unobserved_plan.steps]
        assert [len(reads) for reads in known] == [1, 1, 2]


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    """A table that is looked up and multiplied with, as a language model's is; 2 MB in fp16."""

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(16384, 64)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(self.table(ids), self.table.weight)

    torch.manual_seed(0)
    recipe = Recipe(name="tied", module=Tied().eval(), inputs={"ids": TensorSpec((1,), "int32", (0, 16383))}, outputs=("scores",))
    return build(recipe, tmp_path)


class TestMemory:
    def test_a_tied_table_is_held_once_as_fp16(self, tied: Path) -> None:
        program = read_program(tied)
        plan = Interpreter(program.function()[0], numerics_named("fp16"))._unobserved_plan
        step = next(step for step in plan.steps if step.op.type == "linear")
        enclosed = [cell.cell_contents for cell in step.function.__closure__ or () if isinstance(cell.cell_contents, torch.Tensor)]
        gather = next(step for step in plan.steps if step.op.type.startswith("gather"))
        (table,) = (value for value in gather.fixed.values() if isinstance(value, torch.Tensor) and value.numel() > 1000)
        assert table.dtype == torch.float16 and table.data_ptr() in {tensor.data_ptr() for tensor in enclosed}

    def test_nothing_stays_of_the_file(self, tied: Path) -> None:
        """A package that is written over, or cut short, while its model is in use changes no prediction and kills no process."""
        model = load_model(tied, "lifted", engine="interpreter")
        before = model.predict({"ids": np.array([7], np.int32)})["scores"]
        weights = next(tied.rglob("weight.bin"))
        with weights.open("r+b") as file:
            file.truncate(64)
        after = model.predict({"ids": np.array([7], np.int32)})["scores"]
        np.testing.assert_array_equal(before, after)
        assert np.abs(before).max() > 1

    def test_a_constant_in_memory_is_no_view_of_the_file(self, tied: Path) -> None:
        graph = read_program(tied).function()[0]
        mapped = [value for value in graph.constants if isinstance(value.data, np.ndarray) and is_mapped(value.data)]
        assert mapped
        for numerics in ("fp16", "fp32"):
            plan = Interpreter(graph, numerics_named(numerics))._unobserved_plan
            tensors = [value for step in plan.steps for value in step.fixed.values() if isinstance(value, torch.Tensor)]
            lies = {value.data.__array_interface__["data"][0] for value in mapped}  # type: ignore[union-attr]
            assert not lies & {tensor.data_ptr() for tensor in tensors}


def test_the_plan_for_observed_runs_is_made_only_when_it_is_needed(small_package: Path) -> None:
    interpreter = interpreted(small_package).interpreter
    assert "plan" not in vars(interpreter)
    assert interpreter.plan and "plan" in vars(interpreter)


def test_an_interpreter_that_rests_holds_no_weights_and_goes_on(tied: Path) -> None:
    model = interpreted(tied)
    before = model.predict({"ids": np.array([7], np.int32)})["scores"]
    interpreter = model.interpreter
    reference = weakref.ref(interpreter._unobserved_plan)
    interpreter.rest()
    gc.collect()
    assert reference() is None
    np.testing.assert_array_equal(model.predict({"ids": np.array([7], np.int32)})["scores"], before)


@pytest.mark.parametrize("numerics", ["fp16", "fp32"])
def test_a_state_goes_from_plan_to_plan(counting_package: Path, numerics: NumericsName) -> None:
    model = interpreted(counting_package, numerics)
    state = model.make_state()
    for observe in (None, ignore, None):
        (actual,) = model.predict({"x": [1.0, 2.0]}, state, observe).values()
    assert state.read(next(iter(model.states))).tolist() == [3, 6]
    assert actual.dtype == np.float32
