"""Saves a program as a package: the ops of its graphs as protobuf messages, and every weight once in one file.

What callers see, metadata and types that a graph holds in part only (lists, dictionaries) are those of the package that the program was
read from.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coreflow.export.package.coremltools_quiet import model_proto
from coreflow.export.package.cut_plan import free_name
from coreflow.export.package.graph import Graph, Op, Program, Shape, Value
from coreflow.export.package.mlpackage import read_message, read_program
from coreflow.export.package.weights import BLOB_DTYPES, Blob, blob_of, write_blobs
from coreflow.models.arrays import Array
from coreflow.models.errors import ConfigError, ExportError, UnsupportedError
from coreflow.models.storage import write_folder_atomically

MODEL, WEIGHTS = "com.apple.CoreML/model.mlmodel", "com.apple.CoreML/weights"
WEIGHT_FILE = f"{WEIGHTS}/weight.bin"
_WEIGHT_REFERENCE = "@model_path/weights/weight.bin"
# Constants that coremltools keeps in the weight file: from ten elements on, of these types; further ones since iOS18.
_LEAST_IN_FILE = 10
_IN_FILE = ("float16", "float32", "uint8", "int8")
_SPEC_OF_IOS18 = 9
# Until iOS17 a constant expression carries its arguments as attributes.
_OPSETS_WITH_ATTRIBUTES = ("CoreML5", "CoreML6", "CoreML7")
_FORMS = {"bool": "bools", "float32": "floats", "float64": "doubles", "int32": "ints", "int64": "longInts", "string": "strings"}


def write_program(program: Program, out: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write ``program`` as the package ``out``; ``metadata`` is added to its user-defined entries.

    >>> write_program(program.with_function(graph), "repaired.mlpackage")

    ``ConfigError`` for a name that is no package's, ``ExportError`` where ``out`` exists or cannot be written, ``UnsupportedError`` for a
    constant that has no written form. A killed call leaves nothing at ``out``.
    """
    target = Path(out)
    if target.suffix != ".mlpackage":
        raise ConfigError(f"{target}: a package is written to NAME.mlpackage")
    if target.exists():
        raise ExportError(f"{target} exists already; give another name")
    try:
        write_folder_atomically(target, lambda folder: _write(folder, program, metadata or {}))
    except OSError as error:
        raise ExportError(f"{target} could not be written: {error.strerror or error}") from error
    return target


def package_manifest(seed: str, *, weights: bool) -> str:
    """``Manifest.json`` of a package; the same identifiers for the same ``seed``."""
    items = {"model.mlmodel": ("CoreML Model Specification", MODEL)}
    if weights:
        items["weights"] = ("CoreML Model Weights", WEIGHTS)
    identifiers = {name: str(uuid.uuid5(uuid.NAMESPACE_OID, f"{seed} {name}")) for name in items}
    entries = {
        identifiers[name]: {"author": "com.apple.CoreML", "description": text, "name": name, "path": path}
        for name, (text, path) in items.items()
    }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": identifiers["model.mlmodel"]}
    return json.dumps(manifest, indent=4) + "\n"


def set_type(declared: Any, dtype: str, shape: Shape | None) -> None:
    """Declare a tensor in the message ``declared``."""
    tensor = declared.tensorType
    tensor.dataType = model_proto().MIL__pb2.DataType.Value(dtype.upper())
    tensor.rank = -1 if shape is None else len(shape)
    for extent in shape or ():
        dimension = tensor.dimensions.add()
        if extent is None:
            dimension.unknown.variadic = False
        else:
            dimension.constant.size = extent


def _write(folder: Path, program: Program, metadata: Mapping[str, str]) -> None:
    model, _ = read_message(program.path)
    weights = _Weights(model.specificationVersion >= _SPEC_OF_IOS18)
    for name, graph in sorted(program.functions.items()):
        function = model.mlProgram.functions[name]
        kept = _Source(function.block_specializations[function.opset])
        for opset in set(function.block_specializations) - {function.opset}:
            del function.block_specializations[opset]
        block = function.block_specializations[function.opset]
        del block.operations[:], block.outputs[:]
        _FunctionWriter(graph, kept, weights).fill(block)
    for key, text in metadata.items():
        model.description.metadata.userDefined[key] = text
    (folder / "Data" / MODEL).parent.mkdir(parents=True)
    if weights.references:
        (folder / "Data" / WEIGHTS).mkdir()
        weights.write(folder / "Data" / WEIGHT_FILE)
    content = model.SerializeToString(deterministic=True)
    (folder / "Data" / MODEL).write_bytes(content)
    (folder / "Manifest.json").write_text(package_manifest(hashlib.sha256(content).hexdigest(), weights=bool(weights.references)))
    # What was written has to be what can be read: names, types and weights are checked there.
    read_program(folder)


class _Weights:
    """The weights of a package, those of equal bytes once, and the messages that refer to them."""

    def __init__(self, has_integers: bool) -> None:
        self._has_integers = has_integers
        self._places: dict[tuple[int, bytes], int] = {}
        self._blobs: list[Blob] = []
        self.references: list[tuple[Any, int]] = []

    def takes(self, value: Value) -> bool:
        """Whether a constant belongs in the file."""
        if not isinstance(value.data, np.ndarray) or value.data.size < _LEAST_IN_FILE:
            return False
        return value.dtype in (BLOB_DTYPES if self._has_integers else _IN_FILE)

    def add(self, reference: Any, data: Array, dtype: str) -> None:
        """Let the message ``reference`` refer to ``data``, once the file is written."""
        blob = blob_of(data, dtype)
        key = blob.code, hashlib.sha256(blob.content.data).digest()
        if key not in self._places:
            self._places[key] = len(self._blobs)
            self._blobs.append(blob)
        reference.fileName = _WEIGHT_REFERENCE
        self.references.append((reference, self._places[key]))

    def write(self, file: Path) -> None:
        """Write the file, and its offsets into the messages."""
        offsets = write_blobs(file, self._blobs)
        for reference, place in self.references:
            reference.offset = offsets[place]


class _Source:
    """What the messages of the package hold and a graph does not: types of lists and the like, and attributes of ops."""

    def __init__(self, block: Any) -> None:
        self.types: dict[str, Any] = {}
        self.attributes: dict[tuple[str, str], dict[str, Any]] = {}
        self._read(block)

    def _read(self, block: Any) -> None:
        self.types.update((entry.name, _copy(entry.type)) for entry in block.inputs)
        for operation in block.operations:
            self.types.update((output.name, _copy(output.type)) for output in operation.outputs)
            label = operation.attributes["name"].immediateValue.tensor.strings.values if "name" in operation.attributes else ()
            if label and len(operation.attributes) > 1 and not operation.type.startswith("const"):
                further = {key: _copy(value) for key, value in operation.attributes.items() if key != "name"}
                self.attributes[operation.type, label[0]] = further
            for inner in operation.blocks:
                self._read(inner)


class _FunctionWriter:
    """Fills the block of one function. Constants, those of inner blocks too, stand right before the first op that needs them."""

    def __init__(self, graph: Graph, kept: _Source, weights: _Weights) -> None:
        self._graph = graph
        self._kept = kept
        self._weights = weights
        self._taken = {value.name for value in _made_values(graph)}
        self._names: dict[int, str] = {}  # of the constants that are written, by id

    def fill(self, block: Any) -> None:
        """Operations and outputs of the function."""
        for op in self._graph.ops:
            self._constants(block, op.reads())
            self._operation(block.operations.add(), op)
        self._constants(block, self._graph.outputs)
        block.outputs.extend(map(self._name, self._graph.outputs))

    def _constants(self, block: Any, values: Iterator[Value] | tuple[Value, ...]) -> None:
        for value in values:
            if value.data is None or not value.name or id(value) in self._names:
                continue
            name = free_name(value.name, self._taken)
            self._names[id(value)] = name
            operation = block.operations.add(type="const")
            _label(operation, name)
            self._literal(operation.attributes["val"], value)
            self._type(operation.outputs.add(name=name).type, value)

    def _name(self, value: Value) -> str:
        return self._names.get(id(value), value.name)

    def _operation(self, operation: Any, op: Op) -> None:
        operation.type = op.type
        _label(operation, op.name)
        for key, further in self._kept.attributes.get((op.type, op.name), {}).items():
            operation.attributes[key].CopyFrom(further)
        if op.type.startswith("constexpr_") and self._graph.opset in _OPSETS_WITH_ATTRIBUTES:
            for key in op.inputs:
                (value,) = op.argument(key)
                self._literal(operation.attributes[key], value)
        else:
            for key in op.inputs:
                for value in op.argument(key):
                    binding = operation.inputs[key].arguments.add()
                    if value.name:
                        binding.name = self._name(value)
                    else:
                        self._literal(binding.value, value)
        for value in op.outputs:
            self._type(operation.outputs.add(name=value.name).type, value)
        for graph in op.blocks:
            block = operation.blocks.add()
            for value in graph.inputs:
                self._type(block.inputs.add(name=value.name).type, value)
            for inner in graph.ops:
                self._operation(block.operations.add(), inner)
            block.outputs.extend(map(self._name, graph.outputs))

    def _type(self, declared: Any, value: Value) -> None:
        if value.kind == "tensor":
            set_type(declared, value.dtype, value.shape)
        elif value.kind == "state":
            set_type(declared.stateType.wrappedType, value.dtype, value.shape)
        elif value.name in self._kept.types:
            declared.CopyFrom(self._kept.types[value.name])
        else:
            raise UnsupportedError(f"{value.name!r}, a {value.kind} that is not in the package it was read from, cannot be written")

    def _literal(self, message: Any, value: Value) -> None:
        """The constant ``value`` as a message."""
        data = value.data
        if value.kind == "list" and isinstance(data, tuple):
            set_type(message.type.listType.type, value.dtype, value.shape)
            message.type.listType.length.constant.size = len(data)
            for item in data:
                element = item if isinstance(item, str) else np.asarray(item)
                self._literal(message.immediateValue.list.values.add(), replace(value, kind="tensor", data=element))
            return
        self._type(message.type, value)
        if isinstance(data, np.ndarray) and self._weights.takes(value):
            self._weights.add(message.blobFileValue, data, value.dtype)
            return
        tensor = message.immediateValue.tensor
        form = _FORMS.get(value.dtype, "bytes")
        if form == "strings" and isinstance(data, str | tuple):
            tensor.strings.values.extend((data,) if isinstance(data, str) else data)
        elif form == "bytes" and isinstance(data, np.ndarray) and value.dtype in BLOB_DTYPES:
            tensor.bytes.values = blob_of(data, value.dtype).content.tobytes()
        elif isinstance(data, np.ndarray) and form not in ("strings", "bytes"):
            getattr(tensor, form).values.extend(data.reshape(-1).tolist())
            getattr(tensor, form).SetInParent()  # of no elements, too
        else:
            raise UnsupportedError(f"the constant {value.name!r}, a {value.kind} of {value.dtype}, cannot be written")


def _made_values(graph: Graph) -> Iterator[Value]:
    """Inputs of the graph and of its blocks, and every result."""
    yield from graph.inputs
    for op in graph.ops:
        yield from op.outputs
        for block in op.blocks:
            yield from _made_values(block)


def _label(operation: Any, name: str) -> None:
    label = operation.attributes["name"]
    set_type(label.type, "string", ())
    label.immediateValue.tensor.strings.values.append(name)


def _copy(message: Any) -> Any:
    """A copy that outlives the message."""
    copied = type(message)()
    copied.CopyFrom(message)
    return copied
