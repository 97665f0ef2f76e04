"""Reads a saved ``.mlpackage``: its protobuf message as a ``Program``, its files and its digest.

Read straight from the protobuf messages and the weight file, without coremltools' own loader: that one imports torch, builds a program it
can edit, and trusts the file. Here every fault of a file is a ``BundleError`` that names the package; constants are views of the
memory-mapped weights.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from coreflow.export.package.coremltools_quiet import model_proto
from coreflow.export.package.graph import Constant, Feature, Graph, Interface, Kind, Metadata, Op, Program, Shape, Value
from coreflow.export.package.weights import BLOB_DTYPES, WeightFile, packed_bytes, unpack
from coreflow.models.errors import BundleError

# The protobuf's DataType codes.
_DTYPES = {
    1: "bool", 2: "string", 10: "float16", 11: "float32", 12: "float64", 21: "int8", 22: "int16", 23: "int32", 24: "int64", 25: "int4",
    31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4", 36: "uint2", 37: "uint1", 38: "uint6", 39: "uint3",
}  # fmt: skip
_IMMEDIATE_NUMPY = {name: np.dtype(entry[2]) for name, entry in BLOB_DTYPES.items()} | {
    name: np.dtype(name) for name in ("bool", "float64", "int64", "uint64")
}
_ARRAY_DTYPES = {65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8", 65552: "float16"}
_COLOURS = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}
_OLDEST_SPEC, _NEWEST_SPEC = 6, 10
_MAX_ELEMENTS = 2**31  # 4 GiB of fp16 in one tensor: beyond what Core ML takes
_MAX_RANK = 32


def read_program(path: str | Path) -> Program:
    """The program in the package at ``path``; ``BundleError`` for a package that is missing, broken or no ML program."""
    package = Path(path)
    model, spec_path = read_message(package)
    return _Reader(package, spec_path).program(model)


def read_message(path: str | Path) -> tuple[Any, Path]:
    """The protobuf message of the ML program in the package at ``path``, and the file it lies in; its content is not checked yet."""
    package = Path(path)
    spec_path = _spec_path(package)
    try:
        content = spec_path.read_bytes()
    except OSError as error:
        raise BundleError(f"{package.name}: the model file cannot be read ({error.strerror or error})") from error
    model = model_proto().Model()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError; the class has moved between its versions
        raise BundleError(f"{package.name}: {spec_path.name} is no Core ML model, or was cut short ({error})") from error
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise BundleError(f"{package.name}: holds {f'a model of type {kind}' if kind else 'no model'}; only mlProgram can be read")
    if not _OLDEST_SPEC <= model.specificationVersion <= _NEWEST_SPEC:
        versions = f"{_OLDEST_SPEC} (iOS15) to {_NEWEST_SPEC} (iOS26)"
        raise BundleError(f"{package.name}: specification version {model.specificationVersion}; versions {versions} are known")
    return model, spec_path


def package_files(path: str | Path) -> tuple[Path, ...]:
    """Every file of the package, sorted; the model file is looked up first, so a broken package is refused."""
    package = Path(path)
    _spec_path(package)
    return tuple(sorted(file for file in package.rglob("*") if file.is_file()))


def package_digest(path: str | Path) -> str:
    """SHA-256 over the model file and the weights (not over ``Manifest.json``, whose identifiers change with every save)."""
    package, digest = Path(path), hashlib.sha256()
    for file in package_files(package):
        name = file.relative_to(package).as_posix()
        if name != "Manifest.json":
            digest.update(f"{name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def _spec_path(package: Path) -> Path:
    """The model file that the package's manifest names."""
    if not package.exists():
        raise BundleError(f"{package}: no such package")
    if package.suffix == ".mlmodelc":
        raise BundleError(f"{package.name}: a compiled model; give the .mlpackage it was compiled from")
    if not package.is_dir():
        raise BundleError(f"{package.name}: a package is a directory (.mlpackage); this is a file")
    try:
        manifest = json.loads((package / "Manifest.json").read_text(encoding="utf-8"))
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except FileNotFoundError:
        raise BundleError(f"{package.name}: has no Manifest.json; it is no package, or an incomplete one") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{package.name}: Manifest.json does not name a model ({type(error).__name__}: {error})") from error
    return _inside(package, package / "Data", entry)


def _inside(package: Path, folder: Path, entry: object) -> Path:
    """``folder/entry`` if that is a path within the package."""
    if not isinstance(entry, str) or not entry or "\0" in entry:
        raise BundleError(f"{package.name}: {entry!r} is no path of a file in the package")
    file = (folder / entry).resolve()
    if not file.is_relative_to(package.resolve()):
        raise BundleError(f"{package.name}: the path {entry!r} leaves the package")
    return file


class _Reader:
    """Turns the messages of one package into the dataclasses above."""

    def __init__(self, package: Path, spec_path: Path) -> None:
        self._package = package
        self._folder = spec_path.parent
        self._weight_files: dict[str, WeightFile] = {}

    def _error(self, text: str) -> BundleError:
        return BundleError(f"{self._package.name}: {text}", path=self._package)

    def program(self, model: Any) -> Program:
        functions = {name: self._function(name, model.mlProgram.functions[name]) for name in sorted(model.mlProgram.functions)}
        if not functions:
            raise self._error("the program has no function")
        description = model.description
        if description.functions:
            interfaces = {entry.name: self._interface(entry) for entry in description.functions}
            default = description.defaultFunctionName or next(iter(interfaces))
        else:
            default = "main" if "main" in functions else next(iter(functions))
            interfaces = {default: self._interface(description)}
        for name, graph in functions.items():
            self._check_names(name, graph, interfaces.get(name))
        if default not in functions:
            raise self._error(f"the default function {default!r} is missing; there are {', '.join(functions)}")
        meta = description.metadata
        metadata = Metadata(meta.shortDescription, meta.author, meta.license, meta.versionString, dict(meta.userDefined))
        return Program(self._package, model.specificationVersion, functions, interfaces, default, metadata)

    def _check_names(self, name: str, graph: Graph, interface: Interface | None) -> None:
        if interface is None:
            raise self._error(f"function {name!r} has no description of its inputs and outputs")
        pairs = (
            ("inputs", [v.name for v in graph.inputs if v.kind != "state"], [f.name for f in interface.inputs]),
            ("states", [v.name for v in graph.inputs if v.kind == "state"], [f.name for f in interface.states]),
            ("outputs", [v.name for v in graph.outputs], [f.name for f in interface.outputs]),
        )
        for what, program, described in pairs:
            if sorted(program) != sorted(described):
                raise self._error(f"function {name!r} has {what} {sorted(program)}, its description says {sorted(described)}")

    # -- what a caller sees ------------------------------------------------------------------------------------------------

    def _interface(self, description: Any) -> Interface:
        return Interface(
            inputs=tuple(self._feature(entry) for entry in description.input),
            outputs=tuple(self._feature(entry) for entry in description.output),
            states=tuple(self._feature(entry) for entry in description.state),
            predicted_feature=description.predictedFeatureName,
            predicted_probabilities=description.predictedProbabilitiesName,
        )

    def _feature(self, entry: Any) -> Feature:
        kind = entry.type.WhichOneof("Type")
        optional = bool(entry.type.isOptional)
        text = entry.shortDescription
        if kind in ("multiArrayType", "stateType"):
            array = entry.type.multiArrayType if kind == "multiArrayType" else entry.type.stateType.arrayType
            default = array.WhichOneof("defaultOptionalValue")
            flexibility = array.WhichOneof("ShapeFlexibility")
            shapes = array.enumeratedShapes.shapes if flexibility == "enumeratedShapes" else ()
            ranges = array.shapeRange.sizeRanges if flexibility == "shapeRange" else ()
            return Feature(
                name=entry.name,
                kind="array" if kind == "multiArrayType" else "state",
                dtype=_ARRAY_DTYPES.get(array.dataType, ""),
                shape=self._extents(entry.name, array.shape),
                optional=optional,
                default=float(getattr(array, default)) if default else None,
                enumerated=tuple(self._extents(entry.name, shape.shape) for shape in shapes),
                ranges=tuple((int(size.lowerBound), None if size.upperBound < 0 else int(size.upperBound)) for size in ranges),
                description=text,
            )
        if kind == "imageType":
            image = entry.type.imageType
            flexibility = image.WhichOneof("SizeFlexibility")
            sizes = image.enumeratedSizes.sizes if flexibility == "enumeratedSizes" else ()
            bounds = (image.imageSizeRange.heightRange, image.imageSizeRange.widthRange) if flexibility == "imageSizeRange" else ()
            return Feature(
                name=entry.name,
                kind="image",
                shape=self._extents(entry.name, (image.height, image.width)),
                optional=optional,
                enumerated=tuple((int(size.height), int(size.width)) for size in sizes),
                ranges=tuple((int(size.lowerBound), None if size.upperBound < 0 else int(size.upperBound)) for size in bounds),
                colour=_COLOURS.get(image.colorSpace, ""),
                description=text,
            )
        kinds: dict[str, Literal["dictionary", "sequence", "string", "int64", "double"]] = {
            "dictionaryType": "dictionary", "sequenceType": "sequence", "stringType": "string",
            "int64Type": "int64", "doubleType": "double",
        }  # fmt: skip
        if kind not in kinds:
            raise self._error(f"{entry.name!r} has no type in the model's description")
        return Feature(entry.name, kinds[kind], optional=optional, description=text)

    def _extents(self, name: str, shape: Any) -> tuple[int, ...]:
        extents = tuple(int(extent) for extent in shape)
        if any(extent < 0 for extent in extents) or len(extents) > _MAX_RANK or math.prod(extents) > _MAX_ELEMENTS:
            raise self._error(f"{name!r} is described with the impossible shape {list(extents)[:_MAX_RANK]}")
        return extents

    # -- the program -------------------------------------------------------------------------------------------------------

    def _function(self, name: str, function: Any) -> Graph:
        if function.opset not in function.block_specializations:
            opsets = ", ".join(sorted(function.block_specializations)) or "none"
            raise self._error(f"function {name!r} asks for opset {function.opset!r} and has {opsets}")
        return self._block(name, function.opset, function.block_specializations[function.opset], function.inputs, {})

    def _block(self, name: str, opset: str, block: Any, inputs: Any, outer: Mapping[str, Value]) -> Graph:
        """A block's graph. A name is known only after the op that gives it, so neither cycles nor dangling names get through."""
        entered = tuple(self._value(entry) for entry in inputs)
        scope = {**outer, **{value.name: value for value in entered}}
        ops: list[Op] = []
        constants: list[Value] = []
        for operation in block.operations:
            if operation.type == "const":
                made: tuple[Value, ...] = (self._const(operation),)
                constants.extend(made)
            else:
                ops.append(self._operation(operation, opset, scope))
                made = ops[-1].outputs
            for value in made:
                if not value.name:
                    raise self._error(f"function {name!r}: a result of {operation.type!r} has no name")
                scope[value.name] = value
        outputs = tuple(self._lookup(scope, output, f"the output of {name!r}") for output in block.outputs)
        return Graph(name, opset, entered, outputs, tuple(ops), tuple(constants))

    def _lookup(self, scope: Mapping[str, Value], name: str, user: str) -> Value:
        if name not in scope:
            raise self._error(f"{user} refers to {name!r}, which no earlier operation gives (dangling or cyclic)")
        return scope[name]

    def _const(self, operation: Any) -> Value:
        if len(operation.outputs) != 1 or "val" not in operation.attributes:
            raise self._error("a const without exactly one result and a value")
        return self._literal(operation.outputs[0].name, operation.attributes["val"])

    def _operation(self, operation: Any, opset: str, scope: Mapping[str, Value]) -> Op:
        outputs = tuple(self._value(entry) for entry in operation.outputs)
        # Until iOS17 a constant expression carries its arguments as attributes.
        expression = operation.type.startswith("constexpr_")
        attributes = {k: self._constant("", v) for k, v in operation.attributes.items() if k == "name" or not expression}
        label = attributes.pop("name", outputs[0].name if outputs else operation.type)
        user = f"{operation.type} {label!r}"
        literals = operation.attributes.items() if expression else ()
        inputs: dict[str, Value | tuple[Value, ...]] = {key: self._literal("", value) for key, value in literals if key != "name"}
        for key, argument in operation.inputs.items():
            values = tuple(
                self._literal("", binding.value)
                if binding.WhichOneof("binding") == "value"
                else self._lookup(scope, binding.name, f"{user}, argument {key!r},")
                for binding in argument.arguments
            )
            if not values:
                raise self._error(f"{user}, argument {key!r}, is empty")
            inputs[key] = values[0] if len(values) == 1 else values
        blocks = tuple(self._block(f"{label}/{index}", opset, block, block.inputs, scope) for index, block in enumerate(operation.blocks))
        return Op(operation.type, str(label), inputs, outputs, blocks, attributes)

    def _value(self, entry: Any) -> Value:
        kind, dtype, shape = self._type(entry.name, entry.type)
        return Value(entry.name, dtype, shape, kind)

    def _type(self, name: str, declared: Any) -> tuple[Kind, str, Shape | None]:
        kind = declared.WhichOneof("type")
        if kind == "stateType":
            return "state", *self._type(name, declared.stateType.wrappedType)[1:]
        if kind == "listType":
            return "list", *self._type(name, declared.listType.type)[1:]
        if kind == "dictionaryType":
            return "dictionary", "", None
        if kind == "tupleType":
            return "tuple", "", None
        if kind != "tensorType":
            raise self._error(f"{name!r} has no type")
        tensor = declared.tensorType
        if tensor.dataType not in _DTYPES:
            raise self._error(f"{name!r} has element type {tensor.dataType}, which is not known")
        dtype = _DTYPES[tensor.dataType]
        if tensor.rank < 0 or any(d.WhichOneof("dimension") == "unknown" and d.unknown.variadic for d in tensor.dimensions):
            return "tensor", dtype, None
        shape = tuple(int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
        known = [extent for extent in shape if extent is not None]
        if len(shape) != tensor.rank or len(shape) > _MAX_RANK or math.prod(known) > _MAX_ELEMENTS:
            raise self._error(f"{name!r} is declared with the impossible shape {known[:_MAX_RANK]} of rank {tensor.rank}")
        return "tensor", dtype, shape

    # -- constants ---------------------------------------------------------------------------------------------------------

    def _literal(self, name: str, value: Any) -> Value:
        kind, dtype, shape = self._type(name, value.type)
        return Value(name, dtype, shape, kind, self._constant(name, value))

    def _constant(self, name: str, value: Any) -> Constant:
        kind, dtype, shape = self._type(name, value.type)
        stored = value.WhichOneof("value")
        if stored == "blobFileValue" and kind == "tensor":
            if dtype not in BLOB_DTYPES or shape is None or None in shape:
                raise self._error(f"the weight {name!r} of type {dtype} {shape} cannot lie in a file")
            blob = value.blobFileValue
            return self._weight_file(blob.fileName).read(blob.offset, dtype, tuple(extent for extent in shape if extent is not None))
        if stored != "immediateValue":
            raise self._error(f"the constant {name!r} has no value")
        immediate = value.immediateValue
        form = immediate.WhichOneof("value")
        if form == "tensor" and kind == "tensor":
            if shape is None or None in shape:
                raise self._error(f"the constant {name!r} has an open shape")
            return self._immediate(name, immediate.tensor, dtype, tuple(extent for extent in shape if extent is not None))
        if form in ("list", "tuple"):
            return tuple(_plain(self._constant(name, item)) for item in getattr(immediate, form).values)
        if form == "dictionary":
            pairs = immediate.dictionary.values
            return {_plain(self._constant(name, pair.key)): _plain(self._constant(name, pair.value)) for pair in pairs}
        raise self._error(f"the constant {name!r} is declared {kind} and holds {form or 'nothing'}")

    def _immediate(self, name: str, tensor: Any, dtype: str, shape: tuple[int, ...]) -> Constant:
        form, count = tensor.WhichOneof("value"), math.prod(shape)
        if form is None:
            values: Any = ()
        elif form == "bytes":
            content = tensor.bytes.values
            if dtype not in BLOB_DTYPES or len(content) != packed_bytes(dtype, count):
                raise self._error(f"the constant {name!r} has {len(content)} bytes, not those of {dtype} {list(shape)}")
            return unpack(np.frombuffer(content, np.uint8).copy(), dtype, shape)
        else:
            values = getattr(tensor, form).values
        if len(values) != count:
            raise self._error(f"the constant {name!r} has {len(values)} elements, its type {dtype} {list(shape)} has {count}")
        if dtype == "string":
            if form not in (None, "strings"):
                raise self._error(f"the constant {name!r} is a string and holds {form}")
            return values[0] if shape == () else tuple(values)
        if form == "strings":
            raise self._error(f"the constant {name!r} is {dtype} and holds strings")
        try:
            return np.array(list(values), _IMMEDIATE_NUMPY[dtype]).reshape(shape)
        except (OverflowError, ValueError, TypeError) as error:
            raise self._error(f"the constant {name!r} does not fit its type {dtype} ({error})") from error

    def _weight_file(self, reference: str) -> WeightFile:
        """``@model_path/weights/weight.bin`` is relative to the model file's folder."""
        if reference not in self._weight_files:
            file = _inside(self._package, self._folder, reference.removeprefix("@model_path/"))
            self._weight_files[reference] = WeightFile(file, f"{self._package.name}, {file.name}")
        return self._weight_files[reference]


def _plain(constant: Constant) -> Any:
    """A scalar array as the Python number, everything else unchanged (list items and dictionary entries are plain)."""
    return constant.item() if isinstance(constant, np.ndarray) and constant.shape == () else constant
