"""Draws of inputs like those in use: prefixes of tokens for masks, whole numbers and floats within their bounds. Loads no torch."""

from collections.abc import Mapping

import numpy as np

from coreflow.models.arrays import Array
from coreflow.models.errors import ConfigError
from coreflow.models.images import ImageSpec
from coreflow.models.spec import TensorSpec

# The upper bound of a mask that is added to the scores is 0; what lies below -100 is no masked place of any such mask.
_ADDITIVE = -100.0


def draw_inputs(specs: Mapping[str, TensorSpec], seed: int) -> dict[str, Array]:
    """One tensor for every spec, the same for the same seed."""
    random, drawn = np.random.default_rng(seed), {}
    for name, spec in specs.items():
        try:
            drawn[name] = draw_tensor(spec, random)
        except ConfigError as error:
            raise ConfigError(f"input {name!r}: {error}") from error
    return drawn


def draw_tensor(spec: TensorSpec, random: np.random.Generator) -> Array:
    """Pixels, a mask (``is_mask``), some of the ``values``, or numbers within the bounds; without bounds standard normal floats.

    Integers without bounds are refused.
    """
    if isinstance(spec, ImageSpec):
        return random.integers(0, 256, spec.shape).astype(spec.dtype)
    if is_mask(spec):
        return mask_of(spec, _draw_places(spec.shape, random))
    if spec.values is not None:
        return random.choice(spec.values, spec.shape).astype(spec.dtype)
    if spec.dtype == "int32":
        if spec.bounds is None:
            raise ConfigError(f"int32 of shape {spec.shape} without bounds; give TensorSpec(..., bounds=(0, vocabulary - 1))")
        return random.integers(int(spec.bounds[0]), int(spec.bounds[1]) + 1, spec.shape).astype(np.int32)
    if spec.bounds is None:
        return random.standard_normal(spec.shape).astype(spec.dtype)
    return random.uniform(*spec.bounds, spec.shape).astype(spec.dtype)


def is_mask(spec: TensorSpec) -> bool:
    """Whether a tensor like this tells tokens from padding.

    Its ``values``, or else its bounds, are 0 and 1, or a large negative number and 0, which is added to scores. One element is a flag.
    Floats from 0 to 1 may be a quantity as well, a picture or a spectrogram: without ``values`` they are a mask in shapes such as (L),
    (B, L) and (B, 1, 1, L), and a quantity where two axes behind the first are longer than 1.
    """
    if spec.bounds is None or all(extent == 1 for extent in spec.shape):
        return False
    if spec.values is not None and len(spec.values) != 2:
        return False
    low, high = spec.bounds
    if low <= _ADDITIVE and high == 0:
        return True
    is_told = spec.values is not None or spec.dtype == "int32"
    return (low, high) == (0, 1) and (is_told or sum(extent > 1 for extent in spec.shape[1:]) <= 1)


def token_axis(shape: tuple[int, ...]) -> int:
    """The axis along which a mask tells tokens from padding: the last one that is longer than 1."""
    return max((axis for axis, extent in enumerate(shape) if extent > 1), default=len(shape) - 1)


def mask_of(spec: TensorSpec, places: Array) -> Array:
    """The mask with its upper bound where ``places`` (bools, broadcast to its shape) holds, and its lower one elsewhere."""
    low, high = spec.bounds or (0.0, 1.0)
    least = float(np.iinfo(np.int32).min if spec.dtype == "int32" else np.finfo(spec.dtype).min)
    return np.broadcast_to(np.where(places, high, max(low, least)), spec.shape).astype(spec.dtype)


def _draw_places(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """Places with tokens: a prefix of every row, with one token at least and one place of padding.

    So no row is empty, whichever of the two a module ignores. In a square (..., L, L) no row sees a place behind its own, as in causal
    attention.
    """
    axis = token_axis(shape)
    is_square = axis > 0 and shape[axis - 1] == shape[axis]
    rows = tuple(1 if place == axis or (is_square and place == axis - 1) else extent for place, extent in enumerate(shape))
    places = np.arange(shape[axis]).reshape(-1, *(1,) * (len(shape) - 1 - axis))
    kept = places < random.integers(1, shape[axis], rows)
    return kept & (places <= places[:, None]) if is_square else kept
