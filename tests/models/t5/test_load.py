"""A local Hugging Face directory gives the decoder whose logits are transformers' own; anything else is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5Config as HuggingFaceConfig
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from coreflow.models.errors import BundleError
from coreflow.models.t5.config import T5_SMALL
from coreflow.models.t5.load import load_decoder, read_config

Weights = dict[str, Tensor]
Edit = Callable[[Weights], Weights]
Index = tuple[Path, dict[str, str], Callable[..., None]]

TINY = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 3}
T, M = 150, 6  # more positions than the maximal distance of 128


def save(directory: Path, *, shard: str = "1GB", **settings: Any) -> Any:
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(HuggingFaceConfig(**TINY, decoder_start_token_id=0, **settings)).eval()
    with torch.no_grad():  # at their initial value of 1 the norms would hide a mix-up
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(directory, max_shard_size=shard)
    return model


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("t5")
    return directory, save(directory)


@pytest.fixture
def copied(stored: tuple[Path, Any], tmp_path: Path) -> Path:
    """A directory of its own, to be damaged."""
    return Path(shutil.copytree(stored[0], tmp_path / "t5"))


def inputs(vocabulary: int = 40, width: int = 32, length: int = T) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, vocabulary, (2, length), generator=generator), torch.randn(2, M, width, generator=generator)


@torch.no_grad()
def their_logits(model: Any, tokens: Tensor, memory: Tensor) -> Tensor:
    return model(encoder_outputs=BaseModelOutput(memory), decoder_input_ids=tokens).logits


# --- equality with transformers -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_plain_form_equals_transformers(stored: tuple[Path, Any]) -> None:
    directory, theirs = stored
    tokens, memory = inputs()
    torch.testing.assert_close(load_decoder(directory)(tokens, memory), their_logits(theirs, tokens, memory), rtol=0, atol=1e-5)


def test_steps_equal_transformers_beyond_the_maximal_distance(stored: tuple[Path, Any], steps_over: Callable[..., Any]) -> None:
    directory, theirs = stored
    tokens, memory = inputs()
    expected = their_logits(theirs, tokens, memory)[0].numpy()
    step, state = steps_over(load_decoder(directory), memory[:1], T)
    for position in range(T):
        logits, state = step(int(tokens[0, position]), position, state)
        np.testing.assert_allclose(logits, expected[position], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"tie_word_embeddings": False},
        {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20},
        {"layer_norm_epsilon": 0.1},
    ],
    ids=["unscaled-head", "buckets", "epsilon"],
)
@torch.no_grad()
def test_settings_of_the_config_are_honoured(settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = save(tmp_path, **settings)
    tokens, memory = inputs(length=40)
    expected = their_logits(theirs, tokens, memory)
    torch.testing.assert_close(load_decoder(tmp_path)(tokens, memory), expected, rtol=0, atol=2e-6 * float(expected.abs().max()) + 1e-6)


@torch.no_grad()
def test_a_head_of_its_own_is_used_unscaled(copied: Path) -> None:
    edit_config(copied, tie_word_embeddings=False)
    head = torch.randn(40, 32, generator=torch.Generator().manual_seed(5))
    edit_weights(copied, lambda weights: weights | {"lm_head.weight": head})
    decoder = load_decoder(copied)
    assert not decoder.config.tie_word_embeddings
    assert decoder.head is not None and torch.equal(decoder.head.weight, head)


def test_sharded_weights_are_the_same_weights(stored: tuple[Path, Any], tmp_path: Path) -> None:
    directory, _ = stored
    save(tmp_path, shard="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    whole, sharded = load_decoder(directory).state_dict(), load_decoder(tmp_path).state_dict()
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_half_precision_weights_become_float32(copied: Path) -> None:
    edit_weights(copied, lambda weights: {name: value.half() for name, value in weights.items()})
    assert {parameter.dtype for parameter in load_decoder(copied).parameters()} == {torch.float32}


def test_redundant_tensors_of_early_checkpoints_are_accepted(copied: Path) -> None:
    def redundant(weights: Weights) -> Weights:
        return weights | {
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.zeros(32, 3),
            **{
                name: weights["shared.weight"].clone()
                for name in ("lm_head.weight", "decoder.embed_tokens.weight", "encoder.embed_tokens.weight")
            },
        }

    edit_weights(copied, redundant)
    assert load_decoder(copied).head is None


def test_the_encoder_is_not_needed(copied: Path) -> None:
    edit_weights(copied, lambda weights: {name: value for name, value in weights.items() if not name.startswith("encoder.")})
    load_decoder(copied)


def test_loaded_decoder_evaluates_and_can_be_trained(stored: tuple[Path, Any]) -> None:
    decoder = load_decoder(stored[0])
    assert not decoder.training
    assert all(parameter.requires_grad for parameter in decoder.parameters())


@pytest.mark.slow
def test_t5_small_dimensions_equal_transformers(tmp_path: Path, steps_over: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    T5ForConditionalGeneration(HuggingFaceConfig(decoder_start_token_id=0)).save_pretrained(tmp_path)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    decoder = load_decoder(tmp_path)
    assert decoder.config == T5_SMALL
    tokens, memory = inputs(32128, 512, 20)
    expected = their_logits(theirs, tokens, memory)
    with torch.no_grad():
        torch.testing.assert_close(decoder(tokens, memory), expected, rtol=0, atol=1e-5)
    step, state = steps_over(decoder, memory[:1], 20)
    for position in range(20):
        logits, state = step(int(tokens[0, position]), position, state)
        np.testing.assert_allclose(logits, expected[0, position].numpy(), rtol=0, atol=1e-5)


# --- refusals -----------------------------------------------------------------------------------------------------------


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({name: value for name, value in (json.loads(path.read_text()) | changes).items() if value != "absent"}))


def edit_weights(directory: Path, edit: Edit) -> None:
    path = directory / "model.safetensors"
    save_file(edit(load_file(path)), path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mt5"}, "model_type is 'mt5'"),
        ({"feed_forward_proj": "gated-gelu"}, "feed_forward_proj is 'gated-gelu'"),
        ({"d_kv": "absent", "d_ff": "absent"}, "d_kv is missing; d_ff is missing"),
        ({"vocab_size": "40"}, "vocab_size='40' is not a whole number"),
        ({"num_decoder_layers": 0}, "num_layers=0 is below 1"),
        ({"eos_token_id": [1, 2]}, "eos_id=[1, 2] is not a whole number"),
        ({"decoder_start_token_id": 3}, "decoder_start_token_id is 3 instead of pad_token_id, 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_config_that_is_not_t5_v1_is_refused(changes: dict[str, Any], named: str, copied: Path) -> None:
    edit_config(copied, **changes)
    with pytest.raises(BundleError) as refusal:
        read_config(copied)
    assert named in str(refusal.value)
    assert "config.json" in str(refusal.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe"], ids=["empty", "cut", "list", "bytes"])
def test_a_damaged_config_is_refused(text: bytes, copied: Path) -> None:
    (copied / "config.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"config\.json: not "):
        load_decoder(copied)


def without_a_key_with_another_and_a_wrong_shape(weights: Weights) -> Weights:
    weights.pop("decoder.final_layer_norm.weight")
    weights["decoder.block.1.layer.2.DenseReluDense.wi.weight"] = torch.zeros(48, 31)
    return weights | {"decoder.block.2.layer.0.layer_norm.weight": torch.zeros(32)}


def test_all_that_is_wrong_with_the_weights_is_named_at_once(copied: Path) -> None:
    edit_weights(copied, without_a_key_with_another_and_a_wrong_shape)
    with pytest.raises(BundleError) as refusal:
        load_decoder(copied)
    text = str(refusal.value)
    assert "missing: decoder.final_layer_norm.weight" in text
    assert "unknown: decoder.block.2.layer.0.layer_norm.weight" in text
    assert "wrong: decoder.block.1.layer.2.DenseReluDense.wi.weight is [48, 31] instead of [48, 32]" in text


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda weights: weights | {"shared.weight": torch.full((40, 32), float("nan"))}, "not finite: shared.weight"),
        (lambda weights: weights | {"shared.weight": torch.zeros(40, 32, dtype=torch.int8)}, "wrong: shared.weight is [40, 32] of int8"),
        (
            lambda weights: weights | {"lm_head.weight": torch.ones(40, 32)},
            "different from shared.weight, which it repeats: lm_head.weight",
        ),
        (lambda weights: {"bert.embeddings": torch.zeros(2)}, "and 21 more"),
    ],
    ids=["nan", "int8", "head", "foreign"],
)
def test_weights_that_do_not_fit_are_refused(edit: Edit, named: str, copied: Path) -> None:
    edit_weights(copied, edit)
    with pytest.raises(BundleError) as refusal:
        load_decoder(copied)
    assert named in str(refusal.value)


@pytest.mark.parametrize("keep", [0, 4, 300, -1], ids=["empty", "cut-length", "cut-header", "cut-data"])
def test_a_truncated_weight_file_is_refused(keep: int, copied: Path) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BundleError, match=r"model\.safetensors: not a readable safetensors file"):
        load_decoder(copied)


def test_pickled_weights_are_never_opened(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(BundleError, match="pickled weights are not read"):
        load_decoder(copied)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere.config\.json: cannot be read"):
        load_decoder(tmp_path / "nowhere")


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """The index of sharded weights, and a function that writes it back changed."""
    save(tmp_path, shard="20KB")
    path = tmp_path / "model.safetensors.index.json"
    plain = json.loads(path.read_text())

    def write(**changes: Any) -> None:
        path.write_text(json.dumps(plain | changes))

    return tmp_path, plain["weight_map"], write


@pytest.mark.parametrize("place", ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "", "a\\b", 7], ids=str)
def test_an_index_may_not_lead_out_of_its_directory(place: object, index: Index) -> None:
    directory, places, write = index
    write(weight_map=places | {"shared.weight": place})
    with pytest.raises(BundleError, match=r"shared\.weight is placed in .* which is not the name of a file beside it"):
        load_decoder(directory)


def test_a_missing_shard_is_named(index: Index) -> None:
    directory, places, _ = index
    (directory / places["shared.weight"]).unlink()
    with pytest.raises(BundleError, match=f"missing: {places['shared.weight']}"):
        load_decoder(directory)


def test_a_tensor_that_is_not_in_its_shard_is_named(index: Index) -> None:
    directory, places, write = index
    elsewhere = next(name for name in places.values() if name != places["shared.weight"])
    write(weight_map=places | {"shared.weight": elsewhere})
    with pytest.raises(BundleError, match=rf"{elsewhere}: lacks .* missing: shared\.weight"):
        load_decoder(directory)


@pytest.mark.parametrize("places", [{}, [], None], ids=str)
def test_an_index_without_places_is_refused(places: object, index: Index) -> None:
    directory, _, write = index
    write(weight_map=places)
    with pytest.raises(BundleError, match="weight_map is not a table"):
        load_decoder(directory)
