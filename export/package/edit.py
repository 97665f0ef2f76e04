"""A small package around one op of another: the op, its constants and, if wanted, the ops right before it.

``cut_plan`` decides which ops are taken and how values are passed. Weights are copied byte for byte, those that are needed; the ops are the
package's own messages.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from coreflow.export.package.coremltools_quiet import model_proto
from coreflow.export.package.cut_plan import CutPlan, free_name, plan_cut
from coreflow.export.package.graph import Shape
from coreflow.export.package.mlpackage import package_digest, read_message, read_program
from coreflow.export.package.weights import Blob, WeightFile, write_blobs
from coreflow.export.package.write import MODEL, WEIGHT_FILE, package_manifest, set_type
from coreflow.models.errors import ConfigError, ExportError
from coreflow.models.spec import BOUNDS_KEY, VALUES_KEY
from coreflow.models.storage import write_folder_atomically

CUT_KEY = "coreflow.cut"  # user-defined metadata: where a cut comes from
_CAST_NAMES = {"float16": "fp16", "float32": "fp32"}  # as the argument of ``cast`` spells them


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
    plan = plan_cut(read_program(source), op_name, radius, function_name)
    try:
        write_folder_atomically(target, lambda folder: _write(folder, plan))
    except OSError as error:
        raise ExportError(f"{target} could not be written: {error.strerror or error}") from error
    return target


def _write(folder: Path, plan: CutPlan) -> None:
    source = plan.program.path
    message, spec_path = read_message(source)
    function = message.mlProgram.functions[plan.graph.name]
    operations = _kept_operations(function.block_specializations[function.opset].operations, plan)
    model = model_proto().Model()
    model.specificationVersion = message.specificationVersion
    model.mlProgram.version = message.mlProgram.version
    for key in message.mlProgram.attributes:
        model.mlProgram.attributes[key].CopyFrom(message.mlProgram.attributes[key])
    main = model.mlProgram.functions["main"]
    main.opset = function.opset
    block = main.block_specializations[function.opset]
    _fill(main, block, operations, plan)
    origin = {"package": source.name, "digest": package_digest(source), "op": plan.op.name, "radius": plan.radius}
    _describe(model.description, plan, origin)
    (folder / "Data" / MODEL).parent.mkdir(parents=True)
    has_weights = _move_weights(block.operations, spec_path.parent, folder / "Data" / WEIGHT_FILE, source.name)
    (folder / "Data" / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    (folder / "Manifest.json").write_text(package_manifest(json.dumps(origin), weights=has_weights))
    # What was written has to be what can be read: names, types and weights are checked there.
    read_program(folder)


def _kept_operations(operations: Iterable[Any], plan: CutPlan) -> list[Any]:
    """The messages of the ops of the cut and of the constants that they name, in their order."""
    outputs = {value.name for op in plan.ops for value in op.outputs}
    needed = outputs.union(*(_referenced_names(operation) for operation in operations if _makes_any(operation, outputs)))
    return [operation for operation in operations if _makes_any(operation, needed if operation.type == "const" else outputs)]


def _makes_any(operation: Any, names: set[str]) -> bool:
    return any(output.name in names for output in operation.outputs)


def _referenced_names(operation: Any) -> Iterator[str]:
    """Every name that an operation refers to, its blocks included."""
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                yield binding.name
    for block in operation.blocks:
        yield from block.outputs
        for inner in block.operations:
            yield from _referenced_names(inner)


def _fill(function: Any, block: Any, operations: Sequence[Any], plan: CutPlan) -> None:
    """Inputs, the conversions behind them, the ops, the conversions before the outputs, outputs."""
    ports = (*plan.inputs, *plan.outputs)
    add = _BlockWriter(block, {output.name for operation in operations for output in operation.outputs} | {port.name for port in ports})
    for port in plan.inputs:
        set_type(function.inputs.add(name=port.name).type, port.dtype, port.shape)
        name = port.name
        if port.casts:
            name = add.cast(name, add.free(f"{name}_cast") if port.reshapes else port.value.name, port.value.dtype, port.shape)
        if port.reshapes:
            add.reshape("squeeze", name, port.value.name, port.value.dtype, ())
    for operation in operations:
        block.operations.add().CopyFrom(operation)
    for port in plan.outputs:
        name = port.value.name
        if port.reshapes:
            name = add.reshape("expand_dims", name, add.free(f"{name}_vector") if port.casts else port.name, port.value.dtype, (1,))
        if port.casts:
            add.cast(name, port.name, port.dtype, (1,) if port.reshapes else port.value.shape)
        block.outputs.append(port.name)


class _BlockWriter:
    """Appends the operations of the border to a block whose values have ``names``."""

    def __init__(self, block: Any, names: set[str]) -> None:
        self._block = block
        self._names = names

    def free(self, name: str) -> str:
        """A name like this one that no value has."""
        return free_name(name, self._names)

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
        set_type(value.type, dtype, shape)
        set_type(operation.outputs.add(name=name).type, dtype, shape)
        return value.immediateValue.tensor

    def _add(self, kind: str, name: str, result: str, dtype: str, shape: Shape | None) -> str:
        key = "dtype" if kind == "cast" else "axes"
        constant = self._block.operations[-1].outputs[0].name
        operation = self._operation(kind, result)
        for argument, source in (("x", name), (key, constant)):
            operation.inputs[argument].arguments.add().name = source
        set_type(operation.outputs.add(name=result).type, dtype, shape)
        return result

    def _operation(self, kind: str, name: str) -> Any:
        operation = self._block.operations.add(type=kind)
        label = operation.attributes["name"]
        set_type(label.type, "string", ())
        label.immediateValue.tensor.strings.values.append(name)
        return operation


def _describe(description: Any, plan: CutPlan, origin: Mapping[str, Any]) -> None:
    """The description of inputs and outputs, and the origin of the cut."""
    for features, ports in ((description.input, plan.inputs), (description.output, plan.outputs)):
        for port in ports:
            array = features.add(name=port.name).type.multiArrayType
            array.dataType = type(array).ArrayDataType.Value(port.dtype.upper())
            array.shape.extend(port.shape or ())
    description.metadata.shortDescription = f"{plan.op.type} {plan.op.name} of {plan.program.path.name}"
    description.metadata.userDefined[CUT_KEY] = json.dumps(origin)
    for key in (BOUNDS_KEY, VALUES_KEY):
        try:
            recorded = json.loads(plan.program.metadata.user.get(key) or "{}")
        except ValueError:
            continue
        # Names are the program's own: what has bounds and crosses the border under its name is an input of both.
        if kept := {port.name: recorded[port.name] for port in plan.inputs if port.name in recorded}:
            description.metadata.userDefined[key] = json.dumps(kept)


def _move_weights(operations: Iterable[Any], source_folder: Path, file: Path, label: str) -> bool:
    """Copies every weight that ``operations`` refer to into ``file`` and lets them refer to it; whether there was one."""
    constants = (value for operation in operations for value in _immediate_values(operation))
    references = [value.blobFileValue for value in constants if value.HasField("blobFileValue")]
    places = list(dict.fromkeys((reference.fileName, reference.offset) for reference in references))
    if not places:
        return False
    file.parent.mkdir()
    opened: dict[str, WeightFile] = {}
    blobs: list[Blob] = []
    for name, offset in places:
        if name not in opened:
            opened[name] = WeightFile(source_folder / name.removeprefix("@model_path/"), f"{label}, {name}")
        blobs.append(opened[name].blob(offset))
    moved = dict(zip(places, write_blobs(file, blobs), strict=True))
    for reference in references:
        reference.offset = moved[reference.fileName, reference.offset]
        reference.fileName = "@model_path/weights/weight.bin"
    return True


def _immediate_values(operation: Any) -> Iterator[Any]:
    """Every constant that is written into an operation, its blocks included, in the same order in every process."""
    yield from (operation.attributes[key] for key in sorted(operation.attributes))
    for key in sorted(operation.inputs):
        for binding in operation.inputs[key].arguments:
            if binding.WhichOneof("binding") == "value":
                yield binding.value
    for block in operation.blocks:
        for inner in block.operations:
            yield from _immediate_values(inner)
