"""Extreme inputs, which random draws seldom reach: magnitudes, padding patterns, ids.

A softplus that vanishes above 10.4 or a mask that lets a padded place through is not seen with inputs from 0 to 1 and full masks.
The reference itself may overflow or give nothing but NaN on some of these (a softmax over a wholly masked row): such samples are left out,
and the report says so.
"""

from collections.abc import Callable, Iterator

import numpy as np

from coreflow.models.arrays import Array, Arrays, Draw
from coreflow.models.draws import is_mask, mask_of, token_axis
from coreflow.models.spec import TensorSpec
from coreflow.validate.inputs.samples import Sample, Specs

# Of the drawn values. Small ones end in fp16's subnormal range, large ones come near to its end once they are squared.
FACTORS = (0.0, 1e-4, 1e-2, 10.0, 100.0)
MAGNITUDES = (1e3, 1e4)  # of the largest element of an input without bounds; fp16 ends at 65504
SPIKE = 1e4
_SEED = 0


def sweep_samples(specs: Specs, draw: Draw) -> list[Sample]:
    """Extreme samples for inputs like ``specs``: always the same ones, each within the bounds and no two alike.

    Inputs that a sweep does not vary are those of ``draw`` for seed 0; an input that is varied keeps its dtype and shape.
    """
    drawn = {name: np.asarray(array) for name, array in draw(_SEED).items()}
    plain = {name: drawn[name].astype(spec.dtype) for name, spec in specs.items()}
    samples: list[Sample] = []
    seen = {_content(plain)}
    for label, varied in _sweeps(specs, plain):
        inputs = {**plain, **varied}
        content = _content(inputs)
        if content not in seen:
            seen.add(content)
            samples.append(Sample(label=f"sweep: {label}", inputs=inputs, swept=True))
    return samples


def _sweeps(specs: Specs, drawn: Arrays) -> Iterator[tuple[str, dict[str, Array]]]:
    # What is drawn between its bounds is no mask but a quantity.
    masks = {name: spec for name, spec in specs.items() if is_mask(spec) and np.isin(drawn[name], _cut(np.array(spec.bounds), spec)).all()}
    # Inputs of a few values only go to their bounds.
    others = {name: spec for name, spec in specs.items() if name not in masks and spec.values is None}
    ids = {name: spec for name, spec in others.items() if spec.dtype == "int32" and spec.bounds is not None}
    floats = {name: spec for name, spec in others.items() if spec.dtype != "int32"}
    # Of two that are alike the first is kept: the one whose label says more.
    yield from _paddings(masks)
    yield from _extreme_ids(ids, drawn)
    yield from _ranges(specs, floats, drawn)


def _ranges(specs: Specs, floats: Specs, drawn: Arrays) -> Iterator[tuple[str, dict[str, Array]]]:
    bounded = {name: spec for name, spec in specs.items() if spec.bounds is not None}
    yield "inputs at their lower bounds", {name: _at_bound(spec, 0) for name, spec in bounded.items()}
    yield "inputs at their upper bounds", {name: _at_bound(spec, 1) for name, spec in bounded.items()}
    for factor in FACTORS:
        yield (
            f"{factor:g} times the drawn values",
            {name: _cut(drawn[name].astype(np.float64) * factor, spec) for name, spec in floats.items()},
        )
    free = {name: spec for name, spec in floats.items() if spec.bounds is None}
    for magnitude in MAGNITUDES:
        yield f"values up to {magnitude:g}", {name: _grown(drawn[name], spec, magnitude) for name, spec in free.items()}
    for name, spec in free.items():
        spiked = drawn[name].copy()
        spiked.flat[spiked.size // 2] = SPIKE
        yield f"one spike of {SPIKE:g} in {name}", {name: _cut(spiked, spec)}


def _paddings(masks: Specs) -> Iterator[tuple[str, dict[str, Array]]]:
    """Patterns along the axis of tokens, the same for all masks; each mask counts in its own length."""
    lengths: dict[str, Callable[[int], int]] = {
        "nothing masked": lambda length: length,
        "all masked": lambda _: 0,
        "1 token": lambda _: 1,
        "2 tokens": lambda length: min(2, length),
        "half of the tokens": lambda length: length // 2,
        "all tokens but one": lambda length: length - 1,
    }
    for label, kept in lengths.items():
        yield f"masks: {label}", {name: mask_of(spec, _places(spec) < kept(_places(spec).size)) for name, spec in masks.items()}
    yield "masks: every other token", {name: mask_of(spec, _places(spec) % 2 == 0) for name, spec in masks.items()}


def _places(spec: TensorSpec) -> Array:
    """The places 0 to L - 1 along the axis of a mask's tokens."""
    axis = token_axis(spec.shape)
    return np.arange(spec.shape[axis]).reshape(-1, *(1,) * (len(spec.shape) - 1 - axis))


def _extreme_ids(ids: Specs, drawn: Arrays) -> Iterator[tuple[str, dict[str, Array]]]:
    yield "ids: all the lowest", {name: _at_bound(spec, 0) for name, spec in ids.items()}
    yield "ids: all the highest", {name: _at_bound(spec, 1) for name, spec in ids.items()}
    yield "ids: one, repeated", {name: np.full(spec.shape, drawn[name].flat[0], np.int32) for name, spec in ids.items()}
    random = np.random.default_rng(_SEED)
    yield (
        "ids: the drawn ones in another order",
        {name: random.permutation(drawn[name].ravel()).reshape(spec.shape) for name, spec in ids.items()},
    )
    yield "ids: all different", {name: _different(spec, random) for name, spec in ids.items()}


def _at_bound(spec: TensorSpec, side: int) -> Array:
    assert spec.bounds is not None
    return _cut(np.full(spec.shape, spec.bounds[side]), spec)


def _different(spec: TensorSpec, random: np.random.Generator) -> Array:
    """Ids without a repetition as long as the bounds have others."""
    low, high = (int(bound) for bound in spec.bounds or (0, 0))
    count = int(np.prod(spec.shape))
    known = high - low + 1
    picked = random.permutation(
        np.concatenate([random.choice(known, min(count - start, known), replace=False) for start in range(0, count, known)])
    )
    return (picked + low).astype(np.int32).reshape(spec.shape)


def _grown(drawn: Array, spec: TensorSpec, magnitude: float) -> Array:
    largest = float(np.abs(drawn).max(initial=0))
    return _cut(drawn.astype(np.float64) * (magnitude / largest), spec) if largest > 0 else np.full(spec.shape, magnitude, spec.dtype)


def _cut(values: Array, spec: TensorSpec) -> Array:
    """Within the bounds, and within what the dtype holds."""
    limits = np.iinfo(spec.dtype) if spec.dtype == "int32" else np.finfo(spec.dtype)
    low, high = spec.bounds or (-np.inf, np.inf)
    return np.clip(values.astype(np.float64), max(low, float(limits.min)), min(high, float(limits.max))).astype(spec.dtype)


def _content(inputs: Arrays) -> bytes:
    return b"".join(np.ascontiguousarray(array).tobytes() for array in inputs.values())
