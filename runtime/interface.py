"""The inputs, outputs and states of a program as ``TensorSpec``s, and the check of every input before a backend sees it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from coreflow.export.package.graph import Feature, Graph, Interface, Program
from coreflow.models.arrays import Array, Bools
from coreflow.models.errors import BundleError, ConfigError, InputError, UnsupportedError
from coreflow.models.images import COLOURS, ImageSpec
from coreflow.models.spec import BOUNDS_KEY, DTYPES, VALUES_KEY, Dtype, TensorSpec

# torch computes fewer elements than this on the calling thread alone.
_ONE_THREAD = 2**15 - 1


def input_specs(program: Program, graph: Graph, interface: Interface) -> dict[str, TensorSpec]:
    """The inputs of a function with the bounds and values that the package records; an image is (1, C, H, W) from 0 to 255."""
    bounds, values = (_recorded(program, graph.name, key) for key in (BOUNDS_KEY, VALUES_KEY))
    declared = {value.name: value for value in graph.inputs}
    specs = {}
    for feature in interface.inputs:
        if feature.kind == "image":
            shape = (1, 3 if feature.colour in ("RGB", "BGR") else 1, *feature.shape)
            dtype = declared[feature.name].dtype
            specs[feature.name] = (
                ImageSpec(shape, dtype, colour=feature.colour)
                if feature.colour in COLOURS and dtype in DTYPES
                else _spec(program, replace(feature, dtype=dtype), shape)
            )
        elif feature.kind == "array":
            specs[feature.name] = _spec(program, feature, feature.shape, bounds.get(feature.name), values.get(feature.name))
        else:
            raise UnsupportedError(
                f"{program.path.name}: input {feature.name!r} is of kind {feature.kind}; arrays and images can be passed"
            )
    return specs


def output_specs(program: Program, graph: Graph, interface: Interface) -> dict[str, TensorSpec]:
    """The array outputs of a function; an extent that is unknown before a prediction is given as 1.

    A classifier's label and probabilities, and images, are predicted but have no spec: they are not arrays.
    """
    declared = {value.name: value for value in graph.outputs}
    specs = {}
    for feature in interface.outputs:
        if feature.kind != "array":
            continue
        known = declared[feature.name].shape
        shape = feature.shape if known is None else tuple(extent or 1 for extent in known)
        specs[feature.name] = _spec(program, feature, shape)
    return specs


def state_specs(program: Program, interface: Interface) -> dict[str, TensorSpec]:
    """The states of a function."""
    return {feature.name: _spec(program, feature, feature.shape, None) for feature in interface.states}


def program_metadata(program: Program) -> dict[str, Any]:
    """Format, versions, functions and the descriptive entries of a package, as plain data."""
    meta = program.metadata
    return {
        "format": "mlProgram",
        "spec_version": program.spec_version,
        "functions": list(program.functions),
        "description": meta.description,
        "author": meta.author,
        "licence": meta.licence,
        "version": meta.version,
        "user": dict(meta.user),
    }


def check_inputs(inputs: Mapping[str, Any], specs: Mapping[str, TensorSpec], interface: Interface) -> dict[str, Array]:
    """The inputs as arrays of the declared dtypes; ``InputError`` for what the program does not take.

    An array may be the caller's own: do not write to it.

    Names, shapes, dtypes (a cast must lose nothing but float precision), NaN and inf, and bounds are checked.
    """
    features = {feature.name: feature for feature in interface.inputs}
    unexpected = [name for name in inputs if name not in specs]
    missing = [name for name in specs if name not in inputs and not features[name].optional]
    if unexpected or missing:
        problem = "; ".join(
            f"{what} {', '.join(map(repr, names))}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names
        )
        raise InputError(f"inputs: {problem}. The inputs are {', '.join(f'{name} {describe(spec)}' for name, spec in specs.items())}")
    return {name: _check_input(name, _pixels(name, value, features[name]), specs[name], features[name]) for name, value in inputs.items()}


def check_state(name: str, value: npt.ArrayLike, specs: Mapping[str, TensorSpec]) -> Array:
    """An array of the state's dtype; ``InputError`` for another name, shape, or values that are no numbers. It may be the caller's own."""
    if name not in specs:
        raise InputError(f"no state {name!r}; there are {', '.join(specs)}")
    spec, array = specs[name], np.asarray(value)
    if array.shape != spec.shape or array.dtype.kind not in "fiub":
        raise InputError(f"state {name!r}: expected {describe(spec)}, got {array.dtype} {list(array.shape)}")
    return _check_floats(name, array, spec) if spec.dtype != "int32" else _check_integers(name, array)


def describe(spec: TensorSpec) -> str:
    """``float16 [1, 128]``, with the values or bounds if there are any."""
    if spec.values is not None:
        return f"{spec.dtype} {list(spec.shape)} of {_listed(spec.values)}"
    bounds = "" if spec.bounds is None else f" in {spec.bounds[0]:g}..{spec.bounds[1]:g}"
    return f"{spec.dtype} {list(spec.shape)}{bounds}"


def _listed(values: Sequence[float]) -> str:
    """``0, 1 or 2``."""
    texts = [f"{value:g}" for value in values]
    return " or ".join(part for part in (", ".join(texts[:-1]), texts[-1]) if part)


def _spec(
    program: Program,
    feature: Feature,
    shape: tuple[int, ...],
    bounds: Sequence[float] | None = None,
    values: Sequence[float] | None = None,
) -> TensorSpec:
    # A caller of Core ML may pass doubles where "double" is declared; the program itself computes in float32 at most.
    dtype: Dtype = "float32" if feature.dtype == "float64" else feature.dtype  # type: ignore[assignment]
    if dtype not in DTYPES:
        raise UnsupportedError(
            f"{program.path.name}: {feature.name!r} has element type {feature.dtype or 'unknown'}; {', '.join(DTYPES)} work"
        )
    try:
        if values is not None:
            return TensorSpec(shape, dtype, values=tuple(values))
        return TensorSpec(shape, dtype, None if bounds is None else (bounds[0], bounds[1]))
    except ConfigError as error:
        raise BundleError(f"{program.path.name}: {feature.name!r}: {error}") from error


def _recorded(program: Program, function: str, key: str) -> dict[str, tuple[float, ...]]:
    """The numbers that a package records of the inputs of a function: their bounds, or their values."""
    text = program.recorded(key, function)
    if not text:
        return {}
    try:
        recorded = {str(name): tuple(map(float, numbers)) for name, numbers in json.loads(text).items()}
        if key == BOUNDS_KEY and any(len(numbers) != 2 for numbers in recorded.values()):
            raise ValueError("bounds are two numbers")
    except (ValueError, TypeError, AttributeError) as error:
        form = "[lowest, highest]" if key == BOUNDS_KEY else "[value, ...]"
        raise BundleError(f"{program.path.name}: metadata {key!r} is not {{input: {form}}} ({error})") from error
    return recorded


def _check_input(name: str, value: Array, spec: TensorSpec, feature: Feature) -> Array:
    if not _fits(value.shape, feature):
        raise InputError(f"input {name!r}: expected shape {_shapes(feature)}, got {list(value.shape)}")
    if value.dtype.kind not in "fiub":
        raise InputError(f"input {name!r}: expected {spec.dtype}, got {value.dtype}")
    converted = _check_integers(name, value) if spec.dtype == "int32" else _check_floats(name, value, spec)
    if problem := wrong_value(name, value, spec):
        raise InputError(problem)
    return converted


def wrong_value(name: str, value: Array, spec: TensorSpec) -> str:
    """The first element of the input ``name`` that is outside its bounds or none of its values, in words; empty where there is none."""
    if spec.bounds is None or not value.size:
        return ""
    low, high = spec.bounds
    if spec.values is None:
        if low <= float(value.min()) <= float(value.max()) <= high:
            return ""
        values = value.astype(np.float64)  # a bound may be one that fp16 does not hold
        is_wrong, right = (values < low) | (values > high), f"{low:g} to {high:g}"
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            is_wrong, right = ~np.isin(value.astype(spec.dtype), np.array(spec.values, spec.dtype)), _listed(spec.values)
        if not is_wrong.any():
            return ""
    return f"input {name!r} holds {first_of(value, is_wrong)}; {right} is right"


def first_of(value: Array, is_wrong: Bools) -> str:
    """The first of these elements, and its place: ``7 at [0, 3]``."""
    place = np.unravel_index(int(np.argmax(is_wrong)), value.shape)
    return f"{value[place].item():g}" + (f" at {[int(axis) for axis in place]}" if value.ndim else "")


def _check_integers(name: str, value: Array) -> Array:
    if value.dtype.kind == "f":
        raise InputError(f"input {name!r}: expected int32, got {value.dtype}")
    if value.dtype == np.int32:
        return value
    limits = np.iinfo(np.int32)
    if value.size and (int(value.min()) < limits.min or int(value.max()) > limits.max):
        raise InputError(f"input {name!r} holds {int(value.max())} or {int(value.min())}; int32 goes from {limits.min} to {limits.max}")
    return value.astype(np.int32)


def _check_floats(name: str, value: Array, spec: TensorSpec) -> Array:
    converted = to_floats(value, np.dtype(spec.dtype))
    if not _all_finite(converted):
        limit = float(np.finfo(spec.dtype).max)
        raise InputError(f"input {name!r} holds {first_of(value, ~np.isfinite(converted))}; a number from {-limit:g} to {limit:g} is right")
    if value.dtype.kind != "f" and not np.array_equal(converted.astype(np.float64), value.astype(np.float64)):
        raise InputError(f"input {name!r} has dtype {value.dtype} with values that {spec.dtype} does not hold exactly")
    return converted


def to_floats(value: Array, dtype: np.dtype[Any]) -> Array:
    """``value`` in the floating ``dtype``, itself where it has it; values beyond its range become inf.

    torch converts fp16 15 times as fast as numpy. It does so on one thread: its threads and onnxruntime's spin while they wait, and would
    delay each other by milliseconds.
    """
    if value.dtype == dtype:
        return value
    if value.dtype.char + dtype.char not in ("ef", "fe") or not value.dtype.isnative:  # float16 and float32
        with np.errstate(over="ignore"):
            return value.astype(dtype)
    source, result = np.ascontiguousarray(value), np.empty(value.shape, dtype)
    if not source.flags.writeable:  # of which torch would warn
        source = source.copy()
    target, elements = torch.from_numpy(result).view(-1), torch.from_numpy(source).reshape(-1)
    for start in range(0, value.size, _ONE_THREAD):
        target[start : start + _ONE_THREAD].copy_(elements[start : start + _ONE_THREAD])
    return result


def _all_finite(array: Array) -> bool:
    """Whether no element is inf or NaN: those are the largest bit patterns of either sign. Two passes that store nothing."""
    if not array.size:
        return True
    return all(bool(array.view(bits).max() < infinity) for bits, infinity in _infinities(array.dtype))


@cache
def _infinities(dtype: np.dtype[Any]) -> tuple[tuple[np.dtype[Any], np.integer[Any]], ...]:
    """The patterns of inf, read as a signed integer, and of -inf, read as an unsigned one."""
    signed, unsigned = np.dtype(f"i{dtype.itemsize}"), np.dtype(f"u{dtype.itemsize}")
    return (signed, np.array([np.inf], dtype).view(signed)[0]), (unsigned, np.array([-np.inf], dtype).view(unsigned)[0])


def _pixels(name: str, value: Any, feature: Feature) -> Array:
    """Anything array-like as an array; a picture (PIL) as (1, C, H, W) in the colours that the program declares."""
    if feature.kind != "image" or not hasattr(value, "convert"):
        return np.asarray(value)
    mode = {"GRAYSCALE": "L", "GRAYSCALE_FLOAT16": "F"}.get(feature.colour, "RGB")
    if mode == "RGB" and value.mode not in ("RGB", "RGBA", "L"):
        raise InputError(f"input {name!r} is a picture of mode {value.mode}; RGB is right")
    pixels = np.asarray(value.convert(mode))
    if mode != "RGB":
        return pixels[None, None]
    channels = pixels.transpose(2, 0, 1)[None]
    return channels[:, ::-1] if feature.colour == "BGR" else channels


def as_picture(pixels: Array, feature: Feature) -> Any:
    """The picture (PIL) that (1, C, H, W) shows, rounded and cut to what a pixel holds."""
    from PIL import Image

    if feature.colour == "GRAYSCALE_FLOAT16":
        return Image.fromarray(pixels[0, 0].astype(np.float32))
    whole = np.clip(np.rint(pixels[0]), 0, 255).astype(np.uint8)
    if feature.colour == "GRAYSCALE":
        return Image.fromarray(whole[0])
    return Image.fromarray(np.ascontiguousarray((whole[::-1] if feature.colour == "BGR" else whole).transpose(1, 2, 0)))


def _fits(shape: tuple[int, ...], feature: Feature) -> bool:
    if feature.kind == "image":
        channels = 3 if feature.colour in ("RGB", "BGR") else 1
        return shape[:2] == (1, channels) and _fits(shape[2:], replace(feature, kind="array"))
    if shape == feature.shape or shape in feature.enumerated:
        return True
    return len(shape) == len(feature.ranges) > 0 and all(
        low <= extent and (high is None or extent <= high) for extent, (low, high) in zip(shape, feature.ranges, strict=True)
    )


def _shapes(feature: Feature) -> str:
    if feature.ranges:
        return "[" + ", ".join(str(low) if low == high else f"{low}..{high or ''}" for low, high in feature.ranges) + "]"
    return " or ".join(str(list(shape)) for shape in dict.fromkeys((feature.shape, *feature.enumerated)))
