"""What a package declares of itself: the types of its inputs, outputs and states, and its descriptive entries."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from coreflow.export.package.graph import Feature, Interface
from coreflow.export.package.manifest import StageEntry
from coreflow.export.package.mlpackage import read_message
from coreflow.export.shapes import Range, Shapes
from coreflow.models.errors import ExportError
from coreflow.models.images import ImageSpec
from coreflow.models.spec import BOUNDS_KEY, RECIPE_KEY, VALUES_KEY, Dtype, TensorSpec

LABEL, PROBABILITIES = "classLabel", "classLabel_probs"  # outputs of a classifier: the converter derives the second from the first
_FIELDS = {"author": "author", "licence": "license", "license": "license", "version": "version"}  # of a model, by keys of a recipe


def input_types(ct: Any, entry: StageEntry) -> list[Any]:
    """The converter's type of every input, in their order."""
    symbols: dict[str, Any] = {}
    types = []
    for name, spec in entry.inputs.items():
        shape = _shape(ct, spec, _shapes_of(entry).get(name), symbols)
        if isinstance(spec, ImageSpec):
            types.append(ct.ImageType(name=name, shape=shape, color_layout=getattr(ct.colorlayout, spec.colour)))
        else:
            types.append(ct.TensorType(name=name, shape=shape, dtype=_dtype(spec, entry)))
    return types


def output_types(ct: Any, entry: StageEntry) -> list[Any]:
    """The converter's type of every output, in their order."""
    return [ct.TensorType(name=name, dtype=np.dtype(spec.dtype).type) for name, spec in entry.outputs.items()]


def state_types(ct: Any, entry: StageEntry, buffers: Mapping[str, Tensor], prefix: str) -> list[Any] | None:
    """The converter's type of every state, in fp16, the only one that Core ML keeps; None without states."""
    shapes = {f"{prefix}{name}": tuple(buffers[f"{prefix}{name}"].shape) for name in entry.recipe.get("states", ())}
    return [ct.StateType(ct.TensorType(shape=shape, dtype=np.float16), name) for name, shape in shapes.items()] or None


def rename_states(package: Path, entry: StageEntry, prefix: str) -> None:
    """Give the states of a saved package the names of the recipe, where those in the program have a prefix."""
    names = {f"{prefix}{name}".replace(".", "_"): name.replace(".", "_") for name in entry.recipe.get("states", ()) if prefix}
    if not names:
        return
    message, file = read_message(package)
    for feature in message.description.state:
        feature.name = names[feature.name]
    for function in message.mlProgram.functions.values():
        for value in function.inputs:
            value.name = names.get(value.name, value.name)
        for block in function.block_specializations.values():
            _rename(block, names)
    file.write_bytes(message.SerializeToString(deterministic=True))


def _rename(block: Any, names: Mapping[str, str]) -> None:
    """Other names for values that the ops of a protobuf ``block`` read."""
    for operation in block.operations:
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name":
                    binding.name = names.get(binding.name, binding.name)
        for inner in operation.blocks:
            _rename(inner, names)


def classifier_type(ct: Any, entry: StageEntry) -> Any:
    """The converter's description of a classifier by its first output; None without labels."""
    labels = list(entry.recipe.get("labels", ()))
    return None if not labels else ct.ClassifierConfig(labels, LABEL, next(iter(entry.outputs)))


def describe(model: Any, entry: StageEntry) -> None:
    """Write the descriptive entries of a package, and what we read back of it: bounds, values, and the recipe."""
    recipe, user = entry.recipe, model.user_defined_metadata
    model.short_description = recipe["description"]
    for key, value in recipe.get("metadata", {}).items():
        if key in _FIELDS:
            setattr(model, _FIELDS[key], value)
        else:
            user[key] = value
    arrays = {name: spec for name, spec in entry.inputs.items() if not isinstance(spec, ImageSpec)}  # a pixel's bounds are known
    user[BOUNDS_KEY] = json.dumps({name: list(spec.bounds) for name, spec in arrays.items() if spec.bounds is not None})
    if values := {name: list(spec.values) for name, spec in arrays.items() if spec.values is not None}:
        user[VALUES_KEY] = json.dumps(values)
    origin = {key: recipe[key] for key in ("name", "target", "precision", "weights")}
    user[RECIPE_KEY] = json.dumps(origin | {"fingerprint": entry.fingerprint})


def check_interface(interface: Interface, entry: StageEntry) -> None:
    """The converter renames, drops and retypes without a word: what it declares must be what the recipe says, else ``ExportError``."""
    shapes, labels = _shapes_of(entry), list(entry.recipe.get("labels", ()))
    asked = {name: _declaration(spec, shapes.get(name), entry) for name, spec in entry.inputs.items()}
    declared = {feature.name: (feature.shape, feature.dtype or feature.colour, _others(feature)) for feature in interface.inputs}
    _compare(entry, "inputs", declared, asked)
    named = dict(list(entry.outputs.items())[bool(labels) :])
    # Output shapes are not always declared; names are.
    outputs = {feature.name: feature.shape for feature in interface.outputs if not (labels and feature.name in (LABEL, PROBABILITIES))}
    fixed = {name: spec.shape if outputs.get(name) else () for name, spec in named.items()}
    _compare(entry, "outputs", dict.fromkeys(outputs) if shapes else outputs, dict.fromkeys(fixed) if shapes else fixed)
    states = {name.replace(".", "_") for name in entry.recipe.get("states", ())}
    _compare(entry, "states", sorted(feature.name for feature in interface.states), sorted(states))


def _compare(entry: StageEntry, kind: str, declared: Any, asked: Any) -> None:
    if declared != asked:
        raise ExportError(f"{entry.recipe['name']}: the converter made the {kind} {declared}, the recipe says {asked}")


def _declaration(spec: TensorSpec, shapes: Shapes | None, entry: StageEntry) -> tuple[Any, ...]:
    """Shape, element type and other shapes of an input, as a package declares them: of an image height and width, and its colours."""
    if not isinstance(spec, ImageSpec):
        return spec.shape, _dtype_name(spec, entry), _others(shapes)
    enumerated = () if shapes is None else tuple(sorted(shape[2:] for shape in shapes.enumerated))
    return spec.shape[2:], spec.colour, (*enumerated, *(() if shapes is None else shapes.ranges[2:]))


def _others(shapes: Shapes | Feature | None) -> tuple[Any, ...]:
    """The shapes beside the default, in a form to compare."""
    if shapes is None:
        return ()
    return (*sorted(shapes.enumerated), *(shapes.ranges if any(low != high for low, high in shapes.ranges) else ()))


def _shapes_of(entry: StageEntry) -> dict[str, Shapes]:
    return {name: Shapes.from_json(plain) for name, plain in entry.recipe.get("shapes", {}).items()}


def _shape(ct: Any, spec: TensorSpec, shapes: Shapes | None, symbols: dict[str, Any]) -> Any:
    """``symbols`` are the ranges with a name, which all inputs share."""
    if shapes is None:
        return spec.shape
    if shapes.enumerated:
        return ct.EnumeratedShapes(shapes=list(shapes.enumerated), default=spec.shape)
    extents = []
    for default, item in zip(spec.shape, shapes.extents, strict=True):
        if not isinstance(item, Range):
            extents.append(item)
            continue
        dimension = symbols.get(item.name) or ct.RangeDim(item.low, item.high, default=default, symbol=item.name or None)
        if item.name:
            symbols[item.name] = dimension
        extents.append(dimension)
    return ct.Shape(shape=tuple(extents), default=spec.shape)


def _dtype(spec: TensorSpec, entry: StageEntry) -> Any:
    return np.dtype(_dtype_name(spec, entry)).type


def _dtype_name(spec: TensorSpec, entry: StageEntry) -> Dtype:
    """fp32 packages take fp32 where the recipe says fp16."""
    return "float32" if spec.dtype == "float16" and entry.recipe["precision"] == "fp32" else spec.dtype
