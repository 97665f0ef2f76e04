"""``load_model``: a saved package predicts what its torch module computes, and refuses what it cannot take."""

import gc
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coreflow.export.package.coremltools_quiet import model_proto, quiet_coremltools
from coreflow.models.errors import BundleError, InputError, UnsupportedError
from coreflow.models.spec import TensorSpec
from coreflow.runtime.backend import NumericsName
from coreflow.runtime.lift.numerics.named import NUMERICS
from coreflow.runtime.lifted import LiftedModel
from coreflow.runtime.load import load_model

IDS = np.array([[3, 99, 0, 7, 7, 41, 12, 5, 63, 2, 28, 90, 1, 1, 55, 10]])
MASK = np.array([[1.0] * 12 + [0.0] * 4])


@pytest.fixture(scope="module")
def model(small_package: Path) -> LiftedModel:
    loaded = load_model(small_package, backend="lifted")
    assert isinstance(loaded, LiftedModel)
    return loaded


class TestPrediction:
    @pytest.mark.parametrize(("numerics", "limit"), [("fp64", 5e-4), ("fp32", 5e-4), ("fp16", 2e-3)])
    def test_outputs_are_the_modules(self, small_package: Path, small: torch.nn.Module, numerics: NumericsName, limit: float) -> None:
        with torch.no_grad():
            expected, best = small(torch.from_numpy(IDS), torch.from_numpy(MASK).float())
        actual = load_model(small_package, "lifted", numerics=numerics).predict({"ids": IDS, "mask": MASK})
        np.testing.assert_allclose(actual["probabilities"], expected.numpy(), atol=limit)
        np.testing.assert_array_equal(actual["best"][:, :12], best.numpy()[:, :12])

    @pytest.mark.parametrize(("numerics", "dtype"), [("fp64", np.float64), ("fp32", np.float32), ("fp16", np.float32)])
    def test_floats_come_back_as_float32_or_float64_and_integers_as_int32(
        self, small_package: Path, numerics: NumericsName, dtype: type
    ) -> None:
        actual = load_model(small_package, "lifted", numerics=numerics).predict({"ids": IDS, "mask": MASK})
        assert (actual["probabilities"].dtype, actual["best"].dtype) == (dtype, np.int32)
        assert list(actual) == ["probabilities", "best"]

    def test_fp16_results_are_values_that_fp16_holds(self, model: LiftedModel) -> None:
        actual = model.predict({"ids": IDS, "mask": MASK})["probabilities"]
        np.testing.assert_array_equal(actual, actual.astype(np.float16))

    def test_the_callers_arrays_and_dictionary_are_left_as_they_are(self, model: LiftedModel) -> None:
        ids, mask = IDS.copy(), MASK.astype(np.float16)
        inputs = {"ids": ids, "mask": mask}
        result = model.predict(inputs)
        result["probabilities"][:] = 0
        np.testing.assert_array_equal(ids, IDS)
        np.testing.assert_array_equal(mask, MASK)
        assert inputs["mask"] is mask and mask.dtype == np.float16
        assert model.predict(inputs)["probabilities"].any()

    @pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.int16])
    def test_integers_of_every_width_are_taken(self, model: LiftedModel, dtype: type) -> None:
        expected = model.predict({"ids": IDS, "mask": MASK})["probabilities"]
        np.testing.assert_array_equal(model.predict({"ids": IDS.astype(dtype), "mask": MASK})["probabilities"], expected)

    def test_masks_may_be_booleans_and_tensors(self, model: LiftedModel) -> None:
        expected = model.predict({"ids": IDS, "mask": MASK})["probabilities"]
        actual = model.predict({"ids": torch.from_numpy(IDS), "mask": MASK.astype(bool)})["probabilities"]
        np.testing.assert_array_equal(actual, expected)

    def test_every_op_gives_the_shape_that_the_package_declares(self, model: LiftedModel) -> None:
        seen = []

        def observe(op: Any, results: tuple[Any, ...]) -> None:
            seen.append(op)
            assert [tuple(result.shape) for result in results] == [value.shape for value in op.outputs], op.name

        model.predict({"ids": IDS, "mask": MASK}, observe=observe)
        assert seen == list(model.interpreter.graph.ops)


class TestInterface:
    def test_inputs_outputs_and_metadata_are_the_packages(self, model: LiftedModel) -> None:
        assert model.inputs == {"ids": TensorSpec((1, 16), "int32", (0, 99)), "mask": TensorSpec((1, 16), "float16", (0, 1))}
        assert model.outputs == {"probabilities": TensorSpec((1, 16, 10), "float16"), "best": TensorSpec((1, 16), "int32")}
        assert model.states == {} and model.metadata["functions"] == ["main"]

    def test_auto_is_the_lifted_backend_off_a_mac(self, small_package: Path) -> None:
        assert load_model(small_package).backend == ("coreml" if sys.platform == "darwin" else "lifted")

    def test_a_program_without_state_makes_none(self, model: LiftedModel) -> None:
        with pytest.raises(UnsupportedError, match="keeps no state"):
            model.make_state()


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("missing", {"ids": IDS}, "missing 'mask'"),
    ("unexpected", {"ids": IDS, "mask": MASK, "extra": MASK}, "unexpected 'extra'"),
    ("names both", {"tokens": IDS, "mask": MASK}, "missing 'ids'; unexpected 'tokens'"),
    ("shape", {"ids": IDS[:, :3], "mask": MASK}, r"expected shape \[1, 16\], got \[1, 3\]"),
    ("rank", {"ids": IDS[0], "mask": MASK}, r"got \[16\]"),
    ("float for int", {"ids": IDS.astype(np.float32), "mask": MASK}, "expected int32, got float32"),
    ("text", {"ids": IDS, "mask": np.full((1, 16), "a")}, "expected float16, got <U1"),
    ("nan", {"ids": IDS, "mask": np.where(MASK > 0, np.nan, MASK)}, r"'mask' holds nan at \[0, 0\]"),
    ("inf", {"ids": IDS, "mask": np.full((1, 16), np.inf)}, "holds inf"),
    ("beyond fp16", {"ids": IDS, "mask": MASK * 1e6}, "from -65504 to 65504"),
    ("beyond int32", {"ids": IDS + 2**40, "mask": MASK}, "int32 goes from"),
    ("above the bounds", {"ids": IDS + 1, "mask": MASK}, r"holds 100 at \[0, 1\]; 0 to 99 is right"),
    ("below the bounds", {"ids": IDS - 1, "mask": MASK}, r"holds -1 at \[0, 2\]"),
    ("mask out of bounds", {"ids": IDS, "mask": MASK * 2}, "0 to 1 is right"),
]


@pytest.mark.parametrize(("inputs", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_inputs_that_are_not_the_programs_are_refused(model: LiftedModel, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.predict(inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt"}, "choose one of auto, coreml, lifted"),
        ({"engine": "tensorrt"}, "choose one of auto, interpreter, module, onnxruntime"),
        ({"numerics": "bf16"}, f"choose one of {', '.join(NUMERICS)}"),
        ({"device": "nowhere"}, "not available here"),
        ({"compute_units": "gpu"}, "choose one of all, cpu_only, cpu_and_gpu, cpu_and_ne"),
        ({"function_name": "other"}, "no function 'other'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_do_not_exist_are_refused_with_those_that_do(small_package: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as refusal:
        load_model(small_package, **{"backend": "lifted", **options})
    assert not message.startswith("choose") or message == f"choose one of {', '.join(refusal.value.expected)}"


def edited(package: Path, target: Path, change: Callable[[Any], None]) -> Path:
    shutil.copytree(package, target)
    file = target / "Data/com.apple.CoreML/model.mlmodel"
    model = model_proto().Model()
    model.ParseFromString(file.read_bytes())
    change(model)
    file.write_bytes(model.SerializeToString())
    return target


class TestRefusals:
    def test_ops_without_a_lowering_are_all_named_with_their_counts(self, small_package: Path, tmp_path: Path) -> None:
        def change(model: Any) -> None:
            function = model.mlProgram.functions["main"]
            for op in function.block_specializations[function.opset].operations:
                op.type = {"linear": "wonder", "gelu": "miracle"}.get(op.type, op.type)

        with pytest.raises(UnsupportedError, match=r"no torch lowering for miracle \(1x\), wonder \(2x\)"):
            load_model(edited(small_package, tmp_path / "odd.mlpackage", change), "lifted")

    def test_an_argument_that_an_op_does_not_have_is_named(self, small_package: Path, tmp_path: Path) -> None:
        def change(model: Any) -> None:
            function = model.mlProgram.functions["main"]
            op = next(op for op in function.block_specializations[function.opset].operations if op.type == "linear")
            op.inputs["strength"].CopyFrom(op.inputs["bias"])
            del op.inputs["weight"]

        with pytest.raises(UnsupportedError, match="unknown strength; missing weight; it takes x, weight, bias"):
            load_model(edited(small_package, tmp_path / "odd.mlpackage", change), "lifted")

    def test_bounds_that_are_no_bounds_are_the_packages_fault(self, small_package: Path, tmp_path: Path) -> None:
        def change(model: Any) -> None:
            model.description.metadata.userDefined["coreflow.bounds"] = "[1, 2]"

        with pytest.raises(BundleError, match=r"coreflow\.bounds"):
            load_model(edited(small_package, tmp_path / "odd.mlpackage", change), "lifted")

    def test_values_are_read_back_and_checked(self, small_package: Path, tmp_path: Path) -> None:
        def change(model: Any) -> None:
            model.description.metadata.userDefined["coreflow.values"] = '{"mask": [0, 1]}'

        model = load_model(edited(small_package, tmp_path / "flags.mlpackage", change), "lifted")
        assert model.inputs["mask"] == TensorSpec((1, 16), values=(0, 1)) and model.inputs["ids"].values is None
        assert model.predict({"ids": IDS, "mask": MASK})["probabilities"].any()
        with pytest.raises(InputError, match=r"'mask' holds 0\.5 at \[0, 0\]; 0 or 1 is right"):
            model.predict({"ids": IDS, "mask": MASK * 0.5})

    def test_values_that_are_no_values_are_the_packages_fault(self, small_package: Path, tmp_path: Path) -> None:
        def change(model: Any) -> None:
            model.description.metadata.userDefined["coreflow.values"] = '{"mask": ["a"]}'

        with pytest.raises(BundleError, match=r"coreflow\.values"):
            load_model(edited(small_package, tmp_path / "odd.mlpackage", change), "lifted")


class TestMoreThanOneFunctionOrPrediction:
    def test_every_function_of_a_package_can_be_loaded(self, save: Callable[..., Path], tmp_path: Path) -> None:
        ct = quiet_coremltools()
        from coremltools.converters.mil.mil import Builder, types

        weight = np.arange(64 * 64, dtype=np.float16).reshape(64, 64) / 4096

        def scaled(factor: int) -> Any:
            def program(x: Any) -> Any:
                return Builder.mul(x=Builder.linear(x=x, weight=weight), y=np.float16(factor))

            return Builder.program(input_specs=[Builder.TensorSpec((1, 64), dtype=types.fp16)], opset_version=ct.target.iOS18)(program)

        described = ct.utils.MultiFunctionDescriptor()
        for name, factor in (("once", 1), ("twice", 2)):
            described.add_function(str(save(scaled(factor))), src_function_name="main", target_function_name=name)
        described.default_function_name = "once"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ct.utils.save_multifunction(described, str(tmp_path / "both.mlpackage"))
            gc.collect()
        x = np.linspace(0, 1, 64)[None]
        results: list[Any] = []
        for function_name in (None, "once", "twice"):
            model = load_model(tmp_path / "both.mlpackage", "lifted", function_name=function_name, numerics="fp64")
            assert sorted(model.metadata["functions"]) == ["once", "twice"]
            results.append(next(iter(model.predict({"x": x}).values())))
        np.testing.assert_allclose(results[0], x.astype(np.float16).astype(float) @ weight.astype(float).T)
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(2 * results[0], results[2])

    def test_a_state_lives_from_one_prediction_to_the_next(self, counting_package: Path) -> None:
        model = load_model(counting_package, "lifted")
        name, state = next(iter(model.states)), model.make_state()
        (first,) = model.predict({"x": [1.0, 2.0]}, state).values()
        (second,) = model.predict({"x": [1.0, 1.0]}, state).values()
        assert (first.tolist(), second.tolist(), state.read(name).tolist()) == ([2, 4], [4, 6], [2, 3])
        state.write(name, np.array([10, 20]))
        (third,) = model.predict({"x": [0.0, 0.5]}, state).values()
        assert third.tolist() == [20, 41]
        assert model.make_state().read(name).tolist() == [0, 0]

    def test_a_state_must_be_given_and_be_this_programs(self, counting_package: Path, model: LiftedModel) -> None:
        stateful = load_model(counting_package, "lifted")
        with pytest.raises(InputError, match="make_state"):
            stateful.predict({"x": [1.0, 2.0]})
        with pytest.raises(InputError, match="keeps no state"):
            model.predict({"ids": IDS, "mask": MASK}, stateful.make_state())
        with pytest.raises(InputError, match="expected float"):
            stateful.make_state().write(next(iter(stateful.states)), np.zeros(3))
        with pytest.raises(InputError, match="no state"):
            stateful.make_state().read("other")

    def test_a_failed_prediction_leaves_the_state_alone(self, counting_package: Path) -> None:
        model = load_model(counting_package, "lifted")
        state = model.make_state()
        with pytest.raises(InputError):
            model.predict({"x": [np.nan, 1.0]}, state)
        assert state.read(next(iter(model.states))).tolist() == [0, 0]


def test_coreflow_errors_are_the_only_output_of_a_load(small_package: Path) -> None:
    code = f"from coreflow.runtime.load import load_model; print(load_model({str(small_package)!r}, 'lifted').backend)"
    result = subprocess.run([sys.executable, "-W", "default", "-c", code], check=True, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("lifted\n", "")


class TestPicturesAndClasses:
    def test_a_picture_is_classified(self, classifier_package: Path) -> None:
        from PIL import Image

        model = load_model(classifier_package, "lifted")
        label, shares = model.predict({"picture": Image.new("RGB", (4, 2), (30, 20, 10))}).values()
        expected = np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum()
        assert label == "red"
        assert list(shares) == ["blue", "green", "red"]
        np.testing.assert_allclose(list(shares.values()), expected, atol=2e-3)

    def test_a_picture_of_another_size_is_refused(self, classifier_package: Path) -> None:
        from PIL import Image

        with pytest.raises(InputError, match=r"got \[1, 3, 4, 4\]"):
            load_model(classifier_package, "lifted").predict({"picture": Image.new("RGB", (4, 4))})

    def test_pixels_may_come_as_an_array(self, classifier_package: Path) -> None:
        model = load_model(classifier_package, "lifted")
        assert model.predict({"picture": np.full((1, 3, 2, 4), 255)})
        with pytest.raises(InputError, match="0 to 255 is right"):
            model.predict({"picture": np.full((1, 3, 2, 4), 256)})

    @pytest.mark.parametrize("shape", [(1, 4), (1, 9)], ids=str)
    def test_shapes_within_a_range_are_taken(self, save: Callable[..., Path], shape: tuple[int, int]) -> None:
        ct = quiet_coremltools()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(torch.nn.Softmax(-1), torch.zeros(1, 4))
        package = save(traced, inputs=[ct.TensorType(name="x", shape=ct.Shape((1, ct.RangeDim(2, 9, default=4))))])
        model = load_model(package, "lifted")
        (actual,) = model.predict({"x": np.ones(shape)}).values()
        np.testing.assert_allclose(actual, np.full(shape, 1 / shape[1]), atol=1e-3)
        with pytest.raises(InputError, match=r"expected shape \[1, 2\.\.9\], got"):
            model.predict({"x": np.ones((1, 10))})


@pytest.mark.parametrize("change", [lambda x: x[..., ::-1], lambda x: x.astype(x.dtype.newbyteorder(">")), np.asfortranarray])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_input_may_have_any_memory_layout(small_package: Path, change: Callable[[Any], Any], dtype: str) -> None:
    mask = (np.arange(16) < 12).astype(dtype)[None]
    ids = np.arange(16, dtype=np.int32)[None]
    model = load_model(small_package, "lifted", numerics="fp32", engine="interpreter")
    plain = np.ascontiguousarray(change(mask)).astype(dtype)
    given = change(mask)
    given.setflags(write=False)
    before = given.copy()
    expected, actual = model.predict({"ids": ids, "mask": plain}), model.predict({"ids": ids, "mask": given})
    assert np.array_equal(given, before)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name])


def test_a_state_is_not_the_caller_s_array(counting_package: Path) -> None:
    model = load_model(counting_package, "lifted", numerics="fp32", engine="interpreter")
    state, name, given = model.make_state(), next(iter(model.states)), np.array([1, 2], np.float32)
    state.write(name, given)
    model.predict({"x": given}, state)
    before = state.read(name).tolist()
    given += 100
    assert state.read(name).tolist() == before == [2, 4]
