"""A small package around one op of another: the op, its constants and, if wanted, the ops right before it.

What enters the cut becomes an input and what the op gives an output, under the names of the values; a value that Core ML passes in no
such form goes through a cast or a reshape at the border, under a name of its own:

=====================================  ===============================
value                                  passed as
=====================================  ===============================
bool, int8, uint8, int16, uint16       int32
float16, before iOS16                  float32
a scalar                               a vector of one element
=====================================  ===============================

Weights are copied byte for byte, those that are needed; the ops are the package's own messages.
"""

import difflib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coreflow.export.package.coremltools_quiet import model_proto
from coreflow.export.package.graph import Graph, Op, Program, Shape, Value
from coreflow.export.package.mlpackage import package_digest, read_message, read_program
from coreflow.export.package.weights import Blob, WeightFile, write_blobs
from coreflow.models.errors import ConfigError, ExportError, UnsupportedError
from coreflow.models.spec import BOUNDS_KEY, Dtype
from coreflow.models.storage import write_folder_atomically

CUT_KEY = "coreflow.cut"  # user-defined metadata: where a cut comes from
_MODEL, _WEIGHTS = "com.apple.CoreML/model.mlmodel", "com.apple.CoreML/weights"
_WEIGHT_FILE = f"{_WEIGHTS}/weight.bin"
_FIRST_WITH_FP16 = 7  # specification version of iOS16
_SMALL = ("bool", "int8", "uint8", "int16", "uint16")  # what a cast makes of int32 and back
# As the argument of ``cast`` spells them.
_CAST_NAMES = {"float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True, slots=True, eq=False)
class Port:
    """A value that crosses the border of a cut, and what stands for it outside."""

    value: Value
    name: str
    dtype: Dtype
    shape: tuple[int, ...] | None  # None: only a prediction tells

    @property
    def casts(self) -> bool:
        """Whether the value is of another dtype than what is passed."""
        return self.value.dtype != self.dtype

    @property
    def reshapes(self) -> bool:
        """Whether the value is a scalar, which is passed as a vector."""
        return self.value.shape == ()


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Which part of a function is taken: ops in execution order, constant expressions among them, and the border."""

    op: Op
    ops: tuple[Op, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def cut(package: str | Path, op_name: str, out: str | Path, radius: int = 0, *, function_name: str | None = None) -> Path:
    """Write the op ``op_name`` of ``package``, and the ops at most ``radius`` steps before it, as the package ``out``.

    Raises ``ConfigError`` for an op that is not there, ``UnsupportedError`` for one that cannot stand alone (see ``plan_cut``), and
    ``ExportError`` when ``out`` exists or cannot be written. A killed call leaves nothing at ``out``.
    """
    source, target = Path(package), Path(out)
    if target.suffix != ".mlpackage":
        raise ConfigError(f"{target}: a package is written to NAME.mlpackage")
    if target.exists():
        raise ExportError(f"{target} exists already; give another name for the cut")
    program = read_program(source)
    planned = plan_cut(program, op_name, radius, function_name)
    try:
        write_folder_atomically(target, lambda folder: _write(folder, source, program, planned, radius, function_name))
    except OSError as error:
        raise ExportError(f"{target} could not be written: {error.strerror or error}") from error
    return target


def plan_cut(program: Program, op_name: str, radius: int = 0, function_name: str | None = None) -> Cut:
    """The cut around the op of that name, or around the one that gives the value of that name.

    Ops that touch a state, a list or a dictionary stay outside, what they give enters the cut; a control-flow op is taken whole.
    ``UnsupportedError`` for an op inside a block, for one that itself takes or gives no tensor, or nothing but constants, and where a
    value of an open shape would enter.
    """
    if radius < 0:
        raise ConfigError(f"radius {radius}; 0 takes the op alone")
    graph, _ = program.function(function_name)
    label = program.path.name
    op = _find(graph, op_name, label)
    makers = {id(value): op for op in graph.ops for value in op.outputs}
    chosen = _chosen(op, makers, radius)
    kept = tuple(op for op in graph.ops if id(op) in chosen)
    made, read = {id(value) for op in kept for value in op.outputs}, {id(value) for op in kept for value in op.reads()}
    # In the order in which they are made, not in that of the arguments: a protobuf map has another in every process.
    values = (*graph.inputs, *(value for op in graph.ops for value in op.outputs))
    entering = [value for value in values if id(value) in read and id(value) not in made]
    user = f"{label}: {op.type} {op.name!r} cannot be cut out"
    for value in (*entering, *op.outputs):
        if value.kind != "tensor":
            raise UnsupportedError(f"{user}: {value.name!r} is a {value.kind}, no tensor; cut an op before or after it")
    if not op.outputs:
        raise UnsupportedError(f"{user}: it gives nothing; cut an op before or after it")
    if not entering:
        raise UnsupportedError(f"{user}: nothing but constants enters it, and a program needs an input")
    taken = {value.name for op in graph.walk() for value in (*op.outputs, *op.input_values())} | {value.name for value in graph.inputs}
    has_fp16_io = program.spec_version >= _FIRST_WITH_FP16
    inputs = tuple(_port(value, taken, user, has_fp16_io=has_fp16_io) for value in entering)
    if opened := [port.value.name for port in inputs if port.shape is None]:
        raise UnsupportedError(f"{user}: {', '.join(opened)}, which enters it, has a shape that only a prediction tells")
    return Cut(op, kept, inputs, tuple(_port(value, taken, user, has_fp16_io=has_fp16_io) for value in op.outputs))


# -- what to take ------------------------------------------------------------------------------------------------------------------


def _find(graph: Graph, name: str, label: str) -> Op:
    matching = [op for op in graph.ops if op.name == name] or [op for op in graph.ops if any(value.name == name for value in op.outputs)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        outputs = ", ".join(op.outputs[0].name for op in matching if op.outputs)
        raise ConfigError(f"{label}: {len(matching)} ops are named {name!r}; name one by what it gives: {outputs}")
    around = [op for op in graph.ops if any(inner.name == name for block in op.blocks for inner in block.walk())]
    if around:
        raise UnsupportedError(f"{label}: {name!r} is in a block of {around[0].type} {around[0].name!r}; cut that one, whole")
    near = difflib.get_close_matches(name, [op.name for op in graph.walk()], 3)
    raise ConfigError(f"{label}: no op {name!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))


def _chosen(op: Op, makers: dict[int, Op], radius: int) -> set[int]:
    """Ids of the ops to keep: up to ``radius`` steps back, and every constant expression that one of them reads."""
    chosen, frontier = {id(op): op}, [op]
    for _ in range(radius):
        before = [makers[id(value)] for op in frontier for value in op.reads() if id(value) in makers]
        frontier = [op for op in before if id(op) not in chosen and not _is_constant(op) and _is_plain(op)]
        chosen.update((id(op), op) for op in frontier)
    pending = list(chosen.values())
    while pending:
        read = [makers[id(value)] for value in pending.pop().reads() if id(value) in makers]
        constants = [op for op in read if _is_constant(op) and id(op) not in chosen]
        chosen.update((id(op), op) for op in constants)
        pending.extend(constants)
    return set(chosen)


def _is_constant(op: Op) -> bool:
    return op.type.startswith("constexpr_")


def _is_plain(op: Op) -> bool:
    """Whether only tensors go in and come out."""
    return bool(op.outputs) and all(value.kind == "tensor" for value in (*op.reads(), *op.outputs) if value.data is None)


def _port(value: Value, taken: set[str], user: str, *, has_fp16_io: bool) -> Port:
    dtypes: dict[str, Dtype] = {"float16": "float16" if has_fp16_io else "float32", "float32": "float32", "int32": "int32"}
    dtypes |= dict.fromkeys(_SMALL, "int32")
    if value.dtype not in dtypes:
        raise UnsupportedError(f"{user}: {value.name!r} is {value.dtype or 'untyped'}; {', '.join(dtypes)} can be passed")
    dtype = dtypes[value.dtype]
    shape = None if value.shape is None or None in value.shape else tuple(extent or 0 for extent in value.shape) or (1,)
    name = value.name
    if dtype != value.dtype or value.shape == ():
        name = _free(f"{value.name}_as_{dtype if dtype != value.dtype else 'vector'}", taken)
    return Port(value, name, dtype, shape)


def _free(name: str, taken: set[str]) -> str:
    """``name``, longer if a value has it already; it is taken afterwards."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


# -- writing ---------------------------------------------------------------------------------------------------------------------


def _write(folder: Path, source: Path, program: Program, planned: Cut, radius: int, function_name: str | None) -> None:
    old, spec_path = read_message(source)
    function = old.mlProgram.functions[program.function(function_name)[0].name]
    operations = _kept_operations(function.block_specializations[function.opset].operations, planned)
    model = model_proto().Model()
    model.specificationVersion = old.specificationVersion
    model.mlProgram.version = old.mlProgram.version
    for key in old.mlProgram.attributes:
        model.mlProgram.attributes[key].CopyFrom(old.mlProgram.attributes[key])
    made = model.mlProgram.functions["main"]
    made.opset = function.opset
    block = made.block_specializations[function.opset]
    _fill(made, block, operations, planned)
    origin = {"package": source.name, "digest": package_digest(source), "op": planned.op.name, "radius": radius}
    _describe(model.description, program, planned, origin)
    (folder / "Data" / _MODEL).parent.mkdir(parents=True)
    has_weights = _move_weights(block.operations, spec_path.parent, folder / "Data" / _WEIGHT_FILE, source.name)
    (folder / "Data" / _MODEL).write_bytes(model.SerializeToString(deterministic=True))
    (folder / "Manifest.json").write_text(_manifest(json.dumps(origin), weights=has_weights))
    # What was written has to be what can be read: names, types and weights are checked there.
    read_program(folder)


def _kept_operations(operations: Iterable[Any], planned: Cut) -> list[Any]:
    """The messages of the ops of the cut and of the constants that they name, in their order."""
    outputs = {value.name for op in planned.ops for value in op.outputs}
    needed = outputs.union(*(_names(operation) for operation in operations if _gives(operation, outputs)))
    return [operation for operation in operations if _gives(operation, needed if operation.type == "const" else outputs)]


def _gives(operation: Any, names: set[str]) -> bool:
    return any(output.name in names for output in operation.outputs)


def _names(operation: Any) -> Iterator[str]:
    """Every name that an operation refers to, its blocks included."""
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                yield binding.name
    for block in operation.blocks:
        yield from block.outputs
        for inner in block.operations:
            yield from _names(inner)


def _fill(function: Any, block: Any, operations: Sequence[Any], planned: Cut) -> None:
    """Inputs, the conversions behind them, the ops, the conversions before the outputs, outputs."""
    ports = (*planned.inputs, *planned.outputs)
    add = _Adder(block, {output.name for operation in operations for output in operation.outputs} | {port.name for port in ports})
    for port in planned.inputs:
        _set_type(function.inputs.add(name=port.name).type, port.dtype, port.shape)
        name = port.name
        if port.casts:
            name = add.cast(name, add.free(f"{name}_cast") if port.reshapes else port.value.name, port.value.dtype, port.shape)
        if port.reshapes:
            add.reshape("squeeze", name, port.value.name, port.value.dtype, ())
    for operation in operations:
        block.operations.add().CopyFrom(operation)
    for port in planned.outputs:
        name = port.value.name
        if port.reshapes:
            name = add.reshape("expand_dims", name, add.free(f"{name}_vector") if port.casts else port.name, port.value.dtype, (1,))
        if port.casts:
            add.cast(name, port.name, port.dtype, (1,) if port.reshapes else port.value.shape)
        block.outputs.append(port.name)


class _Adder:
    """Appends the operations of the border to a block in which some names are ``taken``."""

    def __init__(self, block: Any, taken: set[str]) -> None:
        self._block = block
        self._taken = taken

    def free(self, name: str) -> str:
        """A name like this one that no value has."""
        return _free(name, self._taken)

    def cast(self, name: str, result: str, dtype: str, shape: Shape | None) -> str:
        """``cast`` of the value ``name`` to ``result``."""
        constant = self._constant(f"{result}_dtype", "string", ())
        constant.strings.values.append(_CAST_NAMES.get(dtype, dtype))
        return self._add("cast", name, result, dtype, shape)

    def reshape(self, kind: str, name: str, result: str, dtype: str, shape: Shape) -> str:
        """``squeeze`` or ``expand_dims`` of the first axis."""
        self._constant(f"{result}_axes", "int32", (1,)).ints.values.append(0)
        return self._add(kind, name, result, dtype, shape)

    def _constant(self, name: str, dtype: str, shape: Shape) -> Any:
        """A constant that is yet to be filled, and which the next operation takes beside its ``x``."""
        name = self.free(name)
        operation = self._operation("const", name)
        value = operation.attributes["val"]
        _set_type(value.type, dtype, shape)
        _set_type(operation.outputs.add(name=name).type, dtype, shape)
        return value.immediateValue.tensor

    def _add(self, kind: str, name: str, result: str, dtype: str, shape: Shape | None) -> str:
        key = "dtype" if kind == "cast" else "axes"
        constant = self._block.operations[-1].outputs[0].name
        operation = self._operation(kind, result)
        for argument, source in (("x", name), (key, constant)):
            operation.inputs[argument].arguments.add().name = source
        _set_type(operation.outputs.add(name=result).type, dtype, shape)
        return result

    def _operation(self, kind: str, name: str) -> Any:
        operation = self._block.operations.add(type=kind)
        label = operation.attributes["name"]
        _set_type(label.type, "string", ())
        label.immediateValue.tensor.strings.values.append(name)
        return operation


def _set_type(declared: Any, dtype: str, shape: Shape | None) -> None:
    tensor = declared.tensorType
    tensor.dataType = model_proto().MIL__pb2.DataType.Value(dtype.upper())
    tensor.rank = -1 if shape is None else len(shape)
    for extent in shape or ():
        dimension = tensor.dimensions.add()
        if extent is None:
            dimension.unknown.variadic = False
        else:
            dimension.constant.size = extent


def _describe(description: Any, program: Program, planned: Cut, origin: Mapping[str, Any]) -> None:
    """The description of inputs and outputs, and the origin of the cut."""
    for features, ports in ((description.input, planned.inputs), (description.output, planned.outputs)):
        for port in ports:
            array = features.add(name=port.name).type.multiArrayType
            array.dataType = type(array).ArrayDataType.Value(port.dtype.upper())
            array.shape.extend(port.shape or ())
    description.metadata.shortDescription = f"{planned.op.type} {planned.op.name} of {program.path.name}"
    description.metadata.userDefined[CUT_KEY] = json.dumps(origin)
    try:
        bounds = json.loads(program.metadata.user.get(BOUNDS_KEY) or "{}")
    except ValueError:
        return
    # Names are the program's own: what has bounds and crosses the border under its name is an input of both.
    if kept := {port.name: bounds[port.name] for port in planned.inputs if port.name in bounds}:
        description.metadata.userDefined[BOUNDS_KEY] = json.dumps(kept)


def _move_weights(operations: Iterable[Any], old_folder: Path, file: Path, label: str) -> bool:
    """Copies every weight that ``operations`` refer to into ``file`` and lets them refer to it; whether there was one."""
    references = [value.blobFileValue for operation in operations for value in _values(operation) if value.HasField("blobFileValue")]
    places = list(dict.fromkeys((reference.fileName, reference.offset) for reference in references))
    if not places:
        return False
    file.parent.mkdir()
    opened: dict[str, WeightFile] = {}
    blobs: list[Blob] = []
    for name, offset in places:
        if name not in opened:
            opened[name] = WeightFile(old_folder / name.removeprefix("@model_path/"), f"{label}, {name}")
        blobs.append(opened[name].blob(offset))
    moved = dict(zip(places, write_blobs(file, blobs), strict=True))
    for reference in references:
        reference.offset = moved[reference.fileName, reference.offset]
        reference.fileName = "@model_path/weights/weight.bin"
    return True


def _values(operation: Any) -> Iterator[Any]:
    """Every constant that is written into an operation, its blocks included, in the same order in every process."""
    yield from (operation.attributes[key] for key in sorted(operation.attributes))
    for key in sorted(operation.inputs):
        for binding in operation.inputs[key].arguments:
            if binding.WhichOneof("binding") == "value":
                yield binding.value
    for block in operation.blocks:
        for inner in block.operations:
            yield from _values(inner)


def _manifest(seed: str, *, weights: bool) -> str:
    """``Manifest.json`` of a package; the same identifiers for the same cut."""
    items = {"model.mlmodel": ("CoreML Model Specification", _MODEL)}
    if weights:
        items["weights"] = ("CoreML Model Weights", _WEIGHTS)
    identifiers = {name: str(uuid.uuid5(uuid.NAMESPACE_OID, f"{seed} {name}")) for name in items}
    entries = {
        identifiers[name]: {"author": "com.apple.CoreML", "description": text, "name": name, "path": path}
        for name, (text, path) in items.items()
    }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": identifiers["model.mlmodel"]}
    return json.dumps(manifest, indent=4) + "\n"
