"""Tiny configurations of architectures of transformers: the package of each passes, and fails against a twin with a zeroed block.

Weights are random and seeded; verdicts were checked by hand, rung by rung. Masks are additive and of all scores: transformers' own code
that makes them of padding does not trace. What does not run with such a mask or at such a size is not in the table.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from benchmarks.architectures import CAUSAL, LENGTH, MAMBA, NAMES, PIXELS, SIDE, SPEECH, TEXT, WHISPER, tiny_model
from coreflow.export.bundle import build
from coreflow.export.recipe import Recipe
from coreflow.models.spec import TensorSpec
from coreflow.validate import validate


class Hidden(nn.Module):
    """A model of transformers as a function of tensors: ``call`` makes its output of them."""

    def __init__(self, model: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(self.model, *inputs)


def _text(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    return model(input_ids=ids, attention_mask=mask).last_hidden_state


def _causal(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    return model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def _scan(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).last_hidden_state


def _pixels(model: nn.Module, pixels: Tensor) -> Tensor:
    return model(pixel_values=pixels).last_hidden_state


def _speech(model: nn.Module, features: Tensor) -> Tensor:
    return model(input_features=features).last_hidden_state


def _wave(model: nn.Module, wave: Tensor) -> Tensor:
    return model(input_values=wave).last_hidden_state


def recipe(name: str) -> Recipe:
    """The recipe of one architecture, with seeded random weights."""
    torch.manual_seed(0)
    ids = TensorSpec((1, LENGTH), "int32", (0, 99))
    mask = TensorSpec((1, 1, LENGTH, LENGTH), bounds=(-1e4, 0))
    if name in TEXT:
        module = Hidden(tiny_model(name, TEXT[name]), _text)
        return Recipe(name=name, module=module, inputs={"ids": ids, "mask": mask}, outputs=("y",))
    if name in CAUSAL:
        module = Hidden(tiny_model(name, CAUSAL[name]), _causal)
        return Recipe(name=name, module=module, inputs={"ids": ids, "mask": mask}, outputs=("y",))
    if name in PIXELS:
        sizes = PIXELS[name]
        side = sizes.get("image_size", SIDE)
        return Recipe(
            name=name, module=Hidden(tiny_model(name, sizes), _pixels), inputs={"x": TensorSpec((1, 3, side, side))}, outputs=("y",)
        )
    if name == "Whisper":
        config = hf.WhisperConfig(**WHISPER, attn_implementation="eager")
        module = Hidden(hf.models.whisper.modeling_whisper.WhisperEncoder(config).eval(), _speech)
        return Recipe(name=name, module=module, inputs={"x": TensorSpec((1, config.num_mel_bins, 2 * LENGTH))}, outputs=("y",))
    if name in SPEECH:
        return Recipe(name=name, module=Hidden(tiny_model(name, SPEECH[name]), _wave), inputs={"x": TensorSpec((1, 400))}, outputs=("y",))
    if name == "Mamba":
        config = hf.MambaConfig(**MAMBA)
        return Recipe(name=name, module=Hidden(hf.MambaModel(config).eval(), _scan), inputs={"ids": ids}, outputs=("y",))
    raise KeyError(name)


# Without trained statistics the values of these two vanish, layer by layer, below all fp16 numbers.
EXPECTED = {"MobileNetV1": "fp16-unsafe", "MobileNetV2": "fp16-unsafe"}


def zero_block(module: nn.Module) -> str:
    """Zeroes a block of the largest weight; its name."""
    name, weight = max(module.named_parameters(), key=lambda named: named[1].numel() if "embed" not in named[0] else 0)
    with torch.no_grad():
        weight.view(weight.shape[0], -1)[: max(1, weight.shape[0] // 8)] = 0
    return name


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_healthy_package_passes_and_is_none_of_a_twin(name: str, tmp_path: Path) -> None:
    healthy = recipe(name)
    package = build(healthy, tmp_path)
    report = validate(package, healthy)
    assert report.verdict == EXPECTED.get(name, "pass"), (report.text, report.notes)
    assert {"R2", "R2s"} <= report.outputs["y"].rungs.keys()
    twin = replace(healthy, module=copy.deepcopy(healthy.module))
    weight = zero_block(twin.module)
    other = validate(package, twin)
    assert (other.verdict, other.cause) == ("fail", "weights"), other.text
    assert weight in other.culprits[0].text, (weight, [culprit.text for culprit in other.culprits[:3]])


@pytest.mark.slow
def test_an_epsilon_that_fp16_raises_is_named_where_it_matters(tmp_path: Path) -> None:
    healthy = recipe("DeiT")
    model = healthy.module.model
    assert isinstance(model, nn.Module)
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_token", "distillation_token", "position_embeddings", "bias")):
            nn.init.zeros_(parameter)
    report = validate(build(healthy, tmp_path), healthy)
    assert (report.verdict, report.cause) == ("fail", "weights")
    assert "the weights are the reference's" in report.text
    assert (report.culprits[0].kind, report.culprits[0].type) == ("constant", "layer_norm"), report.culprits[:3]
