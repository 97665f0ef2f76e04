"""The walk over a graph: rounding where fp16 rounds, values freed when dead, control flow, lists, and errors that name the op."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.graph import Graph, Op, Value
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.backend import NumericsName
from coreflow.runtime.lift import registry
from coreflow.runtime.lift.engines.interpreter import Interpreter
from coreflow.runtime.lift.numerics.named import numerics_named
from coreflow.runtime.lift.registry import find, load_lowerings, lowering, require_all
from coreflow.runtime.load import load_model


def fp16(name: str, data: Any = None) -> Value:
    return Value(name, "float16", None, data=None if data is None else np.asarray(data, np.float16))


def chain(*steps: tuple[str, dict[str, Value]]) -> Graph:
    """A program in which every op takes the result of the one before as x."""
    value = first = fp16("x")
    ops = []
    for index, (kind, others) in enumerate(steps):
        result = fp16(f"y{index}")
        ops.append(Op(kind, f"op{index}", {"x": value, **others}, (result,)))
        value = result
    return Graph("main", "CoreML8", (first,), (value,), tuple(ops), ())


def run(graph: Graph, numerics: NumericsName, *values: float, observe: Any = None) -> list[float]:
    chosen = numerics_named(numerics)
    x = torch.tensor(values, dtype=chosen.dtype)
    (result,) = Interpreter(graph, chosen).run({"x": x}, observe).values()
    return [float(number) for number in result]


class TestNumerics:
    def test_fp16_rounds_after_every_op_and_fp32_does_not(self) -> None:
        graph = chain(("add", {"y": fp16("", 2048)}), ("sub", {"y": fp16("", 2048)}))
        assert run(graph, "fp16", 1.0) == [0.0]  # 2049 lies between two fp16 values and goes to the even one
        assert run(graph, "fp32", 1.0) == [1.0]

    def test_fp16_overflows_to_infinity(self) -> None:
        graph = chain(("mul", {"y": fp16("", 2)}))
        assert run(graph, "fp16", 40000.0, -40000.0, 32000.0) == [np.inf, -np.inf, 64000.0]
        assert run(graph, "fp32", 40000.0) == [80000.0]

    def test_fp16_keeps_subnormals(self) -> None:
        assert run(chain(("mul", {"y": fp16("", 0.5)})), "fp16", 2**-23, 2**-24) == [2**-24, 0.0]

    def test_fp64_is_wider_than_fp32(self) -> None:
        graph = chain(("mul", {"y": fp16("", 1 / 3)}))
        assert run(graph, "fp64", 1e-3) == [1e-3 * float(np.float16(1 / 3))]
        assert run(graph, "fp32", 1e-3) != run(graph, "fp64", 1e-3)

    def test_values_declared_wider_than_fp16_are_not_rounded(self) -> None:
        x, y = fp16("x"), Value("y", "float32", None)
        graph = Graph("main", "CoreML8", (x,), (y,), (Op("square", "op", {"x": x}, (y,)),), ())
        chosen = numerics_named("fp16")
        result = Interpreter(graph, chosen).run({"x": torch.tensor([1.0009765625])})["y"]
        assert result.item() == pytest.approx(1.0009765625**2, rel=1e-7)


class TestWalk:
    def test_an_observer_sees_every_op_in_order_with_its_rounded_results(self) -> None:
        graph = chain(("add", {"y": fp16("", 2048)}), ("relu", {}))
        seen: list[tuple[str, list[float]]] = []
        run(graph, "fp16", 1.0, observe=lambda op, results: seen.append((op.type, results[0].tolist())))
        assert seen == [("add", [2048.0]), ("relu", [2048.0])]

    def test_a_value_is_let_go_after_its_last_use(self) -> None:
        graph = chain(*(("exp", {}) for _ in range(4)))
        alive: list[weakref.ref[Any]] = []
        counts = []

        def observe(op: Op, results: tuple[torch.Tensor, ...]) -> None:
            alive.append(weakref.ref(results[0]))
            del results
            gc.collect()
            counts.append(sum(reference() is not None for reference in alive))

        run(graph, "fp32", 0.1, observe=observe)
        assert max(counts) == 2  # the op's own result and what it read

    def test_predictions_do_not_see_each_other(self) -> None:
        graph = chain(("add", {"y": fp16("", 1)}))
        interpreter = Interpreter(graph, numerics_named("fp32"))
        results = [interpreter.run({"x": torch.tensor([float(k)])})["y0"].item() for k in range(3)]
        assert results == [1, 2, 3]

    def test_constants_are_shared_and_not_copied_per_use(self) -> None:
        weight = fp16("w", np.ones((4, 4)))
        graph = chain(("linear", {"weight": weight}), ("linear", {"weight": weight}))
        interpreter = Interpreter(graph, numerics_named("fp32"))
        first, second = (step.fixed["weight"] for step in interpreter.plan.steps)
        assert first is second

    def test_an_op_that_fails_is_named(self) -> None:
        graph = chain(("reshape", {"shape": Value("", "int32", (1,), data=np.array([7], np.int32))}))
        with pytest.raises(UnsupportedError, match="reshape 'op0' cannot be executed"):
            run(graph, "fp32", 1.0, 2.0)


class TestRegistry:
    def test_a_second_lowering_for_an_op_is_refused(self) -> None:
        load_lowerings()
        with pytest.raises(ValueError, match="add has a lowering since iOS15 already"):
            lowering("add")(lambda x, y: x)

    def test_a_version_is_chosen_by_the_opset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registry, "_LOWERINGS", {})

        def old(x: torch.Tensor) -> torch.Tensor:
            return x

        def new(x: torch.Tensor) -> torch.Tensor:
            return x

        lowering("thing", since="iOS16")(old)
        lowering("thing", since="iOS18")(new)
        chosen = [entry and entry.function for entry in (find("thing", opset) for opset in registry.OPSETS)]
        assert chosen == [None, old, old, new, new]

    def test_missing_ops_are_counted_in_nested_blocks_too(self) -> None:
        load_lowerings()
        inner = Graph("b", "CoreML8", (), (), (Op("wonder", "w", {}, ()),), ())
        graph = Graph("main", "CoreML8", (), (), (Op("cond", "c", {}, (), (inner, inner)), Op("marvel", "m", {}, ())), ())
        with pytest.raises(UnsupportedError, match=r"marvel \(1x\), wonder \(2x\)"):
            require_all(graph)

    def test_an_unknown_opset_is_refused(self) -> None:
        with pytest.raises(UnsupportedError, match="opset 'CoreML99'"):
            require_all(Graph("main", "CoreML99", (), (), (), ()))


class TestControlFlow:
    """Programs built and saved by coremltools; the expectation is what the Python in them says."""

    @pytest.fixture(scope="class")
    @classmethod
    def tools(cls) -> Any:
        quiet_coremltools()
        from coremltools.converters.mil.mil import Builder, types

        return Builder, types

    def test_a_branch_is_taken_by_its_condition(self, branching_package: Path) -> None:
        model = load_model(branching_package, "lifted")
        for a, expected in ((1.0, [3, 5]), (-1.0, [-1, -2])):
            (actual,) = model.predict({"a": [a], "b": [1.0, 2.0]}).values()
            assert actual.tolist() == expected

    def test_a_loop_runs_until_its_condition_fails(self, save: Callable[..., Path], tools: Any) -> None:
        mb, types = tools

        def program(count: Any, start: Any) -> Any:
            def body(left: Any, total: Any) -> Any:
                return mb.sub(x=left, y=1), mb.add(x=total, y=left)

            _, total = mb.while_loop(_cond=lambda left, total: mb.squeeze(x=mb.greater(x=left, y=0)), _body=body, loop_vars=(count, start))
            return total

        specs = [mb.TensorSpec((1,), dtype=types.int32), mb.TensorSpec((1,), dtype=types.int32)]
        model = load_model(save(mb.program(input_specs=specs)(program)), "lifted")
        for count, expected in ((4, 110), (0, 100)):
            (actual,) = model.predict({"count": [count], "start": [100]}).values()
            assert actual.tolist() == [expected]

    def test_a_list_collects_the_values_that_a_loop_writes(self, save: Callable[..., Path], tools: Any) -> None:
        mb, types = tools

        def program(x: Any) -> Any:
            squares = mb.make_list(init_length=1, dynamic_length=True, elem_shape=(2,), dtype="fp32")

            def body(index: Any, ls: Any) -> Any:
                scaled = mb.mul(x=x, y=mb.cast(x=index, dtype="fp32"))
                return mb.add(x=index, y=1), mb.list_write(ls=ls, index=index, value=scaled)

            _, full = mb.while_loop(_cond=lambda index, ls: mb.less(x=index, y=3), _body=body, loop_vars=(0, squares))
            return mb.list_gather(ls=full, indices=[2, 0, 1])

        package = save(mb.program(input_specs=[mb.TensorSpec((2,), dtype=types.fp32)])(program))
        (actual,) = load_model(package, "lifted").predict({"x": [1.0, 10.0]}).values()
        assert actual.tolist() == [[2, 20], [0, 0], [1, 10]]
