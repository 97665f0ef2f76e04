"""The maps between a teacher's embedding and a surface."""

import torch
from torch import nn

from coreflow.models.energy.config import find_preset
from coreflow.models.energy.mapper import EmbeddingToSurface, SurfaceToEmbedding

CONFIG = find_preset("demo").config("demo", vocabulary=32, decoder_vocabulary=32, embedding_size=48)


def test_shapes_lead_from_the_embedding_to_the_surface_and_back() -> None:
    surface = EmbeddingToSurface(CONFIG)(torch.randn(3, 48))
    assert surface.shape == (3, CONFIG.surface_size)
    assert SurfaceToEmbedding(CONFIG)(surface).shape == (3, 48)


def test_field_is_added_cell_by_cell_to_the_surface_that_enters() -> None:
    mapper, embedding = EmbeddingToSurface(CONFIG), torch.randn(2, 48)
    with torch.no_grad():
        before = mapper(embedding)
        mapper.field[2, 5] = 0.75
        change = (mapper(embedding) - before).view(2, CONFIG.height, CONFIG.width)
    expected = torch.zeros(2, CONFIG.height, CONFIG.width)
    expected[:, 2, 5] = 0.75
    torch.testing.assert_close(change, expected, atol=1e-6, rtol=0)


def test_field_is_added_cell_by_cell_to_the_surface_that_left() -> None:
    mapper, surface = SurfaceToEmbedding(CONFIG), torch.randn(2, CONFIG.surface_size)
    nn.init.normal_(mapper.field)
    with torch.no_grad():
        expected = mapper.layers(surface + mapper.field.flatten())
        torch.testing.assert_close(mapper(surface), expected)
        assert (expected - mapper.layers(surface)).abs().max() > 1e-2


def test_an_untrained_embedding_has_about_the_length_of_a_teachers() -> None:
    torch.manual_seed(0)
    config = find_preset("demo").config("demo", vocabulary=32, decoder_vocabulary=32)
    with torch.no_grad():
        lengths = SurfaceToEmbedding(config)(torch.rand(50, config.surface_size) * 2 - 1).norm(dim=1)
    assert lengths.min() > 0.5
    assert lengths.max() < 2
