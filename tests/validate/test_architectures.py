"""Tiny configurations of architectures of transformers: the package of each passes, and fails against a twin with a zeroed block.

Weights are random and seeded; verdicts were checked by hand, rung by rung. Masks are additive and of all scores: transformers' own code
that makes them of padding does not trace. What does not run with such a mask or at such a size is not in the table.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.recipe import Recipe
from coreflow.models.spec import TensorSpec
from coreflow.validate import validate

LENGTH, SIDE = 12, 32


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


BERT: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
LLAMA: dict[str, Any] = {**BERT, "num_key_value_heads": 2, "max_position_embeddings": 64}
VIT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
}

TEXT: dict[str, dict[str, Any]] = {
    "Bert": BERT,
    "Roberta": BERT,
    "XLMRoberta": BERT,
    "Camembert": BERT,
    "Electra": {**BERT, "embedding_size": 32},
    "Albert": {**BERT, "embedding_size": 16},
    "MPNet": BERT,
    "DistilBert": {"dim": 32, "n_heads": 4, "hidden_dim": 64, "n_layers": 2, "vocab_size": 100},
    "MobileBert": {**BERT, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "SqueezeBert": {**BERT, "embedding_size": 32},
    "Ernie": BERT,
    "RemBert": {**BERT, "input_embedding_size": 32, "output_embedding_size": 32},
}
CAUSAL: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 100},
    "GPTNeoX": {**BERT, "max_position_embeddings": 64},
    "Llama": LLAMA,
    "Mistral": LLAMA,
    "Qwen2": LLAMA,
    "Qwen3": {**LLAMA, "head_dim": 8},
    "Gemma": {**LLAMA, "head_dim": 8},
    "Phi": LLAMA,
    "StableLm": LLAMA,
    "Olmo": LLAMA,
    "Granite": LLAMA,
    "Cohere": LLAMA,
}
PIXELS: dict[str, dict[str, Any]] = {
    "ViT": VIT,
    "DeiT": VIT,
    "Beit": VIT,
    "ResNet": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]},
    "RegNet": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8},
    "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "ConvNextV2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "MobileNetV1": {"image_size": SIDE, "depth_multiplier": 0.25},
    "MobileNetV2": {"image_size": SIDE, "depth_multiplier": 0.25},
    "PoolFormer": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "Swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": SIDE, "patch_size": 4},
    "Segformer": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2], "decoder_hidden_size": 16},
    "CLIPVision": VIT,
    "SiglipVision": VIT,
    "Pvt": {
        "image_size": 64,
        "hidden_sizes": [8, 16, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 2],
        "num_encoder_blocks": 4,
    },
}


def recipe(name: str) -> Recipe:
    """The recipe of one architecture, with seeded random weights."""
    torch.manual_seed(0)
    ids = TensorSpec((1, LENGTH), "int32", (0, 99))
    mask = TensorSpec((1, 1, LENGTH, LENGTH), bounds=(-1e4, 0))
    if name in TEXT:
        module = Hidden(_model(name, TEXT[name]), _text)
        return Recipe(name=name, module=module, inputs={"ids": ids, "mask": mask}, outputs=("y",))
    if name in CAUSAL:
        module = Hidden(_model(name, CAUSAL[name]), _causal)
        return Recipe(name=name, module=module, inputs={"ids": ids, "mask": mask}, outputs=("y",))
    if name in PIXELS:
        sizes = PIXELS[name]
        side = sizes.get("image_size", SIDE)
        return Recipe(name=name, module=Hidden(_model(name, sizes), _pixels), inputs={"x": TensorSpec((1, 3, side, side))}, outputs=("y",))
    if name == "Whisper":
        config = hf.WhisperConfig(
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=64,
            max_source_positions=LENGTH,
            attn_implementation="eager",
        )
        module = Hidden(hf.models.whisper.modeling_whisper.WhisperEncoder(config).eval(), _speech)
        return Recipe(name=name, module=module, inputs={"x": TensorSpec((1, config.num_mel_bins, 2 * LENGTH))}, outputs=("y",))
    if name in ("Wav2Vec2", "Hubert"):
        sizes = {
            **BERT,
            "conv_dim": (16, 16),
            "conv_stride": (5, 2),
            "conv_kernel": (10, 3),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
        }
        return Recipe(name=name, module=Hidden(_model(name, sizes), _wave), inputs={"x": TensorSpec((1, 400))}, outputs=("y",))
    if name == "Mamba":
        config = hf.MambaConfig(vocab_size=100, hidden_size=16, state_size=4, num_hidden_layers=1)
        return Recipe(name=name, module=Hidden(hf.MambaModel(config).eval(), _scan), inputs={"ids": ids}, outputs=("y",))
    raise KeyError(name)


def _model(name: str, sizes: dict[str, Any]) -> nn.Module:
    config = getattr(hf, f"{name}Config")(**sizes)
    if hasattr(config, "_attn_implementation"):
        config._attn_implementation = "eager"
    model = getattr(hf, f"{name}Model")(config).eval()
    for parameter in model.parameters():
        if not parameter.any():  # tokens that start at zero: a norm of nothing but them shows its epsilon, which fp16 raises
            nn.init.normal_(parameter, std=0.02)
    return model


OTHERS = ("Whisper", "Wav2Vec2", "Hubert", "Mamba")
NAMES = (*TEXT, *CAUSAL, *PIXELS, *OTHERS)


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
