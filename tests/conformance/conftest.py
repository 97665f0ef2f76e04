"""Core ML Tools' own operator tests, with every prediction made by the lifted backend.

coremltools ships the tests of its operators, with expected values that its authors wrote; off a Mac they convert a program and compare
nothing. Here the test modules of the installed wheel are collected as they are. While one of their tests runs, the wheel takes this machine
for a Mac, and ``MLModel.predict`` and ``make_state`` are the lifted backend's. Everything else is theirs: programs, inputs, expectations,
tolerances. fp16 programs are compared a second time within 2e-2, because their own limit (0.5 + 5 %) lets most mistakes pass.

A case passes only if it predicted and every comparison held. One that never predicts is reported as skipped, whatever else it checks.
Cases that their authors skip or expect to fail because of a fault of Core ML are run and compared like all others.
``apple_operators.toml`` lists the cases that cannot pass, with reasons; one that passes after all fails, as does a pattern without a case.
"""

import os
import re
import tomllib
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.models.errors import CoreflowError
from coreflow.models.spec import TensorSpec
from coreflow.runtime import load_model
from coreflow.runtime.backend import EngineName

LIST = "apple_operators.toml"
MACOS = (15, 4)  # the oldest that runs everything in the wheel: some tests are skipped below 15.2
FP16_TOLERANCE = 2e-2
ENGINE = cast(EngineName, os.environ.get("CONFORMANCE_ENGINE", "interpreter"))  # load_model refuses what it does not know
NEVER = "never predicted"
LISTED = "listed"
FAULT_OF_CORE_ML = "rdar://"  # how a reason to skip a case, or to let it fail, names a report of a fault

# The wheel's switches, read when its tests are imported: ML programs only, in both precisions. One more is left to the environment: with
# RUN_BACKWARD_COMPATIBILITY=1 every test also runs for every later opset, which makes almost twice as many cases.
SWITCHES = {"PYMIL_TEST_TARGETS": "mlprogram", "INCLUDE_MIL_FP32_UNIT_TESTS": "1"}


@dataclass
class Run:
    """What the case that is running has done so far, and the tolerance that the list gives it."""

    predictions: int = 0
    tolerance: float | None = None


_run = Run()


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


@contextmanager
def faults_of_core_ml_forgiven() -> Iterator[None]:
    """``pytest.skip`` and ``pytest.xfail`` without effect where their reason is a fault of Core ML: it need not be ours."""

    def unless_a_fault(stop: Callable[..., Any]) -> Callable[..., None]:
        def go_on_or_stop(reason: str = "", **options: Any) -> None:
            if FAULT_OF_CORE_ML not in reason:
                stop(reason, **options)

        return go_on_or_stop

    with pytest.MonkeyPatch.context() as patch:
        for name in ("skip", "xfail"):
            patch.setattr(pytest, name, unless_a_fault(getattr(pytest, name)))
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
    inputs = {name: as_declared(value, model.inputs.get(name)) for name, value in data.items()}
    _run.predictions += 1
    try:
        return dict(model.predict(inputs, state=state))
    except CoreflowError as error:
        # What coremltools raises; some tests wait for it.
        raise RuntimeError(f"Unable to compute the prediction using ML Program: {error}") from error


def as_declared(value: Any, spec: TensorSpec | None) -> Any:
    """An input as Core ML would take it; infinite ones (masks) as the largest finite number, because coreflow takes no others."""
    if spec is None or not isinstance(value, np.ndarray):
        return value
    if spec.dtype == "int32" and value.dtype.kind == "f":
        assert np.array_equal(value, np.rint(value)), "an integer input holds fractions"
        value = value.astype(np.int64)
    elif np.isinf(value).any():
        limit = np.finfo(spec.dtype).max
        value = np.clip(value, -limit, limit)
    return value.reshape(()) if spec.shape == () and value.shape == (1,) else value


def compare_twice() -> None:
    """Puts a second, closer comparison behind the wheel's own.

    A case of precision fp32 whose program declares fp16 values is held to the limits of fp16: 1e-5 is finer than fp16 can be.
    """
    import coremltools.converters.mil.testing_utils as testing

    theirs = testing.compare_backend

    def compare_backend(mlmodel: Any, input_key_values: Any, expected_outputs: Any, dtype: str = "fp32", **options: Any) -> Any:
        is_fp16 = dtype == "fp16" or holds_fp16(lifted(mlmodel))
        arguments = mlmodel, input_key_values, expected_outputs, "fp16" if is_fp16 else dtype
        if _run.tolerance is not None:
            with pytest.raises(AssertionError):
                theirs(*arguments, **options)
            options.update(atol=_run.tolerance, rtol=_run.tolerance)
        predicted = theirs(*arguments, **options)
        for name, expected in expected_outputs.items() if is_fp16 else ():
            actual = testing._get_coreml_out_from_dict(predicted, name)
            if isinstance(actual, np.ndarray):
                wrong = ~np.isclose(actual, expected, rtol=FP16_TOLERANCE, atol=FP16_TOLERANCE, equal_nan=True)
                if wrong.mean() > options.get("allow_mismatch_ratio", 0.0):
                    np.testing.assert_allclose(actual, expected, rtol=FP16_TOLERANCE, atol=FP16_TOLERANCE)
        return predicted

    testing.compare_backend = compare_backend


def holds_fp16(model: Any) -> bool:
    """Whether any op of the program gives or reads a float16 value."""
    graph, _ = model.program.function(None)
    values = (value for op in graph.walk() for value in (*op.outputs, *op.input_values()))
    return any(value.dtype == "float16" for value in values)


# -- which cases, and what is expected of them -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """Cases that cannot pass, or only within a wider ``tolerance`` than their own."""

    cases: re.Pattern[str]
    reason: str
    tolerance: float | None = None


EXCEPTIONS = tuple(
    Listed(re.compile(entry.pop("cases")), **entry)
    for entry in tomllib.loads((Path(__file__).parent / LIST).read_text()).get("exception", ())
)


def is_operator_test(item: pytest.Item) -> bool:
    return item.getparent(OperatorTests) is not None


def case_of(item: pytest.Item) -> str:
    """``iOS17/test_conv.py::TestConv::test_...[...]``."""
    return item.nodeid.partition(f"{LIST}::")[2]


def exception_of(item: pytest.Item) -> Listed | None:
    return next((entry for entry in EXCEPTIONS if entry.cases.fullmatch(case_of(item))), None)


def sample(items: Iterable[pytest.Item]) -> set[str]:
    """The cases of the fixed sample: of every test function, with every text among its parameters (an op, a mode), some.

    Of many cases the share is smaller. Which ones is decided by a hash of the name, so it stays the same on every machine.
    """
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        groups[case_of(item).partition("[")[0], *(value for value in parameters if isinstance(value, str))].append(case_of(item))
    return {case for cases in groups.values() for case in sorted(cases, key=lambda case: zlib.crc32(case.encode()))[: share(len(cases))]}


def share(count: int) -> int:
    return 1 + count // 12


class Operators:
    """The hooks. A plugin, because those of a conftest see only what lies below its folder, and the wheel's modules do not."""

    exceptions = EXCEPTIONS

    def __init__(self) -> None:
        self.cases: list[str] = []
        self.sampled: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Decorators ask for the version of macOS when a module is imported, and what the tests use of pytest may be deprecated."""
        if collector.getparent(OperatorTests) in (None, collector):
            return (yield)
        with as_on_a_mac(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return (yield)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        tests = [item for item in items if is_operator_test(item)]
        self.cases, self.sampled = [case_of(item) for item in tests], sample(tests)
        for item in tests:
            # Marked, all of them, because of a fault of Core ML; those that a test calls for itself are faults_of_core_ml_forgiven.
            item.own_markers = [mark for mark in item.own_markers if mark.name != "xfail"]
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            if case_of(item) not in self.sampled:
                item.add_marker(pytest.mark.slow)
            listed = exception_of(item)
            if listed and listed.tolerance is None:
                item.add_marker(pytest.mark.xfail(reason=f"{LISTED}: {listed.reason}", strict=True))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        if not is_operator_test(item):
            return (yield)
        seed = zlib.crc32(item.nodeid.encode())
        np.random.seed(seed)
        torch.manual_seed(seed)
        listed = exception_of(item)
        _run.predictions, _run.tolerance = 0, listed.tolerance if listed else None
        with as_on_a_mac(), faults_of_core_ml_forgiven():
            result = yield
        if _run.predictions == 0:
            pytest.skip(NEVER)
        return result


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Operators(), "apple-operators")
