"""Tiny transformers with masks as they are drawn, and with rows that a caller or a sweep leaves empty."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from coreflow.export.bundle import build
from coreflow.export.recipe import Recipe
from coreflow.models.spec import TensorSpec
from coreflow.validate.package import validate

L, VOCABULARY = 8, 50
IDS = TensorSpec((1, L), "int32", (0, VOCABULARY - 1))
MASKS = {
    "floats": TensorSpec((1, L), bounds=(0, 1)),
    "integers": TensorSpec((1, L), "int32", (0, 1)),
    "two values": TensorSpec((1, L), values=(0, 1)),
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "attn_implementation": "eager"}


def bert() -> nn.Module:
    return BertModel(BertConfig(vocab_size=VOCABULARY, max_position_embeddings=L, **SMALL), add_pooling_layer=False)


def gpt2() -> nn.Module:
    return GPT2Model(GPT2Config(vocab_size=VOCABULARY, n_positions=L, n_embd=32, n_layer=1, n_head=2, attn_implementation="eager"))


def llama() -> nn.Module:
    return LlamaModel(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=L, num_key_value_heads=2, **SMALL))


class Text(nn.Module):
    """Ids and a mask (1, L) -> hidden states; the mask becomes one that is added to the scores, here as four dimensions."""

    order: Tensor

    def __init__(self, model: nn.Module, *, causal: bool, masked: float = float("-inf")) -> None:
        super().__init__()
        self.model, self.masked = model, masked
        self.register_buffer("order", torch.tril(torch.ones(L, L)) if causal else torch.ones(L, L))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        allowed = self.order * mask.to(self.order.dtype)[:, None, None, :]
        added = torch.zeros_like(allowed).masked_fill(allowed == 0, self.masked)
        return self.model(input_ids=ids, attention_mask=added, use_cache=False).last_hidden_state


def recipe_of(make: Callable[[], nn.Module], mask: TensorSpec, **options: float) -> Recipe:
    torch.manual_seed(0)
    module = Text(make(), causal=make is not bert, **options).eval()
    return Recipe(name="text", module=module, inputs={"ids": IDS, "mask": mask}, outputs=("hidden",))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("make", "mask"), list(zip((bert, gpt2, llama), MASKS.values(), strict=True)), ids=["bert", "gpt2", "llama"])
def test_a_healthy_transformer_passes_with_masks_as_they_are_drawn(make: Callable[[], nn.Module], mask: TensorSpec, tmp_path: Path) -> None:
    recipe = recipe_of(make, mask)
    report = validate(build(recipe, tmp_path), recipe)
    assert report.verdict == "pass", report.text


class Sentence(Text):
    """The mean over tokens, of length 1, as sentence encoders give it."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = super().forward(ids, mask)
        kept = mask.to(hidden.dtype).unsqueeze(-1)
        return nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9), dim=-1)


def sentence(masked: float) -> Recipe:
    torch.manual_seed(0)
    module = Sentence(bert(), causal=False, masked=masked).eval()
    return Recipe(name="sentence", module=module, inputs={"ids": IDS, "mask": MASKS["integers"]}, outputs=("sentence",))


EMPTY = {"ids": np.arange(L, dtype=np.int32)[None], "mask": np.zeros((1, L), np.int32)}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("masked", [float("-inf"), torch.finfo(torch.float32).min, -1e4])
@pytest.mark.parametrize("sweep", [False, True], ids=["given", "given and swept"])
def test_an_empty_row_does_not_fail_a_healthy_package(masked: float, sweep: bool, tmp_path: Path) -> None:
    recipe = sentence(masked)
    report = validate(build(recipe, tmp_path), recipe, [EMPTY], sweep=sweep)
    assert report.verdict == "pass", report.text
    (note,) = [note for note in report.notes if "input 0" in note]
    assert note.startswith("left out: input 0: mask has an empty row, and "), report.notes
    assert any("sweep: masks: all masked" in note for note in report.notes) == sweep


def test_a_fault_that_shows_in_every_row_fails_beside_an_empty_one(tmp_path: Path) -> None:
    recipe = sentence(-1e4)
    package = build(recipe, tmp_path)
    with torch.no_grad():
        recipe.module.get_parameter("model.encoder.layer.0.attention.output.dense.bias").fill_(torch.nan)
    assert validate(package, recipe, [EMPTY]).verdict != "pass"


@pytest.mark.slow
def test_rows_of_one_value_count_where_nothing_goes_wrong(tmp_path: Path) -> None:
    """Token types are 0 in most inputs, and no mask."""

    class Typed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.types, self.out = nn.Embedding(VOCABULARY, 16), nn.Embedding(2, 16), nn.Linear(16, 8)

        def forward(self, ids: Tensor, kinds: Tensor) -> Tensor:
            return self.out(torch.tanh(self.tokens(ids) + self.types(kinds)))

    recipe = Recipe(name="typed", module=Typed().eval(), inputs={"ids": IDS, "kinds": MASKS["integers"]}, outputs=("y",))
    package = build(recipe, tmp_path)
    zeros = {"ids": EMPTY["ids"], "kinds": EMPTY["mask"]}
    report = validate(package, recipe, [zeros])
    assert report.verdict == "pass" and report.samples.given == 1 and not report.notes
    with torch.no_grad():
        recipe.module.get_parameter("types.weight")[0, 0] += 0.5
    assert validate(package, recipe.module, [zeros]).verdict == "fail"
