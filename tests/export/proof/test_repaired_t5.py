"""A T5 whose residual stream is beyond what fp16 squares, exported as it comes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from coreflow.export import Recipe, TensorSpec
from coreflow.export.bundle import BundleDone, export_bundle


class Encoder(nn.Module):
    """T5's encoder, whose stream begins with one large channel, as those of trained ones do."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import T5Config, T5EncoderModel

        config = T5Config(d_model=64, d_kv=16, num_heads=4, d_ff=128, num_layers=2, vocab_size=100)
        self.model = T5EncoderModel(config)
        with torch.no_grad():
            self.model.shared.weight.normal_()
            self.model.shared.weight[:, 3] *= 800

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids).last_hidden_state


@pytest.mark.slow
def test_a_residual_stream_of_2000_does_not_overflow_on_the_engine(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Encoder().eval()
    with torch.no_grad():
        stream = module.model(input_ids=torch.arange(16)[None], output_hidden_states=True).hidden_states[1]
    assert stream.abs().max() > 2000
    ids = TensorSpec((1, 16), "int32", bounds=(0, 99))
    recipe = Recipe(name="encoder", module=module, inputs={"ids": ids}, outputs=("hidden",), engine_safe="M4/macOS27")
    done = list(export_bundle([recipe], tmp_path / "bundle", jobs=1))[-1]
    assert isinstance(done, BundleDone)
    stage = done.manifest.stages["encoder"]
    assert stage.repairs is not None and stage.errors is not None
    assert "rms_as_layer_norm" in [change["repair"] for change in stage.repairs["changes"]]
    errors = stage.repairs["errors"]
    before, after = errors["before"]["hidden"], errors["after"]["hidden"]
    assert (before is None or before > 0.5) and after < 5e-3
