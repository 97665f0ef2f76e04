"""``coreflow lint --data``: the values of a package over the user's inputs, held against the ranges of the engine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coreflow.cli.main import main
from coreflow.export.engine.bounds.hazards import Seen
from coreflow.export.package.mlpackage import read_program
from coreflow.runtime.backend import LoadOptions
from coreflow.runtime.lifted import LiftedModel
from coreflow.validate.ladder.magnitudes import magnitudes
from tests.export.engine.planted import saved

Lint = Callable[[Any], tuple[int, list[dict[str, Any]], str]]
WEIGHT = np.repeat(np.array([1, -1], np.float16), 32).reshape(1, 64)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product whose terms cancel, its exponential, and a norm."""

    def build(mb: Any, x: Any) -> Any:
        product = mb.linear(x=x, weight=WEIGHT, bias=np.array([0.5], np.float16), name="product")
        return mb.exp(x=product, name="exponential"), mb.layer_norm(x=x, axes=[-1], name="norm")

    folder = tmp_path_factory.mktemp("data")
    saved({"x": (2, 64)}, build, folder / "p.mlpackage")
    return folder / "p.mlpackage"


@pytest.fixture
def lint(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Lint:
    def run(x: Any) -> tuple[int, list[dict[str, Any]], str]:
        np.savez(tmp_path / "data.npz", x=np.asarray(x, np.float16))
        code = main(["lint", str(package), "--chip", "M4", "--data", str(tmp_path / "data.npz"), "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if captured.out else [], captured.err

    return run


def strengths(findings: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {f"{finding['rule']} {finding['op']}": (finding["strength"], finding["severity"]) for finding in findings}


def test_a_partial_sum_that_crosses_is_an_error_though_the_result_is_small(lint: Lint) -> None:
    code, findings, _ = lint(np.full((3, 2, 64), 1200.0))  # 38400 in between, 0.5 at the end
    assert code == 1
    assert strengths(findings)["sum-overflow product"] == ("seen", "error")
    assert "fp16-overflow exponential" not in strengths(findings)  # exp(0.5); that it is open follows from the product
    (crossing,) = (finding for finding in findings if finding["rule"] == "sum-overflow")
    assert "up to 3.84e+04 in the data" in crossing["detail"]


def test_values_that_come_near_are_a_warning(lint: Lint) -> None:
    rows = np.tile(np.repeat([600.0, 300.0], 32), (2, 1))  # 19200 in between
    code, findings, _ = lint(rows)
    assert strengths(findings)["sum-overflow product"] == ("seen", "warning")
    assert strengths(findings)["square-overflow norm"] == ("seen", "warning")  # 150 from the mean
    assert strengths(findings)["fp16-overflow exponential"] == ("seen", "error")  # exp(9600)
    assert code == 1


def test_small_products_are_seen(lint: Lint) -> None:
    _, findings, _ = lint(np.zeros((2, 64)))
    assert "small-products product" not in strengths(findings)  # 0.5, of the bias
    tiny = np.repeat([-0.5 / 32 + 2.0**-15, 0.0], 32)  # results of 1e-3
    _, findings, _ = lint(np.tile(tiny, (2, 1)))
    assert strengths(findings)["small-products product"] == ("seen", "warning")


def test_magnitudes_are_those_of_the_program(package: Path) -> None:
    program = read_program(package)
    x = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float16)
    seen = magnitudes(LiftedModel(program, LoadOptions(numerics="fp64", engine="interpreter")), [{"x": x}, {"x": -2 * x}])
    values = np.stack([x, -2 * x]).astype(np.float64)
    results = values @ WEIGHT[0].astype(np.float64) + 0.5
    prefixes = np.cumsum(np.concatenate([np.full((2, 2, 1), 0.5), values * WEIGHT[0]], -1), -1)[..., ::4]
    product: Seen = seen["product"]
    assert product.result == pytest.approx(np.abs(results).max()) and product.rms == pytest.approx(np.sqrt(np.square(results).mean()))
    assert product.sum == pytest.approx(np.abs(prefixes).max())
    assert seen["exponential"].exponent == pytest.approx(results.max())
    assert seen["norm"].square == pytest.approx(np.abs(values - values.mean(-1, keepdims=True)).max())


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"x": np.zeros((2, 63), np.float16)}, "expected shape [2, 64], got [2, 63]"),
        ({"y": np.zeros((2, 64), np.float16)}, "gives 'y'; one value for each input is right: x float16 [2, 64]"),
    ],
)
def test_data_that_do_not_fit_are_one_error(
    arrays: dict[str, Any], problem: str, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    assert main(["lint", str(package), "--data", str(tmp_path / "data.npz")]) > 1
    assert problem in " ".join(capsys.readouterr().err.split())


def test_data_are_of_one_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.py").write_text("")
    assert main(["lint", f"{tmp_path / 'r.py'}:R", "--data", "x.npz"]) > 1
    assert "is no package; data are the inputs of one package" in " ".join(capsys.readouterr().err.split())


def test_the_summary_counts_ops_proved_safe(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["lint", str(package)])
    assert "p.mlpackage: 0 of 3 ops proved safe, 0 seen, 3 open" in " ".join(capsys.readouterr().out.split())
