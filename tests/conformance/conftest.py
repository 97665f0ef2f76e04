"""Core ML Tools' own operator tests, with every prediction made by the lifted backend.

coremltools ships the tests of its operators, with expected values that its authors wrote; off a Mac they convert a program and compare
nothing. Here the test modules of the installed wheel are collected as they are. While one of their tests runs, the wheel takes this machine
for a Mac, and ``MLModel.predict`` and ``make_state`` are the lifted backend's. Everything else is theirs: programs, inputs, expectations,
tolerances. fp16 programs are compared a second time within 2e-2, because their own limit (0.5 + 5 %) lets most mistakes pass.

A case passes only if it predicted and every comparison held. One that never predicts is reported as skipped, whatever else it checks.
``apple_operators.toml`` lists the cases that cannot pass, with reasons; one that passes after all, or a pattern that matches nothing, fails.
"""

import os
import re
import tomllib
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from coreflow.export.coremltools_quiet import quiet_coremltools
from coreflow.runtime import load_model

LIST = "apple_operators.toml"
MACOS = (15, 4)  # the oldest that runs everything in the wheel: some tests are skipped below 15.2
HALF_TOLERANCE = 2e-2
ENGINE = os.environ.get("CONFORMANCE_ENGINE", "interpreter")
NEVER = "never predicted"

# The wheel's switches, read when its tests are imported: ML programs only, in both precisions. With RUN_BACKWARD_COMPATIBILITY=1 every
# test also runs for every later opset.
SWITCHES = {"PYMIL_TEST_TARGETS": "mlprogram", "INCLUDE_MIL_FP32_UNIT_TESTS": "1"}

Predictions = Counter[str]
_made: Predictions = Counter()


# -- the wheel's tests as they are ------------------------------------------------------------------------------------------------


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    return OperatorTests.from_parent(parent, path=file_path) if file_path.name == LIST else None


class OperatorTests(pytest.File):
    """All test modules of the wheel's operator tests."""

    def collect(self) -> Iterator[pytest.Collector]:
        for name, value in SWITCHES.items():
            os.environ.setdefault(name, value)
        quiet_coremltools()
        spec = find_spec("coremltools.converters.mil.mil.ops.tests")
        assert spec is not None and spec.origin is not None
        folder = Path(spec.origin).parent
        with as_on_a_mac():
            compare_twice()
        for path in sorted(folder.rglob("test_*.py")):
            yield pytest.Module.from_parent(self, path=path, nodeid=f"{self.nodeid}::{path.relative_to(folder).as_posix()}")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Readable ids for the two kinds of parameter that almost every case has."""
    if type(val).__name__ == "BackendConfig":
        return f"{val.precision}-{val.opset_version.name}"  # type: ignore[attr-defined]
    return "cpu" if type(val).__name__ == "ComputeUnit" else None


# -- our backend in the place of Core ML ------------------------------------------------------------------------------------------


@contextmanager
def as_on_a_mac() -> Iterator[None]:
    """coremltools as it would be on a Mac, with the lifted backend as its Core ML."""
    import coremltools.converters.mil.testing_utils as testing
    from coremltools.converters import _converters_entry
    from coremltools.models import model, utils

    with pytest.MonkeyPatch.context() as patch:
        for module in (model, utils):
            patch.setattr(module, "_is_macos", lambda: True)
            patch.setattr(module, "_macos_version", lambda: MACOS)
        patch.setattr(testing, "_IS_MACOS", True)
        patch.setattr(model, "_MLModelProxy", None)
        # Every conversion ends with a full collection, which walks through 20 000 collected tests: 0.4 s each time.
        patch.setattr(_converters_entry, "gc", SimpleNamespace(collect=lambda: 0))
        patch.setattr(model.MLModel, "predict", predict)
        patch.setattr(model.MLModel, "make_state", lambda self: lifted(self).make_state())
        yield


def lifted(model: Any) -> Any:
    """The lifted model of a converted one, loaded once."""
    if not model.is_package:
        pytest.skip(f"{NEVER}: a neural network, not an ML program")
    if not hasattr(model, "_lifted"):
        model._lifted = load_model(model.package_path, backend="lifted", engine=ENGINE, function_name=model.function_name)
    return model._lifted


def predict(self: Any, data: Mapping[str, Any], state: Any = None) -> dict[str, Any]:
    """``MLModel.predict``. The tests pass every number as float32, and scalars as one element; Core ML takes them for what they are."""
    model = lifted(self)
    inputs = {}
    for name, value in data.items():
        spec = model.inputs.get(name)
        if spec is not None and isinstance(value, np.ndarray):
            if spec.dtype == "int32" and value.dtype.kind == "f":
                assert np.array_equal(value, np.rint(value)), f"{name} is no whole number"
                value = value.astype(np.int64)
            if spec.shape == () and value.shape == (1,):
                value = value.reshape(())
        inputs[name] = value
    found = model.predict(inputs, state=state)
    _made["predictions"] += 1
    return dict(found)


def compare_twice() -> None:
    """Puts a second, closer comparison behind the wheel's own.

    A case of precision fp32 whose program declares fp16 values is held to the limits of fp16: 1e-5 is finer than fp16 can be.
    """
    import coremltools.converters.mil.testing_utils as testing

    theirs = testing.compare_backend

    def compare_backend(mlmodel: Any, input_key_values: Any, expected_outputs: Any, dtype: str = "fp32", **options: Any) -> Any:
        half = dtype == "fp16" or holds_half(lifted(mlmodel))
        predicted = theirs(mlmodel, input_key_values, expected_outputs, "fp16" if half else dtype, **options)
        for name, expected in expected_outputs.items() if half else ():
            found = testing._get_coreml_out_from_dict(predicted, name)
            if isinstance(found, np.ndarray):
                wrong = ~np.isclose(found, expected, rtol=HALF_TOLERANCE, atol=HALF_TOLERANCE, equal_nan=True)
                if wrong.mean() > options.get("allow_mismatch_ratio", 0.0):
                    np.testing.assert_allclose(found, expected, rtol=HALF_TOLERANCE, atol=HALF_TOLERANCE)
        return predicted

    testing.compare_backend = compare_backend


def holds_half(model: Any) -> bool:
    """Whether any op of the program gives or reads a float16 value."""
    graph, _ = model.program.function(None)
    values = (value for op in graph.walk() for value in (*op.outputs, *op.input_values()))
    return any(value.dtype == "float16" for value in values)


def is_operator_test(item: pytest.Item) -> bool:
    return item.getparent(OperatorTests) is not None


class Operators:
    """The hooks. A plugin, because those of a conftest see only what lies below its folder, and the wheel's modules do not."""

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Decorators ask for the version of macOS when a module is imported, and what the tests use of pytest may be deprecated."""
        if collector.getparent(OperatorTests) in (None, collector):
            return (yield)
        with as_on_a_mac(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return (yield)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if is_operator_test(item):
                item.own_markers = [mark for mark in item.own_markers if mark.name != "xfail"]
                item.add_marker(pytest.mark.filterwarnings("ignore"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        if not is_operator_test(item):
            return (yield)
        seed = zlib.crc32(item.nodeid.encode())
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = _made["predictions"]
        with as_on_a_mac():
            result = yield
        if _made["predictions"] == before:
            pytest.skip(NEVER)
        return result


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Operators(), "apple-operators")
