"""Image encoders and classifiers: ViT, ResNet, MobileNet and their kin, from pictures as they are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coreflow.export.recipe import Recipe
from coreflow.export.sources.adapters.adapter import Adapter, Checkpoint
from coreflow.models.errors import ConfigError
from coreflow.models.images import ImageSpec

TYPES = (  # those that `python -m benchmarks.architectures` exports
    *("vit", "deit", "beit", "resnet", "regnet", "convnext", "convnextv2", "mobilenet_v1", "mobilenet_v2", "poolformer", "swin"),
)
_CENTRED = 0.5  # mean and deviation where a folder does not say: -1 to 1, transformers' own default


class Probabilities(nn.Module):
    """A picture (1, C, H, W) to the probabilities of the classes (1, N).

    >>> Probabilities(vit)(pixels).sum()
    tensor(1.)
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(1, C, H, W) -> (1, N)."""
        return torch.softmax(self.model(pixel_values=pixel_values).logits, -1)


def classifier(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """Probabilities with their labels."""
    config = checkpoint.config
    labels = tuple(str(config.id2label[place]) for place in range(config.num_labels))
    if len(set(labels)) < len(labels):  # as of ImageNet's two cranes
        labels = tuple(f"{label} ({place})" if labels.count(label) > 1 else label for place, label in enumerate(labels))
    return [_recipe(checkpoint, Probabilities(checkpoint.model), "probabilities", labels=labels)]


def hidden_states(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """The encoder itself."""
    return [_recipe(checkpoint, checkpoint.model, "last_hidden_state")]


def _recipe(checkpoint: Checkpoint, module: nn.Module, output: str, **further: Any) -> Recipe:
    settings, height, width = image_settings(checkpoint)
    return Recipe(
        name=checkpoint.name,
        module=module,
        inputs={"pixel_values": ImageSpec.of(height, width, **settings)},
        outputs=(output,),
        target=checkpoint.target,
        **further,
    )


def image_settings(checkpoint: Checkpoint) -> tuple[dict[str, Any], int, int]:
    """Normalisation of ``preprocessor_config.json`` as the keywords of ``ImageSpec.of``, and height and width of the pictures."""
    settings, config = checkpoint.settings("preprocessor_config.json"), checkpoint.config
    height, width = _size(checkpoint, settings)
    factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    channels = getattr(config, "num_channels", 3)
    if channels not in (1, 3):
        raise ConfigError(f"{checkpoint.folder.name} takes {channels} channels; pictures have 1 or 3")
    if not settings.get("do_normalize", True):
        return {"scale": factor, "colour": _colour(channels, settings)}, height, width
    means, deviations = (_listed(settings.get(key, _CENTRED), channels) for key in ("image_mean", "image_std"))
    scale = tuple(factor / deviation for deviation in deviations)
    bias = tuple(-mean / deviation for mean, deviation in zip(means, deviations, strict=True))
    return {"scale": scale, "bias": bias, "colour": _colour(channels, settings)}, height, width


def _colour(channels: int, settings: dict[str, Any]) -> str:
    return "GRAYSCALE" if channels == 1 else "BGR" if settings.get("do_flip_channel_order") else "RGB"


def _listed(numbers: Any, channels: int) -> tuple[float, ...]:
    return tuple(map(float, numbers)) if isinstance(numbers, list | tuple) else (float(numbers),) * channels


def _size(checkpoint: Checkpoint, settings: dict[str, Any]) -> tuple[int, int]:
    """Height and width: as asked for, of the crop, of the size, of the model."""
    asked = checkpoint.sizes.image_size
    if asked is not None:
        return asked, asked
    for size in (settings.get("crop_size") if settings.get("do_center_crop") else None, settings.get("size")):
        if isinstance(size, dict) and {"height", "width"} <= size.keys():
            return int(size["height"]), int(size["width"])
        if isinstance(size, int):
            return size, size
        if isinstance(size, dict) and "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
    size = getattr(checkpoint.config, "image_size", None)
    if size is None:
        raise ConfigError(f"{checkpoint.folder.name} does not say the size of its pictures; give --image-size")
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


ADAPTERS = (
    Adapter(
        task="image-classification",
        auto_class="AutoModelForImageClassification",
        model_types=TYPES,
        recipes=classifier,
        heads=("ForImageClassification", "ForImageClassificationWithTeacher"),
        sizes=("--image-size",),
    ),
    Adapter(
        task="image-feature-extraction",
        auto_class="AutoModel",
        model_types=TYPES,
        recipes=hidden_states,
        heads=("Model",),
        sizes=("--image-size",),
        unused=("pooler.",),
    ),
)
