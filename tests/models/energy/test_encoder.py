"""The text encoder, against torch's own transformer layer."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from coreflow.models.energy.config import find_preset
from coreflow.models.energy.encoder import MASKED, EncoderLayer, TextToCubeEncoder
from coreflow.models.layers.norm import EPSILON

CONFIG = replace(find_preset("demo").config("demo", vocabulary=50, decoder_vocabulary=32), dropout=0.1)
WIDTH, HEADS, FEED_FORWARD = 24, 3, 40


def randomise(module: nn.Module, seed: int) -> None:
    """Every parameter away from its start: branches that start at zero would hide what they compute."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3, generator=generator)


def copy_to_torch(layer: EncoderLayer) -> nn.TransformerEncoderLayer:
    oracle = nn.TransformerEncoderLayer(
        WIDTH, HEADS, FEED_FORWARD, dropout=0.1, activation="gelu", layer_norm_eps=EPSILON, batch_first=True, norm_first=True
    ).double()
    attention, feed_forward = layer.attention, layer.feed_forward
    parts = [attention.query, attention.key, attention.value]
    with torch.no_grad():
        oracle.self_attn.in_proj_weight.copy_(torch.cat([part.weight.flatten(1) for part in parts]))
        oracle.self_attn.in_proj_bias.copy_(torch.cat([part.get_parameter("bias") for part in parts]))
        for theirs, ours in (
            (oracle.self_attn.out_proj, attention.out),
            (oracle.linear1, feed_forward.expand),
            (oracle.linear2, feed_forward.contract),
            (oracle.norm1, layer.attention_norm),
            (oracle.norm2, layer.feed_forward_norm),
        ):
            theirs.weight.copy_(ours.weight.view(theirs.weight.shape))
            theirs.bias.copy_(ours.get_parameter("bias"))
    return oracle.eval()


def random_mask(rows: int, length: int, seed: int) -> Tensor:
    lengths = torch.randint(1, length + 1, (rows, 1), generator=torch.Generator().manual_seed(seed))
    return (torch.arange(length) < lengths).float()


@pytest.mark.parametrize("seed", range(5))
def test_layer_equals_a_pre_norm_torch_layer_with_the_same_weights(seed: int) -> None:
    layer = EncoderLayer(WIDTH, HEADS, FEED_FORWARD, dropout=0.1).double().eval()
    randomise(layer, seed)
    oracle = copy_to_torch(layer)
    x = torch.randn(4, 9, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mask = random_mask(4, 9, seed).double()
    with torch.no_grad():
        expected = oracle(x, src_key_padding_mask=mask == 0)
        actual = layer(x.transpose(1, 2).unsqueeze(2), (1 - mask[:, None, None, :]) * MASKED).squeeze(2).transpose(1, 2)
    torch.testing.assert_close(actual[mask > 0], expected[mask > 0], rtol=1e-9, atol=1e-9)


def test_an_untrained_layer_is_the_identity() -> None:
    layer = EncoderLayer(WIDTH, HEADS, FEED_FORWARD, dropout=0.1).eval()
    x = torch.randn(2, WIDTH, 1, 5)
    torch.testing.assert_close(layer(x, torch.zeros(2, 1, 1, 5)), x, rtol=0, atol=0)


def make_encoder(seed: int = 0) -> TextToCubeEncoder:
    torch.manual_seed(seed)
    encoder = TextToCubeEncoder(CONFIG).double().eval()
    randomise(encoder, seed)
    return encoder


def test_padding_ids_and_padding_length_do_not_change_the_surface() -> None:
    encoder = make_encoder()
    ids = torch.randint(0, CONFIG.vocabulary, (3, 12))
    mask = random_mask(3, 12, 1).double()
    other = torch.where(mask > 0, ids, torch.randint(0, CONFIG.vocabulary, ids.shape))
    longer = nn.functional.pad(ids, (0, 7), value=3), nn.functional.pad(mask, (0, 7))
    with torch.no_grad():
        expected = encoder(ids, mask)
        torch.testing.assert_close(encoder(other, mask), expected)
        torch.testing.assert_close(encoder(*longer), expected)


@pytest.mark.parametrize("place", [0, 3, 5])
def test_every_real_token_and_its_place_count(place: int) -> None:
    encoder = make_encoder()
    ids, mask = torch.randint(0, 40, (1, 8)), torch.tensor([[1.0] * 6 + [0.0] * 2], dtype=torch.float64)
    changed, swapped = ids.clone(), ids.clone()
    changed[0, place] = 45
    ids[0, 1], ids[0, 2] = 41, 42
    swapped[0, 1], swapped[0, 2] = 42, 41
    with torch.no_grad():
        assert (encoder(changed, mask) - encoder(ids, mask)).abs().max() > 1e-3
        assert (encoder(swapped, mask) - encoder(ids, mask)).abs().max() > 1e-3


def test_surface_has_a_value_in_minus_one_to_one_for_every_cell() -> None:
    encoder = make_encoder()
    with torch.no_grad():
        surface = encoder(torch.randint(0, CONFIG.vocabulary, (20, 10)), torch.ones(20, 10, dtype=torch.float64))
    assert surface.shape == (20, CONFIG.surface_size)
    assert surface.abs().max() <= 1
    assert surface.abs().max() > 0.5


def test_a_row_without_a_token_gives_a_finite_surface() -> None:
    with torch.no_grad():
        assert torch.isfinite(make_encoder()(torch.zeros(1, 6, dtype=torch.long), torch.zeros(1, 6, dtype=torch.float64))).all()
