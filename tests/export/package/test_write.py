"""A program that is read and written again is equal, op for op; what differs between two programs is seen."""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.graph import Graph, Op, Program, Value
from coreflow.export.package.mlpackage import read_message, read_program
from coreflow.export.package.weights import BLOB_DTYPES, blob_of, packed_bytes, unpack
from coreflow.export.package.write import write_program
from coreflow.export.recipe import Recipe
from coreflow.models.errors import ConfigError, ExportError
from coreflow.models.spec import TensorSpec


def content(value: Value) -> tuple[Any, ...]:
    """All of a value but the name of a constant."""
    data: Any = value.data
    if isinstance(data, np.ndarray):
        data = data.dtype.str, data.shape, data.tobytes()
    return ("" if value.data is not None else value.name), value.dtype, value.shape, value.kind, data


def listed(graph: Graph) -> Iterator[Any]:
    """Everything that a graph computes, in its order."""
    yield graph.opset, [content(value) for value in graph.inputs], [content(value) for value in graph.outputs]
    for op in graph.ops:
        inputs = {name: [content(value) for value in op.argument(name)] for name in sorted(op.inputs)}
        yield op.type, op.name, inputs, [content(value) for value in op.outputs], repr(sorted(op.attributes.items()))
        for block in op.blocks:
            yield from listed(block)


def assert_equal(one: Program, other: Program) -> None:
    for field in ("spec_version", "interfaces", "default_function", "metadata"):
        assert getattr(one, field) == getattr(other, field)
    assert one.functions.keys() == other.functions.keys()
    for name, graph in one.functions.items():
        assert list(listed(graph)) == list(listed(other.functions[name]))


def size(package: Path) -> int:
    return sum(file.stat().st_size for file in package.rglob("*") if file.is_file())


@pytest.mark.parametrize("name", ["weights", "blocks", "picture", "four bits"])
def test_what_is_read_is_written_again(name: str, small_packages: Mapping[str, Path], tmp_path: Path) -> None:
    program = read_program(small_packages[name])
    assert_equal(program, read_program(write_program(program, tmp_path / "again.mlpackage")))


def test_packages_of_an_export_are_written_again_as_large_as_they_were(exported: Path, tmp_path: Path) -> None:
    for path in sorted((exported / "bundle" / "packages").iterdir()):
        again = write_program(read_program(path), tmp_path / path.name)
        assert_equal(read_program(path), read_program(again))
        assert size(again) == pytest.approx(size(path), rel=0.01)


def test_functions_go_on_sharing_their_weights(tmp_path: Path) -> None:
    import torch

    from coreflow.export import build

    layer = torch.nn.Linear(64, 512).eval()
    recipes = [
        Recipe(name=name, module=layer, inputs={"x": TensorSpec((rows, 64))}, outputs=("y",), target="iOS18")
        for name, rows in (("step", 1), ("prefill", 16))
    ]
    package = build(dataclasses.replace(recipes[0], functions=(recipes[1],)), tmp_path)
    again = write_program(read_program(package), tmp_path / "again.mlpackage", {"note": "written again"})
    assert read_program(again).metadata.user["note"] == "written again"
    for name in ("step", "prefill"):
        assert list(listed(read_program(package).functions[name])) == list(listed(read_program(again).functions[name]))
    assert size(again) < 1.1 * 64 * 512 * 2


def test_coremltools_reads_what_was_written(small_packages: Mapping[str, Path], tmp_path: Path) -> None:
    """Its loader checks every op against its definition."""
    quiet_coremltools()
    from coremltools.converters.mil.frontend.milproto import load

    for name, package in small_packages.items():
        again = write_program(read_program(package), tmp_path / f"{name}.mlpackage")
        message, spec = read_message(again)
        program = load.load(message, message.specificationVersion, file_weights_dir=str(spec.parent / "weights"))
        assert program.functions


def test_constants_of_one_name_are_told_apart(small_packages: Mapping[str, Path], tmp_path: Path) -> None:
    program = read_program(small_packages["picture"])
    graph, _ = program.function()
    (result,) = (value for op in graph.ops if op.type == "softmax" for value in op.outputs)
    ops, current = [], Value("start", "float32", result.shape)
    before = [dataclasses.replace(op, outputs=(current,)) if op.type == "softmax" else op for op in graph.ops]
    for place, number in enumerate((2.0, 3.0)):
        after = result if place else Value("middle", "float32", result.shape)
        factor = Value("factor", "float32", (), data=np.array(number, np.float32))
        ops.append(Op("mul", after.name, {"x": current, "y": factor}, (after,)))
        current = after
    place = next(i for i, op in enumerate(before) if op.type == "softmax")
    changed = dataclasses.replace(graph, ops=(*before[: place + 1], *ops, *before[place + 1 :]))
    again, _ = read_program(write_program(program.with_function(changed), tmp_path / "again.mlpackage")).function()
    factors = [op.inputs["y"] for op in again.ops if op.type == "mul" and op.name in ("middle", result.name)]
    assert [float(factor.data) for factor in factors] == [2.0, 3.0]  # type: ignore[arg-type, union-attr]


@settings(deadline=None, derandomize=True, database=None)
@given(st.sampled_from(sorted(BLOB_DTYPES)), st.data())
def test_packed_elements_are_unpacked_again(dtype: str, data: st.DataObject) -> None:
    code, bits, numpy_type = BLOB_DTYPES[dtype]
    elements = None
    if bits < 8:
        elements = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dtype == "int4" else st.integers(0, 2**bits - 1)
    array = data.draw(drawn.arrays(numpy_type, drawn.array_shapes(max_dims=2, max_side=9), elements=elements))
    blob = blob_of(array, dtype)
    assert (blob.code, blob.content.nbytes) == (code, packed_bytes(dtype, array.size))
    assert blob.content.nbytes * 8 - blob.unused_bits == array.size * bits
    np.testing.assert_array_equal(unpack(blob.content, dtype, array.shape), array)


def test_a_wrong_place_is_one_clear_error(small_packages: Mapping[str, Path], tmp_path: Path) -> None:
    program = read_program(small_packages["weights"])
    with pytest.raises(ConfigError, match=r"NAME\.mlpackage"):
        write_program(program, tmp_path / "again")
    shutil.copytree(small_packages["weights"], tmp_path / "there.mlpackage")
    with pytest.raises(ExportError, match="exists already"):
        write_program(program, tmp_path / "there.mlpackage")
