"""CLIP: its encoders of texts and of pictures, which put both into one space."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from coreflow.export.recipe import Recipe
from coreflow.export.sources.adapters.adapter import Adapter, Checkpoint
from coreflow.export.sources.adapters.image_classifiers import image_settings
from coreflow.models.images import ImageSpec
from coreflow.models.spec import TensorSpec


class TextEmbedding(nn.Module):
    """Ids and their mask (1, L) to the embedding (1, E) of a text, as ``get_text_features`` gives it.

    >>> TextEmbedding(clip.text_model, clip.text_projection)(ids, mask).shape
    torch.Size([1, 512])
    """

    def __init__(self, encoder: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projection = encoder, projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(1, L), (1, L) -> (1, E)."""
        embedding: Tensor = self.projection(self.encoder(input_ids=input_ids, attention_mask=attention_mask).pooler_output)
        return embedding


class ImageEmbedding(nn.Module):
    """A picture (1, 3, H, W) to its embedding (1, E), as ``get_image_features`` gives it.

    >>> ImageEmbedding(clip.vision_model, clip.visual_projection)(pixels).shape
    torch.Size([1, 512])
    """

    def __init__(self, encoder: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projection = encoder, projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(1, 3, H, W) -> (1, E)."""
        embedding: Tensor = self.projection(self.encoder(pixel_values=pixel_values).pooler_output)
        return embedding


def encoders(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """Packages ``text`` and ``image``; embeddings are as they come, so that a cosine compares them."""
    model, settings = checkpoint.model, checkpoint.config.text_config
    shape = (1, checkpoint.length(settings.max_position_embeddings, settings.max_position_embeddings))
    text = Recipe(
        name="text",
        module=TextEmbedding(model.text_model, model.text_projection),  # type: ignore[arg-type]
        inputs={
            "input_ids": TensorSpec(shape, "int32", bounds=(0, settings.vocab_size - 1)),
            "attention_mask": TensorSpec(shape, "int32", values=(0, 1)),
        },
        outputs=("embedding",),
        target=checkpoint.target,
    )
    normalisation, height, width = image_settings(replace(checkpoint, model=model.vision_model))  # type: ignore[arg-type]
    image = Recipe(
        name="image",
        module=ImageEmbedding(model.vision_model, model.visual_projection),  # type: ignore[arg-type]
        inputs={"pixel_values": ImageSpec.of(height, width, **normalisation)},
        outputs=("embedding",),
        target=checkpoint.target,
    )
    return [text, image]


ADAPTERS = (
    Adapter(
        task="text-and-image-embedding",
        auto_class="AutoModel",
        model_types=("clip",),
        recipes=encoders,
        heads=("Model",),
        sizes=("--length", "--image-size"),
    ),
)
