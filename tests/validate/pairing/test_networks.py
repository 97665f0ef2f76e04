"""Networks that people ship, small and at their real sizes: at least 99 % of their weights are paired, compressed or not.

Random weights, the architectures of transformers, and a recurrent and a state-space network of our own.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.package.graph import Graph
from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe
from coreflow.models.spec import TensorSpec
from coreflow.models.t5.config import T5_SMALL
from coreflow.models.t5.decoder import DecoderStep, T5Decoder
from coreflow.validate.pairing.pairs import Pairing, pair
from coreflow.validate.pairing.weights import weights_of_graph, weights_of_module
from tests.validate.test_architectures import Hidden

SHARE = 0.99


class Recurrent(nn.Module):
    """Two LSTM layers between linear ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.lstm, self.after = nn.Linear(width, width), nn.LSTM(width, width, 2, batch_first=True), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.lstm(self.before(x))[0])
        return y


class Mamba(nn.Module):
    """One Mamba block (Gu and Dao 2023, section 3.4) with its scan written out by doubling."""

    def __init__(self, width: int, length: int, states: int = 8) -> None:
        super().__init__()
        inner = 2 * width
        self.norm, self.into, self.out = nn.LayerNorm(width), nn.Linear(width, 2 * inner), nn.Linear(inner, width)
        self.conv = nn.Conv1d(inner, inner, 4, padding=3, groups=inner)
        self.parameters_of_x, self.step = nn.Linear(inner, 2 * states + 8), nn.Linear(8, inner)
        self.log_a, self.skip = nn.Parameter(torch.rand(inner, states)), nn.Parameter(torch.rand(inner))
        self.states, self.length = states, length

    def forward(self, x: Tensor) -> Tensor:
        values, gate = self.into(self.norm(x)).chunk(2, -1)
        values = nn.functional.silu(self.conv(values.transpose(1, 2))[..., : self.length]).transpose(1, 2)
        drawn = self.parameters_of_x(values)
        step = nn.functional.softplus(self.step(drawn[..., :8]))
        b, c = drawn[..., 8 : 8 + self.states], drawn[..., 8 + self.states :]
        decay = torch.exp(-step[..., None] * torch.exp(self.log_a))
        state = (step * values)[..., None] * b[:, :, None]
        shift = 1
        while shift < self.length:
            pad = (0, 0, 0, 0, shift, 0)
            state = state + decay * nn.functional.pad(state[:, :-shift], pad)
            decay = decay * nn.functional.pad(decay[:, :-shift], pad, value=1.0)
            shift *= 2
        y = (state * c[:, :, None]).sum(-1) + values * self.skip
        return self.out(y * nn.functional.silu(gate))


def _ids(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    hidden: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return hidden


def _pixels(model: nn.Module, pixels: Tensor) -> Tensor:
    pooled: Tensor = model(pixel_values=pixels).pooler_output.flatten(1)
    return pooled


def _speech(model: nn.Module, features: Tensor) -> Tensor:
    hidden: Tensor = model(input_features=features).last_hidden_state
    return hidden


def _text_recipe(name: str, model: nn.Module, length: int) -> Recipe:
    ids, mask = TensorSpec((1, length), "int32", (0, 99)), TensorSpec((1, 1, 1, length), bounds=(-1e4, 0))
    return Recipe(name=name, module=Hidden(model, _ids), inputs={"ids": ids, "mask": mask}, outputs=("y",))


def resnet(small: bool) -> Recipe:
    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2]} if small else {}
    config = hf.ResNetConfig(**sizes)
    side = 32 if small else 224
    return Recipe(
        name="resnet", module=Hidden(hf.ResNetModel(config), _pixels), inputs={"x": TensorSpec((1, 3, side, side))}, outputs=("y",)
    )


def mobilenet(small: bool) -> Recipe:
    config = hf.MobileNetV2Config(image_size=64, depth_multiplier=0.35) if small else hf.MobileNetV2Config(tf_padding=False)
    side = 64 if small else 224
    module = Hidden(hf.MobileNetV2Model(config), _pixels)
    return Recipe(name="mobilenet", module=module, inputs={"x": TensorSpec((1, 3, side, side))}, outputs=("y",))


def distilbert(small: bool) -> Recipe:
    sizes: dict[str, Any] = {"dim": 32, "n_heads": 4, "hidden_dim": 64, "n_layers": 2, "vocab_size": 100} if small else {}
    return _text_recipe("distilbert", hf.DistilBertModel(hf.DistilBertConfig(**sizes, attn_implementation="eager")), 16)


def minilm(small: bool) -> Recipe:
    sizes: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
    if small:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
    return _text_recipe("minilm", hf.BertModel(hf.BertConfig(**sizes, attn_implementation="eager"), add_pooling_layer=False), 16)


def t5(small: bool) -> Recipe:
    config = replace(T5_SMALL, num_layers=2, vocab_size=256, d_model=64) if small else T5_SMALL
    step = DecoderStep(T5Decoder(config), 16)
    return Recipe(name="t5", module=step, inputs=step.input_specs(16), outputs=step.output_names)


def whisper(small: bool) -> Recipe:
    sizes: dict[str, Any] = {"d_model": 32, "encoder_attention_heads": 4, "encoder_ffn_dim": 64} if small else {}
    places = 16 if small else 1500
    config = hf.WhisperConfig(**sizes, encoder_layers=2 if small else 4, max_source_positions=places, attn_implementation="eager")
    encoder = hf.models.whisper.modeling_whisper.WhisperEncoder(config)
    return Recipe(
        name="whisper", module=Hidden(encoder, _speech), inputs={"x": TensorSpec((1, config.num_mel_bins, 2 * places))}, outputs=("y",)
    )


def lstm(small: bool) -> Recipe:
    width = 16 if small else 256
    return Recipe(name="lstm", module=Recurrent(width), inputs={"x": TensorSpec((1, 8, width))}, outputs=("y",))


def mamba(small: bool) -> Recipe:
    width, length = (16, 8) if small else (256, 64)
    return Recipe(name="mamba", module=Mamba(width, length), inputs={"x": TensorSpec((1, length, width))}, outputs=("y",))


NETWORKS = [resnet, mobilenet, distilbert, minilm, t5, whisper, lstm, mamba]
SIZES = [pytest.param(True, id="small"), pytest.param(False, id="real size", marks=pytest.mark.slow)]


def graph_of(recipe: Recipe, folder: Path) -> Graph:
    return read_program(build(recipe, folder)).function()[0]


def pairing_of(recipe: Recipe, saved: Graph, folder: Path) -> Pairing:
    fresh = graph_of(replace(recipe, precision="fp32"), folder)
    return pair(saved, [*weights_of_graph(fresh), *weights_of_module(recipe.module)])


@pytest.mark.sampled(1)
@pytest.mark.parametrize("small", SIZES)
@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_nearly_all_weights_are_paired(make: Callable[[bool], Recipe], small: bool, tmp_path: Path) -> None:
    recipe = make(small)
    recipe.module.eval()
    saved = graph_of(recipe, tmp_path / "fp16")
    pairing = pairing_of(recipe, saved, tmp_path / "fp32")
    alone = pair(saved, weights_of_module(recipe.module))
    print(
        f"{recipe.name}: {pairing.share:.4%} of {pairing.elements}; with the module alone {alone.share:.4%}; unknown {pairing.unknown[:3]}"
    )
    assert pairing.share >= SHARE and not pairing.altered, (pairing.share, pairing.altered[:3], pairing.unknown[:3])


def compress(method: Callable[..., Any], config: Any, package: Path, out: Path) -> Graph:
    model = method(ct.models.MLModel(str(package), skip_model_load=True), cto.OptimizationConfig(global_config=config))
    model.save(str(out))
    return read_program(out).function()[0]


COMPRESSIONS = {
    "palettes of 16": (cto.palettize_weights, cto.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=64)),
    "int8": (cto.linear_quantize_weights, cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=64)),
    "pruned": (
        cto.prune_weights,
        cto.OpThresholdPrunerConfig(threshold=0.05, minimum_sparsity_percentile=0.1, weight_threshold=64),
    ),
}


@pytest.mark.sampled(1)
@pytest.mark.filterwarnings("ignore:invalid value encountered in:RuntimeWarning")  # coremltools' own, of biases that are all zero
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("make", [distilbert, resnet], ids=lambda make: make.__name__)
def test_compressed_weights_are_paired_with_what_they_were(make: Callable[[bool], Recipe], compression: str, tmp_path: Path) -> None:
    recipe = make(True)
    recipe.module.eval()
    method, config = COMPRESSIONS[compression]
    saved = compress(method, config, build(recipe, tmp_path / "fp16"), tmp_path / "compressed.mlpackage")
    assert any(op.type.startswith("constexpr_") for op in saved.walk())
    pairing = pairing_of(recipe, saved, tmp_path / "fp32")
    assert pairing.share >= SHARE and not pairing.altered, (pairing.share, pairing.altered[:3], pairing.unknown[:3])
    assert all(np.isfinite(weight.values).all() for weight in weights_of_graph(pairing.graph))
