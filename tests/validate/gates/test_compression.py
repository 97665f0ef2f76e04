"""Compressed packages that are judged as if they were not: the verdict says so, and how they are judged."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.validate import validate
from coreflow.validate.gates.tolerance import by_share


def palettized(optimize: Any, model: Any) -> Any:
    options = optimize.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=512)
    return optimize.palettize_weights(model, optimize.OptimizationConfig(global_config=options))


def quantised(optimize: Any, model: Any) -> Any:
    options = optimize.OpLinearQuantizerConfig(weight_threshold=512)
    return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=options))


def pruned(optimize: Any, model: Any) -> Any:
    options = optimize.OpMagnitudePrunerConfig(target_sparsity=0.6, weight_threshold=512)
    return optimize.prune_weights(model, optimize.OptimizationConfig(global_config=options))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("compress", [palettized, quantised, pruned], ids=lambda compress: compress.__name__)
def test_compression_met_by_surprise_is_named_with_its_limit(compress: Callable[..., Any], converted: Any, tmp_path: Path) -> None:
    optimize = pytest.importorskip("coremltools.optimize.coreml")
    package = tmp_path / "network.mlpackage"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compress(optimize, quiet_coremltools().models.MLModel(str(converted.package), skip_model_load=True)).save(str(package))
    report = validate(package, converted.recipe(), backend="lifted", quick=True)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "weights", 1), report.text
    assert "its weights are compressed (" in report.text and "--within SHARE" in report.text
    assert validate(package, converted.recipe(), backend="lifted", quick=True, tolerance=by_share(0.9)).verdict == "pass"
