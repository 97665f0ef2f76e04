"""Laws of control flow, lists and states: random programs give what the same program in Python gives."""

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from coreflow.export.package.graph import Graph, Op, Value
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.lift.engines.interpreter import Interpreter
from coreflow.runtime.lift.numerics.named import numerics_named
from coreflow.runtime.lift.ops.state import StateBuffer

if TYPE_CHECKING:
    from tests.runtime.lift.laws.conftest import Draw, Law

ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "maximum": np.maximum}


def constant(data: Any, dtype: Any = np.float32) -> Value:
    array = np.asarray(data, dtype)
    return Value("", array.dtype.name, array.shape, data=array)


def value(numbers: Iterator[int], dtype: str = "float32", kind: Any = "tensor") -> Value:
    return Value(f"v{next(numbers)}", dtype, None, kind)


class Writer:
    """Draws a program on one vector, as MIL and as a Python function at once."""

    def __init__(self, draw: "Draw") -> None:
        self.draw = draw
        self.numbers = itertools.count()

    def block(self, name: str, x: Value, depth: int, *, entered: bool) -> tuple[Graph, Callable[[Any], Any]]:
        """A block that reads ``x``: as its own input, or, not ``entered``, out of what lies around it."""
        inner = value(self.numbers) if entered else x
        ops, result, function = self.steps(inner, depth)
        return Graph(name, "CoreML7", (inner,) if entered else (), (result,), tuple(ops), ()), function

    def steps(self, x: Value, depth: int) -> tuple[list[Op], Value, Callable[[Any], Any]]:
        ops: list[Op] = []
        functions: list[Callable[[Any], Any]] = []
        for _ in range(self.draw.whole(1, 3)):
            kind = self.draw.one(["arithmetic", "arithmetic", "cond", "while"]) if depth else "arithmetic"
            more, x, function = getattr(self, f"_{kind}")(x, depth)
            ops += more
            functions.append(function)

        def together(x: Any) -> Any:
            for function in functions:
                x = function(x)
            return x

        return ops, x, together

    def _arithmetic(self, x: Value, depth: int) -> tuple[list[Op], Value, Callable[[Any], Any]]:
        op, number, result = self.draw.one(list(ARITHMETIC)), self.draw.one([-1.5, 0.5, 2.0]), value(self.numbers)
        return [Op(op, result.name, {"x": x, "y": constant(number)}, (result,))], result, lambda x: ARITHMETIC[op](x, number)

    def _sum_below(self, x: Value, limit: float) -> tuple[list[Op], Value]:
        total, below = value(self.numbers), value(self.numbers, "bool")
        summed = Op("reduce_sum", total.name, {"x": x, "axes": constant([0], np.int32)}, (total,))
        return [summed, Op("less", below.name, {"x": total, "y": constant(limit)}, (below,))], below

    def _cond(self, x: Value, depth: int) -> tuple[list[Op], Value, Callable[[Any], Any]]:
        limit, result = self.draw.one([-2.0, 0.0, 3.0]), value(self.numbers)
        ops, below = self._sum_below(x, limit)
        (yes, if_so), (no, if_not) = (self.block(name, x, depth - 1, entered=False) for name in ("yes", "no"))
        ops.append(Op("cond", result.name, {"pred": below}, (result,), (yes, no)))
        return ops, result, lambda x: if_so(x) if x.sum() < limit else if_not(x)

    def _while(self, x: Value, depth: int) -> tuple[list[Op], Value, Callable[[Any], Any]]:
        """So many rounds: a counter goes with the vector."""
        rounds = self.draw.whole(0, 3)
        counter, more = value(self.numbers, "int32"), value(self.numbers, "bool")
        inputs = (value(self.numbers), counter)
        test = Op("less", more.name, {"x": counter, "y": constant(rounds, np.int32)}, (more,))
        condition = Graph("more", "CoreML7", inputs, (more,), (test,), ())
        inner, old, new = value(self.numbers), value(self.numbers, "int32"), value(self.numbers, "int32")
        body_ops, changed, function = self.steps(inner, depth - 1)
        count = Op("add", new.name, {"x": old, "y": constant(1, np.int32)}, (new,))
        body = Graph("body", "CoreML7", (inner, old), (changed, new), (*body_ops, count), ())
        results = value(self.numbers), value(self.numbers, "int32")
        loop = Op("while_loop", results[0].name, {"loop_vars": (x, constant(0, np.int32))}, results, (condition, body))

        def repeated(x: Any) -> Any:
            for _ in range(rounds):
                x = function(x)
            return x

        return [loop], results[0], repeated


def test_nested_conditions_and_loops_give_the_results_of_python(law: "Law") -> None:
    def rule(draw: "Draw") -> None:
        writer = Writer(draw)
        x = value(writer.numbers)
        ops, result, function = writer.steps(x, depth=3)
        interpreter = Interpreter(Graph("main", "CoreML7", (x,), (result,), tuple(ops), ()), numerics_named("fp64"))
        for _ in range(2):
            given = draw.floats(3).astype(np.float64)
            (actual,) = interpreter.run({x.name: torch.from_numpy(given)}).values()
            np.testing.assert_allclose(actual.numpy(), function(given), rtol=1e-12)

    law(rule)


def test_lists_are_values_that_grow(law: "Law") -> None:
    """A write leaves the list that it was given as it was; a place that was never written holds zeros."""

    def rule(draw: "Draw") -> None:
        numbers = itertools.count()
        size, length = draw.whole(1, 3), draw.whole(1, 3)
        first = value(numbers, kind="list")
        ops = [Op("make_list", "make", {"init_length": constant(length, np.int32), "elem_shape": constant([size], np.int32)}, (first,))]
        lists: list[tuple[Value, list[Any]]] = [(first, [np.zeros(size)] * length)]
        references: list[tuple[Value, Any]] = []
        for _ in range(draw.whole(1, 6)):
            ls, model = draw.one(lists)
            kind, result = draw.one(["write", "scatter", "read", "gather", "length"]), value(numbers)
            places = draw.wholes(draw.whole(1, 2), 0, len(model) - 1)
            if kind in ("write", "scatter"):
                places = draw.perm(len(model) + 1)[: 1 if kind == "write" else 2]
                data = draw.floats(len(places), size)
                changed = value(numbers, kind="list")
                arguments = {"index": constant(places[0], np.int32), "value": constant(data[0])}
                if kind == "scatter":
                    arguments = {"indices": constant(places, np.int32), "value": constant(data)}
                ops.append(Op(f"list_{kind}", changed.name, {"ls": ls, **arguments}, (changed,)))
                fresh = [*model, *[np.zeros(size)] * (max(places) + 1 - len(model))]
                for place, row in zip(places, data, strict=True):
                    fresh[place] = row
                lists.append((changed, fresh))
                continue
            arguments = {
                "read": {"index": constant(places[0], np.int32)}, "gather": {"indices": constant(places, np.int32)}, "length": {}
            }[kind]  # fmt: skip
            ops.append(Op(f"list_{kind}", result.name, {"ls": ls, **arguments}, (result,)))
            references.append(
                (result, {"read": model[places[0]], "gather": np.stack([model[p] for p in places]), "length": len(model)}[kind])
            )
        graph = Graph("main", "CoreML5", (), tuple(result for result, _ in references), tuple(ops), ())
        actual = Interpreter(graph, numerics_named("fp64")).run({})
        for result, reference in references:
            np.testing.assert_array_equal(actual[result.name].numpy(), reference)

    law(rule)


@pytest.mark.parametrize("op", ["list_read", "list_gather"])
def test_a_place_outside_a_list_is_an_error(op: str) -> None:
    made, result = Value("l", "float32", None, "list"), Value("y", "float32", None)
    make = Op("make_list", "make", {"elem_shape": constant([2], np.int32), "init_length": constant(2, np.int32)}, (made,))
    place = {"index": constant(2, np.int32)} if op == "list_read" else {"indices": constant([0, 2], np.int32)}
    graph = Graph("main", "CoreML5", (), (result,), (make, Op(op, "op", {"ls": made, **place}, (result,))), ())
    with pytest.raises(UnsupportedError, match=f"{op} 'op' cannot be executed"):
        Interpreter(graph, numerics_named("fp64")).run({})


def test_a_state_holds_the_last_written_value_and_earlier_reads_stay(law: "Law") -> None:
    """Both forms of a write: the file's, which gives nothing, and the dialect's, which gives the value on."""

    def rule(draw: "Draw") -> None:
        numbers = itertools.count()
        state = Value("s", "float32", (2,), "state")
        initial = draw.floats(2).astype(np.float64)
        current, ops, references = initial, [], []
        known: list[tuple[Value, Any]] = []
        for _ in range(draw.whole(1, 6)):
            kind = draw.one(["read", "write", "update"] if known else ["read"])
            result = value(numbers)
            if kind == "read":
                ops.append(Op("read_state", result.name, {"input": state}, (result,)))
                known.append((result, current))
                references.append(known[-1])
                continue
            source, data = draw.one(known)
            changed = value(numbers)
            ops.append(Op("mul", changed.name, {"x": source, "y": constant(2)}, (changed,)))
            current = data * 2
            if kind == "write":
                ops.append(Op("write_state", f"w{len(ops)}", {"input": state, "data": changed}, ()))
            else:
                ops.append(Op("coreml_update_state", result.name, {"state": state, "value": changed}, (result,)))
                references.append((result, current))
        buffer = StateBuffer(torch.from_numpy(initial.copy()))
        graph = Graph("main", "CoreML8", (state,), tuple(result for result, _ in references), tuple(ops), ())
        actual = Interpreter(graph, numerics_named("fp64")).run({"s": buffer})
        for result, reference in references:
            np.testing.assert_array_equal(actual[result.name].numpy(), reference)
        np.testing.assert_array_equal(buffer.tensor.numpy(), current)

    law(rule)


@pytest.mark.parametrize("labels", [("a", "b", "c"), (7, 8, 9)], ids=["names", "numbers"])
def test_classify_names_the_most_probable_class(law: "Law", labels: tuple[Any, ...]) -> None:
    def rule(draw: "Draw") -> None:
        probabilities = draw.floats(1, 3, low=0, high=1)
        results = Value("label", "string", None), Value("all", "", None, "dictionary")
        classes = Value("", "string", (3,), "list", data=labels)
        op = Op("classify", "op", {"probabilities": constant(probabilities), "classes": classes}, results)
        actual = Interpreter(Graph("main", "CoreML5", (), results, (op,), ()), numerics_named("fp64")).run({})
        assert actual["label"] == labels[int(probabilities.argmax())]
        assert actual["all"] == dict(zip(labels, probabilities.astype(np.float64).ravel().tolist(), strict=True))

    law(rule)
