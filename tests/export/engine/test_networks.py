"""Five networks whose compute plans are published: ops per device, and the cost column of one, by the tables of those targets.

Published by erwinzhang7/coreml-compute-placement for an M4 Pro (macOS 26.5) and an M5 Max (macOS 26.6), batch 16. Weights are drawn here:
no estimate depends on them. Whisper and DistilBERT end with a mean, and Whisper takes float32, as the counts of their plans say.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.engine.placement import Placement, place
from coreflow.export.engine.targets import find_targets
from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.graph import Graph
from coreflow.export.package.mlpackage import read_program
from coreflow.export.targets.lowerings.registry import registered

pytestmark = pytest.mark.slow

BATCH = 16
PICTURES = (BATCH, 3, 224, 224)
PLANS = ("M4Pro/macOS26.5", "M5Max/macOS26.6")


class Picked(nn.Module):
    """One tensor of a model's output."""

    def __init__(self, model: nn.Module, pick: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.pick = model, pick

    def forward(self, x: Tensor) -> Tensor:
        return self.pick(self.model(x))


def resnet_50() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return Picked(ResNetForImageClassification(ResNetConfig()), lambda output: output.logits)


def mobilenet_v2() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return Picked(MobileNetV2ForImageClassification(MobileNetV2Config(image_size=224, tf_padding=True)), lambda output: output.logits)


def whisper_tiny_encoder() -> nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536, attn_implementation="eager")
    return Picked(WhisperEncoder(config), lambda output: output.last_hidden_state.mean(1))


def distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertModel

    return Picked(DistilBertModel(DistilBertConfig(attn_implementation="eager")), lambda output: output.last_hidden_state.mean(1))


def siglip_vision() -> nn.Module:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(vision_use_head=False, attn_implementation="eager")
    return Picked(SiglipVisionModel(config), lambda output: output.last_hidden_state.mean(1))


def convert(model: nn.Module, shape: tuple[int, ...], dtype: type | None, package: Path) -> Graph:
    """The graph of the model as plain coremltools converts it for iOS17; our lowerings stand in for torch operations that it lacks."""
    ct = quiet_coremltools()
    example = torch.zeros(shape, dtype=torch.int32) if dtype is np.int32 else torch.zeros(shape)
    with torch.no_grad():
        traced = torch.jit.trace(model.eval(), (example,), check_trace=False)
    declared = ct.TensorType(name="x", shape=shape) if dtype is None else ct.TensorType(name="x", shape=shape, dtype=dtype)
    with registered():
        converted = ct.convert(
            traced, inputs=[declared], convert_to="mlprogram", minimum_deployment_target=ct.target.iOS17, skip_model_load=True
        )
    converted.save(str(package))
    return read_program(package).function()[0]


def placements(graph: Graph) -> list[Placement]:
    return [place(graph, find_targets(name)[0]) for name in PLANS]


@pytest.mark.filterwarnings("ignore")  # the tracer's, on shapes that transformers checks
@pytest.mark.parametrize(
    ("network", "shape", "dtype", "counts"),
    [
        (resnet_50, PICTURES, None, (122, 0)),
        (mobilenet_v2, PICTURES, None, (118, 0)),
        (whisper_tiny_encoder, (BATCH, 80, 3000), np.float32, (101, 0)),
        (siglip_vision, PICTURES, None, (282, 0)),
    ],
    ids=["resnet", "mobilenet", "whisper", "siglip"],
)
def test_ops_per_device_are_those_of_the_published_plans(
    network: Callable[[], nn.Module], shape: tuple[int, ...], dtype: type | None, counts: tuple[int, int], tmp_path: Path
) -> None:
    graph = convert(network(), shape, dtype, tmp_path / "network.mlpackage")
    for placement in placements(graph):
        assert (placement.count("engine"), placement.count("cpu")) == counts, placement.target.key


# Shares of the cost on an M4 Pro by op and first input or length of rows, to the printed digits.
PRINTED = {
    ("gather", ()): "0.04751",
    ("linear", (16, 128, 768)): "0.00425",
    ("linear", (16, 128, 3072)): "0.0681",
    ("softmax", (16, 12, 128, 128)): "0.00402",
    ("matmul", ()): "0.00402",
    ("layer_norm", ()): "0.00201",
    ("reshape", ()): "0.00201",
    ("gelu", ()): "0.00803",
    ("transpose", ()): "0.00539",
    ("mul", ()): "0.00367",
    ("reduce_mean", ()): "0.00101",
}


@pytest.mark.filterwarnings("ignore")
def test_distilbert_has_seven_ops_on_the_cpu_and_the_published_cost_column(tmp_path: Path) -> None:
    graph = convert(distilbert(), (BATCH, 128), np.int32, tmp_path / "distilbert.mlpackage")
    m4_pro, m5_max = placements(graph)
    for placement in (m4_pro, m5_max):
        assert (placement.count("engine"), placement.count("cpu")) == (141, 7)
        off = [op.type for op in placement.ops if op.device == "cpu"]
        assert sorted(off) == ["add", "cast", "cast", "cast", "gather", "greater_equal", "select"]
    compared = 0
    for (op_type, shape), printed in PRINTED.items():
        digits = len(printed.partition(".")[2])
        shares = [op.share for op in m4_pro.ops if op.type == op_type and shape in ((), op.features.inputs[0].shape)]
        assert shares
        for share in shares:
            assert share == pytest.approx(float(printed), abs=0.51 * 10**-digits), op_type
            compared += 1
    assert compared > 100
    (added,) = {round(op.share, 5) for op in m4_pro.ops if op.type == "add" and len(op.features.inputs) == 2}
    assert added == pytest.approx(0.00552, abs=6e-6)
