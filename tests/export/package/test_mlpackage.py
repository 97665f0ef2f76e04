"""A package is read as it was written, and whatever a file can get wrong is one clear ``BundleError``."""

import gc
import json
import shutil
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreflow.export.package.coremltools_quiet import model_proto, quiet_coremltools
from coreflow.export.package.mlpackage import package_digest, read_program
from coreflow.export.package.weights import BLOB_DTYPES, WeightFile, release_pages, unpack
from coreflow.models.arrays import Array
from coreflow.models.errors import BundleError, CoreflowError, UnsupportedError

WEIGHTS = np.arange(64 * 48, dtype=np.float16).reshape(64, 48) / 1024


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with one weight in its file, one inside the program, and a list, saved by coremltools."""
    ct = quiet_coremltools()
    from coremltools.converters.mil.mil import Builder, types

    def program(x: Any, y: Any) -> Any:
        product = Builder.linear(x=x, weight=WEIGHTS, bias=np.zeros(64, np.float16), name="product")
        return Builder.concat(values=(product, y), axis=-1, name="joined")

    path = tmp_path_factory.mktemp("packages") / "small.mlpackage"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # coremltools leaves its temporary folder to the garbage collector
        model = ct.convert(
            Builder.program(
                input_specs=[Builder.TensorSpec((1, 48), dtype=types.fp16), Builder.TensorSpec((1, 64), dtype=types.fp16)],
                opset_version=ct.target.iOS17,
            )(program),
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
            compute_precision=ct.precision.FLOAT16,
            pass_pipeline=ct.PassPipeline.EMPTY,
        )
        model.author, model.user_defined_metadata["colour"] = "nobody", "blue"
        model.save(str(path))
        del model
        gc.collect()
    return path


@pytest.fixture
def package(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "small.mlpackage"))


def spec_file(package: Path) -> Path:
    return package / "Data/com.apple.CoreML/model.mlmodel"


def weight_file(package: Path) -> Path:
    return package / "Data/com.apple.CoreML/weights/weight.bin"


def edit(package: Path, change: Callable[[Any], None]) -> None:
    """Rewrites the model message."""
    model = model_proto().Model()
    model.ParseFromString(spec_file(package).read_bytes())
    change(model)
    spec_file(package).write_bytes(model.SerializeToString())


def operations(model: Any) -> Any:
    function = model.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def operation(model: Any, kind: str) -> Any:
    return next(op for op in operations(model) if op.type == kind)


def weight_value(model: Any) -> Any:
    return next(op.attributes["val"] for op in operations(model) if op.attributes["val"].WhichOneof("value") == "blobFileValue")


class TestReading:
    def test_ops_values_and_constants_are_those_that_were_written(self, pristine: Path) -> None:
        graph, interface = read_program(pristine).function()
        assert [op.type for op in graph.ops] == ["linear", "concat"]
        linear, concat = graph.ops
        weight = linear.inputs["weight"]
        assert not isinstance(weight, tuple) and isinstance(weight.data, np.ndarray)
        assert (weight.dtype, weight.shape) == ("float16", (64, 48))
        np.testing.assert_array_equal(weight.data, WEIGHTS)
        joined = concat.inputs["values"]
        assert isinstance(joined, tuple) and joined[0] is linear.outputs[0] and joined[1] is graph.inputs[1]
        assert [(f.name, f.dtype, f.shape) for f in interface.inputs] == [("x", "float16", (1, 48)), ("y", "float16", (1, 64))]
        assert graph.outputs[0] is concat.outputs[0] and graph.outputs[0].shape == (1, 128)

    def test_metadata_is_handed_on(self, pristine: Path) -> None:
        metadata = read_program(pristine).metadata
        assert (metadata.author, metadata.user["colour"]) == ("nobody", "blue")

    def test_a_digest_changes_with_the_weights_and_not_with_the_manifest(self, package: Path) -> None:
        before = package_digest(package)
        (package / "Manifest.json").write_text((package / "Manifest.json").read_text() + "\n")
        assert package_digest(package) == before
        weight_file(package).write_bytes(weight_file(package).read_bytes()[:-1] + b"\x01")
        assert package_digest(package) != before

    def test_a_function_that_does_not_exist_is_refused_with_those_that_do(self, pristine: Path) -> None:
        with pytest.raises(UnsupportedError, match="no function 'other'; it has main"):
            read_program(pristine).function("other")

    def test_neither_torch_nor_coremltools_is_imported(self, pristine: Path) -> None:
        code = (
            "import sys; sys.modules['torch'] = sys.modules['coremltools'] = None\n"
            "del sys.modules['coremltools']\n"
            "from coreflow.export.package.mlpackage import read_program\n"
            f"read_program({str(pristine)!r})\n"
            "assert 'coremltools' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_importing_coremltools_says_nothing(self) -> None:
        code = "from coreflow.export.package.coremltools_quiet import quiet_coremltools; print(quiet_coremltools().__version__)"
        result = subprocess.run([sys.executable, "-W", "default", "-c", code], check=True, capture_output=True, text=True)
        assert result.stderr == "" and result.stdout.count("\n") == 1


def cut_weights(package: Path) -> None:
    weight_file(package).write_bytes(weight_file(package).read_bytes()[:200])


def escape_by_manifest(package: Path) -> None:
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../elsewhere.mlmodel"
    (package / "Manifest.json").write_text(json.dumps(manifest))


def escape_by_link(package: Path) -> None:
    target = package.parent / "outside.bin"
    weight_file(package).rename(target)
    weight_file(package).symlink_to(target)


def set_blob(**fields: Any) -> Callable[[Path], None]:
    def damage(package: Path) -> None:
        def change(model: Any) -> None:
            for name, value in fields.items():
                setattr(weight_value(model).blobFileValue, name, value)

        edit(package, change)

    return damage


def in_spec(change: Callable[[Any], None]) -> Callable[[Path], None]:
    return lambda package: edit(package, change)


def dangle(model: Any) -> None:
    operation(model, "linear").inputs["x"].arguments[0].name = "nobody"


def close_a_cycle(model: Any) -> None:
    operation(model, "linear").inputs["x"].arguments[0].name = "joined"


def huge_weight(model: Any) -> None:
    for dimension in weight_value(model).type.tensorType.dimensions:
        dimension.constant.size = 40_000_000


def smaller_weight(model: Any) -> None:
    weight_value(model).type.tensorType.dimensions[1].constant.size = 47


def huge_value(model: Any) -> None:
    operation(model, "concat").outputs[0].type.tensorType.dimensions[0].constant.size = 10**15


def other_dtype(model: Any) -> None:
    weight_value(model).type.tensorType.dataType = 11


def short_immediate(model: Any) -> None:
    value = next(op for op in operations(model) if op.type == "const" and op.attributes["val"].type.tensorType.rank == 0)
    value.attributes["val"].immediateValue.tensor.ClearField("value")


def neural_network(model: Any) -> None:
    model.neuralNetwork.SetInParent()


def pipeline(model: Any) -> None:
    model.pipeline.SetInParent()


def future(model: Any) -> None:
    model.specificationVersion = 99


def renamed_input(model: Any) -> None:
    model.description.input[0].name = "z"


def no_opset(model: Any) -> None:
    model.mlProgram.functions["main"].opset = "CoreML99"


def rank_lie(model: Any) -> None:
    operation(model, "linear").outputs[0].type.tensorType.rank = 3


BROKEN: list[tuple[str, Callable[[Path], Any], str]] = [
    ("no package", shutil.rmtree, "no such package"),
    ("no manifest", lambda p: (p / "Manifest.json").unlink(), "no Manifest.json"),
    ("manifest is no JSON", lambda p: (p / "Manifest.json").write_text("{"), "does not name a model"),
    ("manifest is a list", lambda p: (p / "Manifest.json").write_text("[]"), "does not name a model"),
    ("manifest leaves the package", escape_by_manifest, "leaves the package"),
    ("no model file", lambda p: spec_file(p).unlink(), "cannot be read"),
    ("model file cut short", lambda p: spec_file(p).write_bytes(spec_file(p).read_bytes()[:-9]), "cut short"),
    ("model file is text", lambda p: spec_file(p).write_text("hello"), "no Core ML model"),
    ("model file is empty", lambda p: spec_file(p).write_bytes(b""), "no model"),
    ("weights missing", lambda p: weight_file(p).unlink(), "cannot be read"),
    ("weights cut short", cut_weights, "of a file of 200 bytes"),
    ("weights empty", lambda p: weight_file(p).write_bytes(b""), "cut short"),
    ("weights of another format", lambda p: weight_file(p).write_bytes(bytes(8192)), "format version 0"),
    ("weights are a link out", escape_by_link, "leaves the package"),
    ("weight offset outside", set_blob(offset=1 << 40), "points to byte"),
    ("weight offset within a weight", set_blob(offset=192), "no weight begins"),
    ("weight path leaves the package", set_blob(fileName="@model_path/../../../../secret.bin"), "leaves the package"),
    ("weight path absolute", set_blob(fileName="/etc/hostname"), "leaves the package"),
    ("weight of an absurd size", in_spec(huge_weight), "impossible shape"),
    ("weight of another size", in_spec(smaller_weight), r"has 6144 bytes; float16 \[64, 47\] needs 6016"),
    ("weight of another dtype", in_spec(other_dtype), "declares float32"),
    ("constant too short", in_spec(short_immediate), "0 elements"),
    ("dangling reference", in_spec(dangle), "refers to 'nobody'"),
    ("cyclic reference", in_spec(close_a_cycle), "refers to 'joined'"),
    ("absurd shape", in_spec(huge_value), "impossible shape"),
    ("rank and dimensions differ", in_spec(rank_lie), "impossible shape"),
    ("opset missing", in_spec(no_opset), "asks for opset 'CoreML99'"),
    ("neural network", in_spec(neural_network), "only mlProgram"),
    ("pipeline", in_spec(pipeline), "only mlProgram"),
    ("newer specification", in_spec(future), "version 99"),
    ("description of other inputs", in_spec(renamed_input), "description says"),
]


class TestRefusals:
    @pytest.mark.parametrize(("damage", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
    def test_a_broken_package_is_named_with_its_fault(self, package: Path, damage: Callable[[Path], Any], message: str) -> None:
        damage(package)
        with pytest.raises(BundleError, match=message) as caught:
            read_program(package)
        assert "small.mlpackage" in str(caught.value)

    @pytest.mark.parametrize("name", ["model.mlmodel", "model.mlmodelc"])
    def test_other_forms_of_a_model_are_refused(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(BundleError, match="package"):
            read_program(tmp_path / name)

    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    def test_random_damage_never_gets_past_a_coreflow_error(
        self, pristine: Path, tmp_path_factory: pytest.TempPathFactory, data: Any
    ) -> None:
        content = bytearray(spec_file(pristine).read_bytes())
        for _ in range(data.draw(st.integers(1, 8))):
            place = data.draw(st.integers(0, len(content) - 1))
            content[place] = data.draw(st.integers(0, 255))
        package = tmp_path_factory.getbasetemp() / "fuzzed.mlpackage"
        if not package.exists():
            shutil.copytree(pristine, package)
        spec_file(package).write_bytes(content)
        try:
            read_program(package)
        except CoreflowError as error:
            assert "fuzzed.mlpackage" in str(error)


def written_by_coremltools(path: Path, dtype: str, values: Array) -> int:
    """The offset at which coremltools' own writer put ``values``."""
    quiet_coremltools()
    from coremltools.converters.mil.mil import types
    from coremltools.libmilstoragepython import _BlobStorageWriter

    writer = _BlobStorageWriter(str(path), True)
    name = {"float16": "fp16", "float32": "float"}.get(dtype, dtype)
    stored: Any = values
    if dtype == "float16":
        stored = values.view(np.uint16)
    elif BLOB_DTYPES[dtype][1] < 8:
        stored = values.astype(getattr(types, f"np_{dtype}_dtype"))
    return int(getattr(writer, f"write_{name}_data")(stored))


def every_value(dtype: str, count: int) -> Array:
    _, bits, numpy_type = BLOB_DTYPES[dtype]
    if dtype.startswith("float"):
        return np.linspace(-3, 3, count).astype(numpy_type)
    low = -(1 << (bits - 1)) if dtype.startswith("int") else 0
    return (low + (np.arange(count) * 7) % (1 << bits)).astype(numpy_type)


class TestWeights:
    @pytest.mark.parametrize("dtype", BLOB_DTYPES)
    @pytest.mark.parametrize("count", [1, 13, 64])
    def test_every_element_type_reads_back_what_coremltools_wrote(self, tmp_path: Path, dtype: str, count: int) -> None:
        values = every_value(dtype, count)
        offset = written_by_coremltools(tmp_path / "weight.bin", dtype, values)
        read = WeightFile(tmp_path / "weight.bin", "weights").read(offset, dtype, (count,))
        assert read.dtype == BLOB_DTYPES[dtype][2]
        np.testing.assert_array_equal(read, values)

    @given(values=st.lists(st.integers(0, 63), min_size=1, max_size=40))
    def test_elements_of_less_than_a_byte_are_one_stream_of_bits(self, values: list[int]) -> None:
        stream = sum(value << (6 * place) for place, value in enumerate(values))
        packed = np.frombuffer(stream.to_bytes((6 * len(values) + 7) // 8, "little"), np.uint8)
        assert unpack(packed, "uint6", (len(values),)).tolist() == values

    def test_reading_a_weight_leaves_the_file_alone(self, tmp_path: Path) -> None:
        offset = written_by_coremltools(tmp_path / "weight.bin", "float32", np.ones(16, np.float32))
        before = (tmp_path / "weight.bin").read_bytes()
        WeightFile(tmp_path / "weight.bin", "weights").read(offset, "float32", (16,))[:] = 5
        assert (tmp_path / "weight.bin").read_bytes() == before

    def test_a_weight_reads_the_same_after_its_pages_were_given_back(self, tmp_path: Path) -> None:
        values = np.arange(4096, dtype=np.float32)
        offset = written_by_coremltools(tmp_path / "weight.bin", "float32", values)
        read = WeightFile(tmp_path / "weight.bin", "weights").read(offset, "float32", (64, 64))
        release_pages(read)
        np.testing.assert_array_equal(read.ravel(), values)
        release_pages(np.ones(3))  # nothing behind it: nothing happens

    def test_a_length_that_reaches_past_the_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "weight.bin"
        offset = written_by_coremltools(path, "float32", np.ones(16, np.float32))
        content = bytearray(path.read_bytes())
        struct.pack_into("<Q", content, offset + 16, len(content))
        path.write_bytes(content)
        with pytest.raises(BundleError, match="of a file of"):
            WeightFile(path, "weights").read(offset, "float32", (16,))
