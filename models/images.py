"""Pictures as inputs: what a package takes as an image, and what the module makes of its pixels. Loads no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from coreflow.models.errors import ConfigError
from coreflow.models.spec import Dtype, TensorSpec

Colour = Literal["RGB", "BGR", "GRAYSCALE"]
COLOURS: tuple[Colour, ...] = get_args(Colour)


@dataclass(frozen=True, slots=True)
class ImageSpec(TensorSpec):
    """An input that is a picture: pixels (1, C, H, W) from 0 to 255, of which the module sees ``pixel * scale + bias``, a channel each.

    >>> Recipe(..., inputs={"photo": ImageSpec.of(224, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))})
    >>> Recipe(..., inputs={"page": ImageSpec.of(1024, 768, "GRAYSCALE", scale=1 / 127.5, bias=-1)})

    The scale and the bias are part of the program, in its precision: a caller passes the picture as it is. ``colour`` is the order of
    the channels that the module takes.
    """

    dtype: Dtype = "float32"  # in which the program gets the pixels, whatever its precision
    colour: Colour = "RGB"
    scale: tuple[float, ...] = (1.0,)
    bias: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bounds", (0.0, 255.0))
        TensorSpec.__post_init__(self)
        if self.colour not in COLOURS:
            raise ConfigError(f"colour {self.colour!r}; choose one of {', '.join(COLOURS)}", expected=COLOURS)
        channels = 1 if self.colour == "GRAYSCALE" else 3
        if len(self.shape) != 4 or self.shape[:2] != (1, channels):
            raise ConfigError(f"shape {self.shape} of a {self.colour} image; (1, {channels}, H, W) is right")
        for name in ("scale", "bias"):
            numbers = tuple(map(float, getattr(self, name)))
            if len(numbers) not in (1, channels):
                raise ConfigError(f"{name} {numbers} of a {self.colour} image; one number or {channels}, one a channel, are right")
            object.__setattr__(self, name, numbers)

    @classmethod
    def of(
        cls,
        height: int,
        width: int,
        colour: Colour = "RGB",
        *,
        scale: float | Sequence[float] = 1.0,
        bias: float | Sequence[float] = 0.0,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> Self:
        """A picture of ``height`` x ``width`` pixels, normalised by ``scale`` and ``bias``, or by ``mean`` and ``std`` of pixels / 255.

        The latter is what torchvision and transformers do: (pixel / 255 - mean) / std.
        """
        if mean is not None or std is not None:
            if (scale, bias) != (1.0, 0.0):
                raise ConfigError("scale and bias beside mean and std; give the one pair or the other")
            means, stds = _numbers(0.0 if mean is None else mean), _numbers(1.0 if std is None else std)
            if min(stds, default=0.0) <= 0:
                raise ConfigError(f"std {stds}; numbers above 0 are right")
            count = max(len(means), len(stds))
            means, stds = means * (count // len(means)), stds * (count // len(stds))
            scale, bias = tuple(1 / (255 * s) for s in stds), tuple(-m / s for m, s in zip(means, stds, strict=False))
        channels = 1 if colour == "GRAYSCALE" else 3
        return cls((1, channels, height, width), colour=colour, scale=_numbers(scale), bias=_numbers(bias))

    @property
    def is_normalised(self) -> bool:
        """Whether the module sees anything but the pixels as they are."""
        return set(self.scale) != {1.0} or set(self.bias) != {0.0}

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        plain = {"shape": list(self.shape), "dtype": self.dtype}
        return {**plain, "image": {"colour": self.colour, "scale": list(self.scale), "bias": list(self.bias)}}


def spec_from_json(plain: Mapping[str, Any]) -> TensorSpec:
    """Inverse of ``to_json`` of a tensor or of an image; unknown keys are refused."""
    if "image" not in plain:
        return TensorSpec.from_json(plain)
    if unknown := (set(plain) - {"shape", "dtype", "image"}) | (set(plain["image"]) - {"colour", "scale", "bias"}):
        raise ConfigError(f"image spec has unknown keys {sorted(unknown)}")
    image = plain["image"]
    return ImageSpec(tuple(plain["shape"]), plain["dtype"], colour=image["colour"], scale=tuple(image["scale"]), bias=tuple(image["bias"]))


def _numbers(given: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(map(float, given)) if isinstance(given, Sequence) else (float(given),)
