"""Networks that are known to be right have no finding of severity error: the demo's six stages, and four of transformers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coreflow.export.bundle import conversion_of
from coreflow.export.capture.capture import capture
from coreflow.export.lint.lint import lint_bundle, lint_package
from coreflow.export.sources.source import SourceOptions, load_source
from coreflow.export.targets.mlprogram import convert as convert_recipe
from tests.export.engine.test_networks import Picked, convert, distilbert, resnet_50

IMAGE, TOKENS = ((1, 3, 224, 224), None), ((1, 128), np.int32)


def minilm() -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, attn_implementation="eager")
    return Picked(BertModel(config), lambda output: output.last_hidden_state.mean(1))


def test_the_six_stages_of_the_demo_have_no_error(exported: Path) -> None:
    findings = lint_bundle(exported / "bundle")
    assert len({finding.name for finding in findings}) == 6
    assert [finding for finding in findings if finding.severity == "error"] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the tracer's, on shapes that transformers checks
@pytest.mark.parametrize(
    ("network", "takes", "expected"),
    [
        (resnet_50, IMAGE, {"ragged-rows": 1}),
        (distilbert, TOKENS, {"gather-guard": 1, "integer-work": 0, "run-time-index": 1, "reshape-of-rows": 24}),
        (minilm, TOKENS, {"gather-guard": 1, "run-time-index": 1, "reshape-of-rows": 24, "small-norm-epsilon": 13}),
    ],
    ids=["resnet", "distilbert", "minilm"],
)
def test_networks_that_are_known_to_be_right_have_no_error(
    network: Callable[[], nn.Module], takes: tuple[tuple[int, ...], type | None], expected: dict[str, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    convert(network(), *takes, tmp_path / "network.mlpackage")
    findings = lint_package(tmp_path / "network.mlpackage")
    assert [finding for finding in findings if finding.severity == "error"] == []
    counts = {rule: sum(finding.rule == rule for finding in findings) for rule in expected}
    assert counts == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_t5_small_with_its_cache_has_no_error(tmp_path: Path) -> None:
    import transformers as hf

    torch.manual_seed(0)
    config = hf.T5Config(decoder_start_token_id=0)
    hf.T5ForConditionalGeneration(config).eval().save_pretrained(tmp_path / "t5")
    source = load_source(str(tmp_path / "t5"), SourceOptions(task="text2text-generation"))
    for recipe in source.recipes:
        package = convert_recipe(conversion_of(capture(recipe)), tmp_path / f"{recipe.name}.mlpackage")
        findings = lint_package(package)
        assert [finding for finding in findings if finding.severity == "error"] == []
