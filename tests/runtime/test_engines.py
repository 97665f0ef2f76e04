"""Three engines, one result: every engine against the interpreter, and what ``auto`` takes."""

import gc
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.graph import Graph, Op, Value
from coreflow.models.errors import UnsupportedError
from coreflow.runtime import load_model
from coreflow.runtime.backend import EngineName, NumericsName
from coreflow.runtime.lift.engines.auto import _weight_bytes

INPUTS = {"ids": np.arange(16, dtype=np.int32)[None] * 6, "mask": (np.arange(16) < 12).astype(np.float32)[None]}
ATOL = {"fp64": 1e-12, "fp32": 1e-4, "fp16": 2e-3}


def lifted(package: Path, **options: Any) -> Any:
    return load_model(package, "lifted", **options)


@pytest.mark.parametrize(
    ("engine", "numerics"),
    [("module", "fp64"), ("module", "fp32"), ("module", "fp16"), ("onnxruntime", "fp32"), ("onnxruntime", "fp16")],
)
def test_every_engine_gives_the_results_of_the_interpreter(small_package: Path, engine: EngineName, numerics: NumericsName) -> None:
    reference = lifted(small_package, engine="interpreter", numerics=numerics).predict(INPUTS)
    model = lifted(small_package, engine=engine, numerics=numerics)
    actual = model.predict(INPUTS)
    assert model.engine == engine and list(actual) == list(reference)
    for name in reference:
        assert actual[name].dtype == reference[name].dtype and actual[name].shape == reference[name].shape
        np.testing.assert_allclose(actual[name], reference[name], rtol=0, atol=ATOL[numerics], err_msg=name)


def test_onnxruntime_rounds_to_fp16_where_the_interpreter_does(save: Callable[..., Path]) -> None:
    from coremltools.converters.mil.mil import Builder, types

    ct = quiet_coremltools()

    def program(x: Any) -> Any:
        return Builder.sub(x=Builder.add(x=x, y=np.float16(2048)), y=np.float16(2048), name="y")

    package = save(
        Builder.program(input_specs=[Builder.TensorSpec((3,), dtype=types.fp16)], opset_version=ct.target.iOS17)(program),
        pass_pipeline=ct.PassPipeline.EMPTY,
    )
    x = np.array([1.0, 3.0, 0.3], np.float16)
    for engine in ("interpreter", "module", "onnxruntime"):
        assert lifted(package, engine=engine, numerics="fp16").predict({"x": x})["y"].tolist() == [0, 4, 0], engine
        in_fp32 = lifted(package, engine=engine, numerics="fp32").predict({"x": x})["y"]
        np.testing.assert_allclose(in_fp32, x.astype(np.float32), atol=3e-4)


@pytest.mark.parametrize("engine", ["interpreter", "module", "onnxruntime"])
def test_a_state_lives_in_every_engine(counting_package: Path, engine: EngineName) -> None:
    model = lifted(counting_package, engine=engine, numerics="fp32")
    state = model.make_state()
    for x in ([1.0, 2.0], [1.0, 1.0]):
        (actual,) = model.predict({"x": x}, state).values()
    assert actual.tolist() == [4, 6] and state.read(next(iter(model.states))).tolist() == [2, 3]


@pytest.mark.parametrize("engine", ["interpreter", "module", "onnxruntime"])
def test_a_picture_is_classified_by_every_engine(classifier_package: Path, engine: EngineName) -> None:
    from PIL import Image

    model = lifted(classifier_package, engine=engine, numerics="fp32")
    label, shares = model.predict({"picture": Image.new("RGB", (4, 2), (30, 20, 10))}).values()
    reference = np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum()
    assert label == "red" and list(shares) == ["blue", "green", "red"]
    np.testing.assert_allclose(list(shares.values()), reference, atol=1e-5)


@pytest.mark.parametrize("engine", ["module", "onnxruntime"])
def test_an_observer_is_served_by_the_interpreter(small_package: Path, engine: EngineName) -> None:
    model = lifted(small_package, engine=engine, numerics="fp32")
    seen: list[str] = []
    model.predict(INPUTS, observe=lambda op, results: seen.append(op.type))
    assert seen == [op.type for op in model.interpreter.graph.ops]


class TestAuto:
    """The interpreter at first; onnxruntime once that pays, and at once when its form of the program is cached."""

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("coreflow.runtime.lift.engines.auto.COMPILE_AFTER_S", 0.0)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    @pytest.mark.parametrize(("numerics", "engine"), [("fp64", "interpreter"), ("fp32", "onnxruntime"), ("fp16", "onnxruntime")])
    def test_takes_the_engine_that_computes_in_the_numerics(self, small_package: Path, numerics: NumericsName, engine: EngineName) -> None:
        model = lifted(small_package, numerics=numerics)
        assert model.engine == "interpreter"
        first = model.predict(INPUTS)
        assert model.engine == engine
        second = model.predict(INPUTS)
        assert lifted(small_package, numerics=numerics).engine == engine  # cached now
        for name in first:
            np.testing.assert_allclose(second[name], first[name], rtol=0, atol=ATOL[numerics], err_msg=name)

    def test_waits_until_it_pays(self, small_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("coreflow.runtime.lift.engines.auto.COMPILE_AFTER_S", 1e6)
        model = lifted(small_package, numerics="fp32")
        for _ in range(3):
            model.predict(INPUTS)
        assert model.engine == "interpreter"

    def test_large_weights_stay_with_the_interpreter(self, small_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        weights = sum(file.stat().st_size for file in small_package.rglob("weight.bin"))
        for limit, engine in ((weights // 2, "interpreter"), (2 * weights, "onnxruntime")):
            monkeypatch.setattr("coreflow.runtime.lift.engines.auto.COMPILE_UP_TO_BYTES", limit)
            model = lifted(small_package)
            model.predict(INPUTS)
            assert model.engine == engine

    @pytest.mark.parametrize(("rows", "times"), [(1, 2), (2, 1)])
    def test_weights_that_a_single_row_reads_count_twice(self, rows: int, times: int) -> None:
        x, y = (Value(name, "float16", (rows, 8)) for name in "xy")
        weight, bias = (
            Value("w", "float16", (8, 8), data=np.zeros((8, 8), np.float16)),
            Value("b", "float16", (8,), data=np.zeros(8, np.float16)),
        )
        product = Op("linear", "op", {"x": x, "weight": weight}, (y,))
        total = Op("add", "sum", {"x": y, "y": bias}, (Value("z", "float16", (rows, 8)),))
        graph = Graph("main", "CoreML8", (x,), total.outputs, (product, total), (weight, bias))
        assert _weight_bytes(graph) == times * 8 * 8 * 2 + 8 * 2

    def test_a_cached_form_opens_without_the_interpreter(self, small_package: Path) -> None:
        lifted(small_package).predict(INPUTS)
        again = lifted(small_package)
        assert again.engine == "onnxruntime" and "interpreter" not in vars(again), "the weights are held once"

    def test_a_state_goes_on_in_the_other_engine(self, counting_package: Path) -> None:
        model = lifted(counting_package, numerics="fp32")
        state = model.make_state()
        totals = []
        for x in ([1.0, 2.0], [1.0, 1.0], [0.0, 1.0]):
            totals.append(model.predict({"x": x}, state) and state.read(next(iter(model.states))).tolist())
        assert model.engine == "onnxruntime" and totals == [[1, 2], [2, 3], [2, 4]]

    def test_falls_back_to_the_interpreter_and_says_why(self, branching_package: Path, caplog: pytest.LogCaptureFixture) -> None:
        model = lifted(branching_package, numerics="fp32")
        with caplog.at_level(logging.INFO, logger="coreflow"):
            for a, reference in ((1.0, [3, 5]), (-1.0, [-1, -2])):
                (actual,) = model.predict({"a": [a], "b": [1.0, 2.0]}).values()
                assert actual.tolist() == reference
        assert model.engine == "interpreter" and "cannot be written as ONNX" in caplog.text

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("engine", ["auto", "onnxruntime"])
    @pytest.mark.parametrize("has_home", [True, False], ids=["a cache below a file", "no home"])
    def test_needs_no_cache(
        self, small_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_home: bool, engine: EngineName
    ) -> None:
        def home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        (tmp_path / "file").write_text("")
        if has_home:
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        else:
            monkeypatch.delenv("XDG_CACHE_HOME")
            monkeypatch.setattr(Path, "home", home)
        (tmp_path / "temporary").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        model = lifted(small_package, numerics="fp32", engine=engine)
        expected = lifted(small_package, numerics="fp32", engine="interpreter").predict(INPUTS)
        for _ in range(2):
            for name, array in model.predict(INPUTS).items():
                np.testing.assert_allclose(array, expected[name], rtol=0, atol=ATOL["fp32"], err_msg=name)
        assert model.engine == "onnxruntime"
        del model
        gc.collect()
        assert not list((tmp_path / "temporary").iterdir())

    def test_flexible_shapes_stay_with_the_interpreter(self, save: Callable[..., Path]) -> None:
        import warnings

        import torch

        ct = quiet_coremltools()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(torch.nn.Softmax(-1), torch.zeros(1, 4))
        package = save(traced, inputs=[ct.TensorType(name="x", shape=ct.Shape((1, ct.RangeDim(2, 9, default=4))))])
        model = lifted(package, numerics="fp32")
        assert model.predict({"x": np.ones((1, 7))}) and model.engine == "interpreter"
        with pytest.raises(UnsupportedError, match="x may have several shapes"):
            lifted(package, numerics="fp32", engine="onnxruntime")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "onnxruntime", "numerics": "fp64"}, "onnxruntime under fp64; it computes fp32 or fp16"),
        ({"engine": "onnxruntime", "numerics": "fp32", "device": "meta"}, "it runs on the CPU, take engine='module'"),
        ({"engine": "tensorrt"}, "choose one of auto, interpreter, module, onnxruntime"),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_an_unsupported_combination_is_refused_with_an_engine_that_supports_it(
    small_package: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        lifted(small_package, **options)
