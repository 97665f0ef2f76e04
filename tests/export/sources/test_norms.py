"""RMSNorms of transformers become torch's own, and large residual streams pass through packages."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from coreflow.export.bundle import build
from coreflow.export.sources.adapters.adapter import Sizes
from coreflow.export.sources.adapters.norms import use_torch_norms
from coreflow.export.sources.hugging_face import load_checkpoint
from coreflow.runtime import load_model


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma2RMSNorm, T5LayerNorm])
def test_a_norm_of_transformers_becomes_an_equal_one_of_torch(kind: Any) -> None:
    norm = kind(8)
    nn.init.normal_(norm.weight)
    model, x = nn.Sequential(norm), torch.randn(2, 3, 8)
    use_torch_norms(model)
    assert isinstance(model[0], nn.RMSNorm)
    torch.testing.assert_close(model(x), norm(x))


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.LayerNorm(8, bias=False), nn.RMSNorm(8), nn.Linear(8, 8, bias=False)], ids=repr)
def test_another_module_stays(norm: nn.Module) -> None:
    model = nn.Sequential(norm)
    use_torch_norms(model)
    assert model[0] is norm


@pytest.mark.slow
def test_squares_beyond_fp16_pass_through_a_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, initializer_range=0.3, max_position_embeddings=16)).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight *= 2000
        reference = model(torch.tensor([[7]])).logits[0].numpy()
    model.save_pretrained(tmp_path / "llama")
    (recipe,) = load_checkpoint(str(tmp_path / "llama"), task="text-generation", sizes=Sizes(length=16, prompt=4))
    (step,) = recipe.functions
    inputs = {
        "input_ids": np.array([[7]], np.int32),
        "position": np.array([0], np.int32),
        "past": np.zeros(step.inputs["past"].shape, np.float16),
    }
    actual = load_model(build(step, tmp_path), "lifted").predict(inputs)["logits"]
    np.testing.assert_allclose(actual, reference, atol=0.05)
