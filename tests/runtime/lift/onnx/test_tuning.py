"""Tuning changes how onnxruntime computes a model, not what: every change against the model as it was, in a session of its own."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper

from coreflow.models.arrays import Array, Arrays
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.lift.onnx.session import float_dtypes, open_session
from coreflow.runtime.lift.onnx.tuning import tune
from coreflow.runtime.lift.onnx.tuning.blocks import NCHWC, channels_in_a_block, stay_in_blocks
from coreflow.runtime.lift.onnx.tuning.graph import shapes_of
from coreflow.runtime.lift.onnx.tuning.means import means_as_products
from coreflow.runtime.lift.onnx.tuning.rounding import round_later, take_fp16_inputs
from coreflow.runtime.lift.onnx.tuning.sums import sums_as_convolutions

RANDOM = np.random.default_rng(0)


def model(
    nodes: Sequence[NodeProto], inputs: dict[str, tuple[int, ...]], outputs: Collection[str], constants: Arrays, domain: str = ""
) -> onnx.ModelProto:
    """The shapes of all values are declared, as torch's exporter declares them; not where ops are of another ``domain``."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return made if domain else onnx.shape_inference.infer_shapes(made, strict_mode=True)


def rounded(name: str, result: str) -> list[NodeProto]:
    """``name`` rounded to fp16 as ``result``."""
    return [
        helper.make_node("Cast", [name], [f"{name}_h"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{name}_h"], [result], to=TensorProto.FLOAT),
    ]


def both(
    folder: Path, made: onnx.ModelProto, inputs: Arrays, fp16_inputs: Collection[str] = ()
) -> tuple[list[Any], list[Any], Counter[str]]:
    """What the model gives, what the tuned one gives, and which ops that has."""
    plain, tuned = folder / "plain.onnx", folder / "tuned.onnx"
    onnx.save(made, plain)
    onnx.save(made, tuned)
    tune(tuned, lambda source, target: open_session(source, optimised=target), fp16_inputs)
    session = open_session(tuned, tuned=True)
    given = {name: inputs[name].astype(dtype) for name, dtype in float_dtypes(session).items()}
    graph = onnx.load(tuned).graph
    ops = Counter(node.op_type for node in graph.node)
    assert max(Counter(tensor.name for tensor in graph.initializer).values(), default=1) == 1
    assert {file.name for file in folder.iterdir()} == {"plain.onnx", "tuned.onnx", "tuned.weights"}
    return open_session(plain).run(None, inputs), session.run(None, given), ops


def block_here(folder: Path) -> int:
    """How many channels onnxruntime puts side by side on this processor; the test is skipped where it does not."""
    block = channels_in_a_block(lambda source, target: open_session(source, optimised=target), folder)
    if block is None:
        pytest.skip("onnxruntime has no blocked convolutions on this processor")
    return block


def weights(out: int, into: int, kernel: int = 1) -> Array:
    return RANDOM.standard_normal((out, into, kernel, kernel)).astype(np.float32) / np.float32(np.sqrt(into) * kernel)


class TestMeans:
    @pytest.mark.parametrize("keep", [0, 1])
    @pytest.mark.parametrize(
        ("shape", "axis"),
        [((1, 24, 1, 9), 1), ((2, 3, 4, 5), 0), ((2, 3, 4, 5), 1), ((2, 3, 4, 5), -2), ((3, 7, 5), 1), ((6, 5), 0), ((2, 3, 1, 1, 4), 1)],
        ids=str,
    )
    def test_over_one_axis_is_a_product(self, tmp_path: Path, shape: tuple[int, ...], axis: int, keep: int) -> None:
        node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=keep)
        x = RANDOM.standard_normal(shape).astype(np.float32)
        (plain,), (tuned,), ops = both(tmp_path, model([node], {"x": shape}, ["y"], {"axes": np.array([axis], np.int64)}), {"x": x})
        np.testing.assert_allclose(tuned, x.mean(axis, keepdims=bool(keep)), rtol=1e-5, atol=1e-6)
        assert tuned.shape == plain.shape and ops["MatMul"] == 1 and not ops["ReduceMean"]
        if keep and shape in ((1, 24, 1, 9), (2, 3, 1, 1, 4), (3, 7, 5), (6, 5)):
            assert ops["Reshape"] == (len(shape) > 3)  # at most before the product, and none behind it

    @pytest.mark.parametrize("axes", [[3], [-1], [1, 2], [2, 3]], ids=str)
    def test_over_the_last_or_several_stays_as_it_is(self, tmp_path: Path, axes: list[int]) -> None:
        node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)
        x = RANDOM.standard_normal((2, 3, 4, 5)).astype(np.float32)
        (plain,), (tuned,), ops = both(tmp_path, model([node], {"x": x.shape}, ["y"], {"axes": np.array(axes, np.int64)}), {"x": x})
        assert ops == {"ReduceMean": 1}
        np.testing.assert_array_equal(tuned, plain)

    @pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
    def test_values_that_are_no_numbers_stay_in_their_column(self, tmp_path: Path, bad: float) -> None:
        x = np.ones((1, 24, 1, 9), np.float32)
        x[0, 5, 0, 3] = bad
        node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)
        _, (tuned,), _ = both(tmp_path, model([node], {"x": x.shape}, ["y"], {"axes": np.array([1], np.int64)}), {"x": x})
        np.testing.assert_array_equal(tuned[0, 0, 0], [1, 1, 1, bad, 1, 1, 1, 1, 1])


class TestReluBeforeRounding:
    def chain(self, outputs: Collection[str] = ("y",)) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            *rounded("c", "r"),
            helper.make_node("Relu", ["r"], ["y"]),
        ]
        return model(nodes, {"x": (1, 16, 4, 4)}, outputs, {"w": weights(16, 16)})

    def test_is_one_kernel_with_the_convolution_and_gives_the_same_bits(self, tmp_path: Path) -> None:
        x = RANDOM.standard_normal((1, 16, 4, 4)).astype(np.float32) * np.float32(10) ** RANDOM.integers(-9, 9, (1, 1, 4, 4)).astype(
            np.float32
        )
        (plain,), (tuned,), ops = both(tmp_path, self.chain(), {"x": x})
        np.testing.assert_array_equal(tuned, plain)
        assert np.isinf(plain).any() and (plain == 0).any() and not ops["Relu"] and ops["Cast"] == 2

    @pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
    def test_nothing_that_is_no_number_is_lost(self, tmp_path: Path, bad: float) -> None:
        x = np.ones((1, 16, 4, 4), np.float32)
        x[0, 3, 1, 2] = bad
        (plain,), (tuned,), _ = both(tmp_path, self.chain(), {"x": x})
        np.testing.assert_array_equal(tuned, plain)
        assert not np.isfinite(tuned[0, :, 1, 2]).all() and np.isfinite(np.delete(tuned.reshape(16, 16), 6, 1)).all()

    @pytest.mark.parametrize("read", ["c", "r"])
    def test_not_where_something_else_reads_a_value_between(self, tmp_path: Path, read: str) -> None:
        x = RANDOM.standard_normal((1, 16, 4, 4)).astype(np.float32)
        plain, tuned, ops = both(tmp_path, self.chain(("y", read)), {"x": x})
        for reference, actual in zip(plain, tuned, strict=True):
            np.testing.assert_array_equal(actual, reference)
        assert (plain[1] < 0).any() and ops["Relu"] == 1

    @pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Neg", "Exp"])
    def test_not_other_ops_than_relu(self, tmp_path: Path, op: str) -> None:
        """The sigmoid of a rounded number is no rounded number."""
        x = RANDOM.standard_normal((1, 16, 4, 4)).astype(np.float32)
        nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), *rounded("c", "r"), helper.make_node(op, ["r"], ["y"])]
        (plain,), (tuned,), _ = both(tmp_path, model(nodes, {"x": x.shape}, ["y"], {"w": weights(16, 16)}), {"x": x})
        np.testing.assert_array_equal(tuned, plain)

    def test_not_behind_other_casts(self, tmp_path: Path) -> None:
        """Whether a number is there, as 0 or 1, is no rounding: a negative one is."""
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("Cast", ["c"], ["b"], to=TensorProto.BOOL),
            helper.make_node("Cast", ["b"], ["r"], to=TensorProto.FLOAT),
            helper.make_node("Relu", ["r"], ["y"]),
        ]
        x = RANDOM.standard_normal((1, 16, 4, 4)).astype(np.float32)
        (plain,), (tuned,), _ = both(tmp_path, model(nodes, {"x": x.shape}, ["y"], {"w": weights(16, 16)}), {"x": x})
        np.testing.assert_array_equal(tuned, plain)
        assert (plain == 1).all()


class TestMaximaBeforeRounding:
    def test_a_rounding_moves_behind_the_maximum(self, tmp_path: Path) -> None:
        """Behind relu, as in the first layers of a residual network; with ties in fp16 that are none in fp32, and an overflow."""
        nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), *rounded("c", "r"), helper.make_node("Relu", ["r"], ["p"])]
        nodes.append(helper.make_node("MaxPool", ["p"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4))
        x = RANDOM.standard_normal((1, 16, 8, 8)).astype(np.float32)
        x[0, :, 4, 4] *= 1e6
        x[0, :, 0, 0] = x[0, :, 0, 1] * np.float32(1 + 2**-20)
        (plain,), (tuned,), _ = both(tmp_path, model(nodes, {"x": x.shape}, ["y"], {"w": weights(16, 16)}), {"x": x})
        np.testing.assert_array_equal(tuned, plain)
        assert np.isinf(plain).any()
        made = onnx.load(tmp_path / "tuned.onnx").graph.node
        assert [node.op_type for node in made if node.op_type in ("MaxPool", "Cast")] == ["MaxPool", "Cast", "Cast"]

    def test_the_moved_rounding_has_the_smaller_shape(self, tmp_path: Path) -> None:
        """It meets another value of its own shape in blocks."""
        block_here(tmp_path)
        nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), *rounded("c", "r")]
        nodes.append(helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]))
        nodes += [helper.make_node("Conv", ["z", "w"], ["d"]), *rounded("d", "q"), helper.make_node("Add", ["p", "q"], ["s"])]
        nodes += [*rounded("s", "t"), helper.make_node("Conv", ["t", "w"], ["y"])]
        inputs = {name: RANDOM.standard_normal((1, 32, size, size)).astype(np.float32) for name, size in (("x", 8), ("z", 4))}
        made = model(nodes, {name: array.shape for name, array in inputs.items()}, ["y"], {"w": weights(32, 32)})
        (plain,), (tuned,), ops = both(tmp_path, made, inputs)
        np.testing.assert_array_equal(tuned, plain)
        assert (ops["ReorderInput"], ops["ReorderOutput"], ops["Conv"]) == (2, 1, 4)

    def test_not_where_the_place_of_the_maximum_is_asked_for(self, tmp_path: Path) -> None:
        """Of two that are one in fp16 the first is it, whichever was larger."""
        nodes = [*rounded("x", "r"), helper.make_node("MaxPool", ["r"], ["y", "place"], kernel_shape=[2, 2], strides=[2, 2])]
        made = model(nodes, {"x": (1, 1, 2, 2)}, ["y"], {})
        made.graph.output.append(helper.make_tensor_value_info("place", TensorProto.INT64, (1, 1, 1, 1)))
        x = np.array([[[[1, 1 + 2**-20], [0, 0]]]], np.float32)
        plain, tuned, _ = both(tmp_path, made, {"x": x})
        assert plain[1].item() == tuned[1].item() == 0


class TestBlocks:
    def test_a_gate_of_one_place_is_broadcast_in_order(self, tmp_path: Path) -> None:
        """Squeeze and excite: both factors come from convolutions, but blocks of (C, 1, 1) do not meet those of (C, H, W)."""
        nodes = [
            helper.make_node("Conv", ["x", "a"], ["p"]),
            helper.make_node("Conv", ["z", "b"], ["q"]),
            helper.make_node("Sigmoid", ["q"], ["gate"]),
            helper.make_node("Mul", ["p", "gate"], ["r"]),
            helper.make_node("Conv", ["r", "a"], ["y"]),
        ]
        made = model(nodes, {"x": (1, 32, 4, 4), "z": (1, 32, 1, 1)}, ["y"], {"a": weights(32, 32), "b": weights(32, 32)})
        inputs = {
            "x": RANDOM.standard_normal((1, 32, 4, 4)).astype(np.float32),
            "z": RANDOM.standard_normal((1, 32, 1, 1)).astype(np.float32),
        }
        (plain,), (tuned,), _ = both(tmp_path, made, inputs)
        np.testing.assert_array_equal(tuned, plain)

    @pytest.mark.parametrize(("first", "last", "turns"), [(0, 0, 1), (1, 1, 2), (0, 1, 2), (1, 0, 2)])
    def test_values_with_channels_last_are_put_in_order_as_before(self, tmp_path: Path, first: int, last: int, turns: int) -> None:
        """Its axes are not those of the blocks. This is what onnxruntime makes of turns around convolutions, here around pools."""
        block = block_here(tmp_path)

        def on_blocks(op: str, source: str, target: str, **attributes: Any) -> NodeProto:
            return helper.make_node(op, [source], [target], domain=NCHWC, **attributes)

        nodes = [
            on_blocks("ReorderInput", "x", "a", channels_last=first),
            on_blocks("MaxPool", "a", "b", kernel_shape=[1, 1]),
            on_blocks("ReorderOutput", "b", "t", channels_last=first, channels=32),
            helper.make_node("Tanh", ["t"], ["v"]),
            on_blocks("ReorderInput", "v", "c", channels_last=last),
            on_blocks("MaxPool", "c", "d", kernel_shape=[1, 1]),
            on_blocks("ReorderOutput", "d", "y", channels_last=last, channels=32),
        ]
        shape = (1, 32, 32, 32)
        made = model(nodes, {"x": shape}, ["y"], {}, NCHWC)
        x = RANDOM.standard_normal(shape).astype(np.float32)
        results = []
        for changed in (False, True):
            if changed:
                stay_in_blocks(made.graph, dict.fromkeys(("x", "t", "v", "y"), shape), block)
            onnx.save(made, tmp_path / "made.onnx")
            results += open_session(tmp_path / "made.onnx", tuned=True).run(None, {"x": x})
        np.testing.assert_array_equal(results[1], results[0])
        assert first != last or np.allclose(results[0], np.tanh(x), atol=1e-6)
        assert Counter(node.op_type for node in made.graph.node)["ReorderInput"] == turns

    def test_padding_of_a_block_reaches_no_output(self, tmp_path: Path) -> None:
        """24 channels are a block and a half: what is zero there becomes a half, and then infinite, while the channels stay zero."""
        nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Sigmoid", ["c"], ["v0"])]
        for i in range(24):
            nodes.append(helper.make_node("Add", [f"v{i}", f"v{i}"], [f"v{i + 1}"]))
        nodes += [*rounded("v24", "r"), helper.make_node("Conv", ["r", "w"], ["y"])]
        made = model(nodes, {"x": (1, 24, 3, 3)}, ["y"], {"w": np.ones((24, 24, 1, 1), np.float32)})
        (plain,), (tuned,), _ = both(tmp_path, made, {"x": np.full((1, 24, 3, 3), -9.0, np.float32)})
        np.testing.assert_array_equal(tuned, plain)
        assert np.isfinite(plain).all()

    def test_a_residual_network_is_put_in_order_once(self, tmp_path: Path) -> None:
        block_here(tmp_path)
        nodes, constants, current = [], {}, "x"
        for i in range(3):
            constants[f"a{i}"], constants[f"b{i}"] = weights(32, 32, 3), weights(32, 32)
            nodes += [helper.make_node("Conv", [current, f"a{i}"], [f"p{i}"], pads=[1] * 4), *rounded(f"p{i}", f"q{i}")]
            nodes += [helper.make_node("Relu", [f"q{i}"], [f"r{i}"]), helper.make_node("Conv", [f"r{i}", f"b{i}"], [f"s{i}"])]
            nodes += [*rounded(f"s{i}", f"t{i}")]
            if i:
                nodes += [helper.make_node("Add", [f"t{i}", current], [f"u{i}"]), *rounded(f"u{i}", f"v{i}")]
            current = f"v{i}" if i else f"t{i}"
        made = model(nodes, {"x": (1, 32, 6, 6)}, [current], constants)
        (plain,), (tuned,), ops = both(tmp_path, made, {"x": RANDOM.standard_normal((1, 32, 6, 6)).astype(np.float32)})
        np.testing.assert_array_equal(tuned, plain)
        assert (ops["ReorderInput"], ops["ReorderOutput"], ops["Cast"], ops["Conv"], ops["Add"]) == (1, 1, 16, 8, 0)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(data=st.data(), channels=st.sampled_from([16, 24, 32]))
    def test_any_network_gives_the_same_results_after_tuning(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, channels: int
    ) -> None:
        """Convolutions, elementwise ops, roundings, means and turns in any order; some values leave, whatever else reads them."""
        shape = (1, channels, 3, 4)
        nodes: list[NodeProto] = []
        constants: dict[str, Array] = {
            "axes": np.array([1], np.int64),
            "scale": RANDOM.standard_normal((1, channels, 1, 1)).astype(np.float32),
        }
        values = ["x", "z"]
        for i in range(data.draw(st.integers(3, 14))):
            kind = data.draw(
                st.sampled_from(["Conv", "Conv", "Cast", "Cast", "Add", "Mul", "Sub", "Relu", "Sigmoid", "Tanh", "Mean", "Turn", "Scale"])
            )
            x, y, result = data.draw(st.sampled_from(values)), data.draw(st.sampled_from(values)), f"v{i}"
            if kind == "Conv":
                constants[f"w{i}"] = weights(channels, channels)
                nodes.append(helper.make_node("Conv", [x, f"w{i}"], [result]))
            elif kind == "Cast":
                nodes += rounded(x, result) if f"{x}_h" not in {name for node in nodes for name in node.output} else []
                if not nodes or nodes[-1].output[0] != result:
                    continue
            elif kind in ("Add", "Mul", "Sub"):
                nodes.append(helper.make_node(kind, [x, y], [result]))
            elif kind == "Mean":  # broadcast against everything again
                nodes += [helper.make_node("ReduceMean", [x, "axes"], [f"m{i}"]), helper.make_node("Sub", [x, f"m{i}"], [result])]
            elif kind == "Turn":
                nodes += [
                    helper.make_node("Transpose", [x], [f"m{i}"], perm=[0, 1, 3, 2]),
                    helper.make_node("Transpose", [f"m{i}"], [result], perm=[0, 1, 3, 2]),
                ]
            elif kind == "Scale":
                nodes.append(helper.make_node("Mul", [x, "scale"], [result]))
            else:
                nodes.append(helper.make_node(kind, [x], [result]))
            values.append(result)
        made_here = values[2:]
        if not made_here:
            return
        outputs = data.draw(st.lists(st.sampled_from(made_here), min_size=1, max_size=3, unique=True))
        inputs = {name: RANDOM.standard_normal(shape).astype(np.float32) for name in ("x", "z")}
        plain, tuned, _ = both(tmp_path_factory.mktemp("any"), model(nodes, dict.fromkeys(inputs, shape), outputs, constants), inputs)
        for reference, actual in zip(plain, tuned, strict=True):
            assert actual.shape == reference.shape
            np.testing.assert_allclose(actual, reference, rtol=4e-3, atol=4e-3 * float(np.abs(reference).max(initial=1e-3)))

    def test_the_block_is_that_of_onnxruntimes_weights(self, tmp_path: Path) -> None:
        """An output channel of its own for every element of the first block, all for the first input channel."""
        block = block_here(tmp_path)
        weights = np.arange(64 * 32, dtype=np.float32).reshape(64, 32, 1, 1)
        made = model([helper.make_node("Conv", ["x", "w"], ["y"])], {"x": (1, 32, 4, 4)}, ["y"], {"w": weights})
        onnx.save(made, tmp_path / "made.onnx")
        open_session(tmp_path / "made.onnx", optimised=tmp_path / "optimised.onnx")
        (laid_out,) = (numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "optimised.onnx").graph.initializer)
        parts = weights.reshape(64 // block, block, 32 // block, block).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(laid_out.ravel(), parts.ravel())

    @pytest.mark.parametrize("leaves", ["h", "t"])
    def test_a_half_that_something_else_reads_is_rounded_in_order(self, tmp_path: Path, leaves: str) -> None:
        """Only fp32 can be put in order again. It is read by the caller, or turned."""
        block_here(tmp_path)
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("Cast", ["c"], ["h"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["h"], ["r"], to=TensorProto.FLOAT),
            helper.make_node("Conv", ["r", "w"], ["y"]),
            helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 3, 1]),
        ]
        made = model(nodes if leaves == "t" else nodes[:-1], {"x": (1, 32, 4, 4)}, ["y"], {"w": weights(32, 32)})
        made.graph.output.append(helper.make_tensor_value_info(leaves, TensorProto.FLOAT16, None))
        plain, tuned, _ = both(tmp_path, made, {"x": RANDOM.standard_normal((1, 32, 4, 4)).astype(np.float32)})
        for reference, actual in zip(plain, tuned, strict=True):
            np.testing.assert_array_equal(actual, reference)


class TestSums:
    """In blocks, which convolutions and roundings around the sum see to."""

    SHAPE = (1, 32, 6, 7)

    def tuned(self, folder: Path, middle: Sequence[NodeProto], x: Array, outputs: Collection[str] = ("y",)) -> Counter[str]:
        """Runs two convolutions that give a and b, ``middle``, and one from s to y; the ops of the tuned model, which gives the same."""
        block_here(folder)
        nodes = [helper.make_node("Conv", ["x", "i"], ["p"]), *rounded("p", "a"), helper.make_node("Conv", ["x", "w"], ["q"])]
        nodes += [*rounded("q", "b"), *middle, helper.make_node("Conv", ["s", "i"], ["y"])]
        constants = {"i": np.eye(32, dtype=np.float32)[:, :, None, None], "w": weights(32, 32)}
        plain, tuned, ops = both(folder, model(nodes, {"x": self.SHAPE}, outputs, constants), {"x": x})
        for reference, actual in zip(plain, tuned, strict=True):
            np.testing.assert_array_equal(actual, reference)
        made = onnx.load(folder / "tuned.onnx").graph.node
        written_to = [node.input[3] for node in made if len(node.input) > 3]
        assert all(sum(name == other for node in made for other in node.input) == 1 for name in written_to)
        return ops

    def draw(self) -> Array:
        return RANDOM.standard_normal(self.SHAPE).astype(np.float32)

    @pytest.mark.parametrize("reads", [["a", "b"], ["b", "a"]])
    def test_are_convolutions(self, tmp_path: Path, reads: list[str]) -> None:
        assert self.tuned(tmp_path, [helper.make_node("Add", reads, ["t"]), *rounded("t", "s")], self.draw())["Conv"] == 4

    def test_take_relu_along(self, tmp_path: Path) -> None:
        middle = [helper.make_node("Add", ["a", "b"], ["t"]), helper.make_node("Relu", ["t"], ["u"]), *rounded("u", "s")]
        ops = self.tuned(tmp_path, middle, self.draw())
        assert (ops["Conv"], ops["Relu"], ops["Add"]) == (4, 0, 0)

    def test_take_nothing_else_along(self, tmp_path: Path) -> None:
        middle = [helper.make_node("Add", ["a", "b"], ["t"]), helper.make_node("Tanh", ["t"], ["u"]), *rounded("u", "s")]
        assert self.tuned(tmp_path, middle, self.draw())["Tanh"] == 1

    def test_leave_relu_where_something_else_reads_the_sum(self, tmp_path: Path) -> None:
        middle = [helper.make_node("Add", ["a", "b"], ["t"]), helper.make_node("Relu", ["t"], ["u"])]
        middle += [helper.make_node("Mul", ["t", "u"], ["v"]), *rounded("v", "s")]
        ops = self.tuned(tmp_path, middle, self.draw())
        assert (ops["Conv"], ops["Relu"], ops["Add"]) == (4, 1, 0)

    @pytest.mark.parametrize("reads", [["a", "b"], ["b", "a"]])
    def test_write_only_to_values_without_other_readers(self, tmp_path: Path, reads: list[str]) -> None:
        """a is read again behind the sum, so the sum is made in b."""
        middle = [helper.make_node("Add", reads, ["t"]), helper.make_node("Mul", ["t", "a"], ["u"]), *rounded("u", "s")]
        ops = self.tuned(tmp_path, middle, self.draw(), ("y", "t"))
        assert (ops["Conv"], ops["Add"]) == (4, 0)

    @pytest.mark.parametrize("reads", [["a", "b"], ["a", "a"]])
    def test_stay_where_both_are_read_again(self, tmp_path: Path, reads: list[str]) -> None:
        middle = [helper.make_node("Add", reads, ["t"]), helper.make_node("Mul", ["a", "b"], ["u"])]
        middle += [helper.make_node("Sub", ["t", "u"], ["v"]), *rounded("v", "s")]
        ops = self.tuned(tmp_path, middle, self.draw())
        assert (ops["Conv"], ops["Add"]) == (3, 1)

    @pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 65519.0, -1e-7])
    def test_keep_values_that_are_no_numbers(self, tmp_path: Path, bad: float) -> None:
        """-1e-7 becomes -2 ** -23, a subnormal fp16, or -0."""
        x = self.draw()
        x[0, :, 2, 3] = 0
        x[0, 5, 2, 3] = bad
        self.tuned(tmp_path, [helper.make_node("Add", ["a", "b"], ["t"]), helper.make_node("Relu", ["t"], ["u"]), *rounded("u", "s")], x)


class TestWeights:
    def test_lie_in_whole_pages_beside_the_model(self, tmp_path: Path) -> None:
        constants = {"a": weights(48, 32), "b": weights(32, 48), "c": weights(32, 32, 3)}
        nodes = [helper.make_node("Conv", ["x", "a"], ["p"]), helper.make_node("Conv", ["p", "b"], ["q"])]
        nodes.append(helper.make_node("Conv", ["q", "c"], ["y"], pads=[1] * 4))
        x = RANDOM.standard_normal((1, 32, 5, 5)).astype(np.float32)
        (plain,), (tuned,), _ = both(tmp_path, model(nodes, {"x": x.shape}, ["y"], constants), {"x": x})
        np.testing.assert_array_equal(tuned, plain)
        assert (tmp_path / "tuned.onnx").stat().st_size < 4096 < sum(array.nbytes for array in constants.values())
        stored = [
            tensor for tensor in onnx.load(tmp_path / "tuned.onnx", load_external_data=False).graph.initializer if tensor.external_data
        ]
        places = {int(entry.value) for tensor in stored for entry in tensor.external_data if entry.key == "offset"}
        assert len(places) == 3 and all(place % 4096 == 0 for place in places)

    def test_that_are_missing_or_short_are_an_error(self, tmp_path: Path) -> None:
        nodes = [helper.make_node("Conv", ["x", "a"], ["y"])]
        x = np.ones((1, 64, 5, 5), np.float32)
        both(tmp_path, model(nodes, {"x": x.shape}, ["y"], {"a": weights(64, 64)}), {"x": x})
        path = tmp_path / "tuned.weights"
        for damaged in (path.read_bytes()[:-1], b""):
            path.write_bytes(damaged)
            with pytest.raises(UnsupportedError, match=r"onnxruntime cannot open tuned\.onnx"):
                open_session(tmp_path / "tuned.onnx", tuned=True)


class TestFp16Inputs:
    def test_are_taken_as_they_are(self, tmp_path: Path) -> None:
        made = model([helper.make_node("Add", ["x", "z"], ["y"])], {"x": (2, 3), "z": (2, 3)}, ["y"], {})
        inputs = {name: RANDOM.standard_normal((2, 3)).astype(np.float16).astype(np.float32) for name in ("x", "z")}
        (plain,), (tuned,), _ = both(tmp_path, made, inputs, fp16_inputs=["x"])
        np.testing.assert_array_equal(tuned, plain)
        assert float_dtypes(open_session(tmp_path / "tuned.onnx", tuned=True)) == {"x": np.float16, "z": np.float32}

    def test_an_input_that_the_model_does_not_have_is_no_input(self, tmp_path: Path) -> None:
        made = model([helper.make_node("Neg", ["x"], ["y"])], {"x": (2, 3)}, ["y"], {})
        (plain,), (tuned,), ops = both(tmp_path, made, {"x": np.ones((2, 3), np.float32)}, fp16_inputs=["x", "left out by the exporter"])
        np.testing.assert_array_equal(tuned, plain)
        assert ops == {"Cast": 1, "Neg": 1}


def test_a_graph_in_a_graph_is_left_to_onnxruntime(tmp_path: Path) -> None:
    """What it reads of the graph around it is not among the inputs of its node."""
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["r"], [f"{name}_y"])], name, [], [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)]
        )
        for name, op in (("then", "Neg"), ("else", "Exp"))
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        *rounded("c", "r"),
        helper.make_node("Relu", ["r"], ["p"]),
        helper.make_node("ReduceMax", ["p"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "limit"], ["cond"]),
        helper.make_node("If", ["cond"], ["y"], then_branch=branches["then"], else_branch=branches["else"]),
    ]
    made = model(nodes, {"x": (1, 16, 4, 4)}, ["y"], {"w": weights(16, 16), "limit": np.array(1.0, np.float32)})
    for scale in (0.01, 9.0):
        x = np.ones((1, 16, 4, 4), np.float32) * np.float32(scale)
        (plain,), (tuned,), _ = both(tmp_path, made, {"x": x}, fp16_inputs=["x"])
        np.testing.assert_array_equal(tuned, plain)


# A graph for every change, as its docstring gives it.
X: dict[str, tuple[int, ...]] = {"x": (1, 32, 4, 4)}
CONV = helper.make_node("Conv", ["x", "w"], ["c"])
MEAN = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)
ROUNDED_RELU_AND_MAXIMUM = [
    CONV,
    *rounded("c", "r"),
    helper.make_node("Relu", ["r"], ["p"]),
    helper.make_node("MaxPool", ["p"], ["y"], kernel_shape=[2, 2]),
]
IN_BLOCKS = [
    helper.make_node("ReorderInput", ["x"], ["a"], domain=NCHWC),
    helper.make_node("ReorderOutput", ["a"], ["t"], domain=NCHWC, channels=32),
    helper.make_node("Tanh", ["t"], ["u"]),
    helper.make_node("ReorderInput", ["u"], ["b"], domain=NCHWC),
    helper.make_node("MaxPool", ["b"], ["d"], domain=NCHWC, kernel_shape=[1, 1]),
    helper.make_node("ReorderOutput", ["d"], ["y"], domain=NCHWC, channels=32),
]
SUM = [helper.make_node("Add", ["x", "z"], ["s"]), helper.make_node("Relu", ["s"], ["y"])]
CHANGES: dict[str, tuple[onnx.ModelProto, Callable[[onnx.GraphProto], object]]] = {
    "take_fp16_inputs": (
        model([helper.make_node("Neg", ["x"], ["y"])], X, ["y"], {}),
        lambda graph: take_fp16_inputs(graph, ["x"]),
    ),
    "round_later": (model(ROUNDED_RELU_AND_MAXIMUM, X, ["y"], {"w": weights(32, 32)}), round_later),
    "stay_in_blocks": (
        model(IN_BLOCKS, X, ["y"], {}, NCHWC),
        lambda graph: stay_in_blocks(graph, dict.fromkeys(("x", "t", "u", "y"), X["x"]), 8),
    ),
    "sums_as_convolutions": (
        model(SUM, X | {"z": X["x"]}, ["y"], {}),
        lambda graph: sums_as_convolutions(graph, {"s": X["x"]}, {"s"}),
    ),
    "means_as_products": (
        model([MEAN], X, ["y"], {"axes": np.array([1], np.int64)}),
        lambda graph: means_as_products(graph, shapes_of(graph)),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_second_time_changes_nothing_more(name: str) -> None:
    made, change = CHANGES[name]
    seen = [made.graph.SerializeToString(deterministic=True)]
    for _ in range(2):
        change(made.graph)
        seen.append(made.graph.SerializeToString(deterministic=True))
    assert seen[0] != seen[1] == seen[2]
