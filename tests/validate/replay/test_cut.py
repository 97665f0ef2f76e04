"""An op cut out of a package is a package of its own and gives, on what entered the op, what the op gave."""

import gc
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.cut_plan import plan_cut
from coreflow.export.package.edit import CUT_KEY, cut
from coreflow.export.package.graph import Op
from coreflow.export.package.mlpackage import package_digest, read_program
from coreflow.export.package.weights import BLOB_DTYPES, WeightFile, packed_bytes, write_blobs
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Array
from coreflow.models.draws import draw_inputs
from coreflow.models.errors import ConfigError, ExportError, InputError, UnsupportedError
from coreflow.models.spec import BOUNDS_KEY, VALUES_KEY, TensorSpec
from coreflow.runtime.backend import LoadOptions, NumericsName
from coreflow.runtime.lifted import LiftedModel
from coreflow.runtime.load import load_model
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.replay.cut import record_inputs

if TYPE_CHECKING:
    from tests.validate.conftest import Converted

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """``save(opset, specs, body)``: a package of a MIL program, its ops as they were built."""

    def make(opset: str, specs: Any, body: Callable[..., Any]) -> Path:
        ct = quiet_coremltools()
        from coremltools.converters.mil.mil import Builder

        program = Builder.program(input_specs=specs, opset_version=getattr(ct.target, opset))(body)
        path = tmp_path_factory.mktemp("packages") / "made.mlpackage"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # coremltools leaves its temporary folder to the garbage collector
            model = ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=getattr(ct.target, opset),
                skip_model_load=True,
                pass_pipeline=ct.PassPipeline.EMPTY,
            )
            model.save(str(path))
            del model
            gc.collect()
        return path

    return make


def sample_for(package: Path) -> Sample:
    return Sample(label="drawn", inputs=draw_inputs(load_model(package, "lifted").inputs, 3))


def observed(package: Path, sample: Sample, numerics: NumericsName = "fp16") -> dict[str, list[Array]]:
    """Results of every op in the whole program, by the name of its first output."""
    results_of: dict[str, list[Array]] = {}

    def keep(op: Op, results: tuple[Any, ...]) -> None:
        if op.outputs and all(isinstance(result, Tensor) for result in results):
            results_of[op.outputs[0].name] = [result.numpy().copy() for result in results]

    model = LiftedModel(read_program(package), LoadOptions(numerics=numerics, engine="interpreter"))
    model.predict(sample.inputs, model.make_state() if model.states else None, observe=keep)
    return results_of


def assert_same(package: Path, op: str, out: Path, sample: Sample, *, radius: int = 0, numerics: NumericsName = "fp16") -> Path:
    """Cut, feed what entered, and compare every bit of what is seen when ops are looked at."""
    made = cut(package, op, out, radius)
    model = LiftedModel(read_program(made), LoadOptions(numerics=numerics, engine="interpreter"))
    results = model.predict(record_inputs(package, op, sample, numerics, radius=radius), observe=lambda op, results: None)
    for (name, result), expected in zip(results.items(), observed(package, sample, numerics)[op], strict=True):
        np.testing.assert_array_equal(result, expected.reshape(result.shape), err_msg=f"{op}: {name}")
    return made


def ops_of(package: Path) -> list[Op]:
    return [op for op in read_program(package).function()[0].ops if not op.type.startswith("constexpr_")]


class Convolutions(nn.Module):
    """Convolutions of three kinds, pooling, resizing, a concatenation and two results."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.up = nn.BatchNorm2d(8), nn.ConvTranspose2d(16, 4, 2, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        grown = self.norm(self.first(x)).relu()
        pooled = nn.functional.max_pool2d(grown, 2)
        joined = torch.cat([pooled, nn.functional.silu(self.deep(pooled))], 1)
        return self.up(joined), grown.mean((2, 3))


class Lookup(nn.Module):
    """Rows of a table, those of one mask, their largest and its place."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(50, 16), nn.Linear(16, 16)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.where(mask[..., None] > 0.5, self.mix(self.table(ids)), torch.zeros(()))
        return rows.softmax(-1).cumsum(1), rows.argmax(-1).int()


RECIPES = {
    "convolutions": (Convolutions, {"x": TensorSpec((1, 3, 8, 8))}, ("image", "means")),
    "lookup": (Lookup, {"ids": TensorSpec((1, 6), "int32", (0, 49)), "mask": TensorSpec((1, 6), values=(0, 1))}, ("sums", "places")),
}


@pytest.fixture(scope="module")
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    module, inputs, outputs = RECIPES[request.param]
    return build(Recipe(name=request.param, module=module().eval(), inputs=inputs, outputs=outputs), tmp_path_factory.mktemp("built"))


class TestEveryOp:
    def test_of_a_transformer(self, converted: "Converted", tmp_path: Path) -> None:
        sample, seen = sample_for(converted.package), set()
        for op in ops_of(converted.package):
            if (op.type, tuple(value.shape for value in op.input_values())) not in seen:
                seen.add((op.type, tuple(value.shape for value in op.input_values())))
                assert_same(converted.package, op.outputs[0].name, tmp_path / f"{op.outputs[0].name}.mlpackage", sample)
        assert {"layer_norm", "linear", "matmul", "softmax", "gelu"} <= {kind for kind, _ in seen}

    @pytest.mark.parametrize("package", RECIPES, indirect=True)
    @pytest.mark.parametrize("radius", [0, 2])
    def test_of_other_networks(self, package: Path, radius: int, tmp_path: Path) -> None:
        sample, kinds = sample_for(package), {op.type for op in ops_of(package)}
        assert {"conv", "max_pool", "concat", "conv_transpose"} <= kinds or {"gather", "linear", "select", "cumsum"} <= kinds
        for op in ops_of(package):
            assert_same(package, op.outputs[0].name, tmp_path / f"{op.outputs[0].name}.mlpackage", sample, radius=radius)

    @pytest.mark.slow
    @pytest.mark.parametrize("stage", ["encoder", "mapper_in", "lattice_step", "mapper_out", "decoder_memory", "decoder_step"])
    def test_of_a_stage(self, stage: str, exported: Path, tmp_path: Path) -> None:
        package = next((exported / "bundle").glob(f"packages/{stage}.mlpackage"))
        sample = sample_for(package)
        for place, op in enumerate(ops_of(package)[::4]):
            assert_same(package, op.outputs[0].name, tmp_path / f"{place}.mlpackage", sample)


def test_other_numerics_give_the_same_where_the_program_is_fp32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = Recipe(name="net", module=nn.Linear(8, 4), inputs={"x": TensorSpec((2, 8), "float32")}, outputs=("y",), precision="fp32")
    package = build(recipe, tmp_path)
    op = next(op for op in ops_of(package) if op.type == "linear")
    assert_same(package, op.outputs[0].name, tmp_path / "cut.mlpackage", sample_for(package), numerics="fp32")


class TestWhatIsTaken:
    def test_a_radius_takes_the_ops_before_and_no_others(self, converted: "Converted", tmp_path: Path) -> None:
        program = read_program(converted.package)
        softmax = next(op for op in ops_of(converted.package) if op.type == "softmax")
        sizes = [len(plan_cut(program, softmax.name, radius).ops) for radius in range(5)]
        assert sizes[0] == 1 and sizes == sorted(set(sizes))
        assert plan_cut(program, softmax.name, 1000).inputs[0].value.name == "x"
        made = assert_same(converted.package, softmax.name, tmp_path / "cut.mlpackage", sample_for(converted.package), radius=3)
        (result,) = read_program(made).function()[1].outputs
        assert result.name == softmax.outputs[0].name

    def test_only_the_weights_of_the_op_are_copied_byte_for_byte(self, converted: "Converted", tmp_path: Path) -> None:
        linear = next(op for op in ops_of(converted.package) if op.type == "linear")
        made = cut(converted.package, linear.name, tmp_path / "cut.mlpackage")
        (again,) = ops_of(made)
        for name in ("weight", "bias"):
            saved, cut_out = linear.inputs[name], again.inputs[name]
            assert not isinstance(saved, tuple) and not isinstance(cut_out, tuple)
            np.testing.assert_array_equal(cut_out.data, saved.data)
        sizes = [next(path.rglob("weight.bin")).stat().st_size for path in (made, converted.package)]
        assert sizes[0] < 64 * 64 * 2 + 64 * 2 + 6 * 64 < sizes[1] / 10

    def test_an_op_without_weights_has_no_weight_file(self, converted: "Converted", tmp_path: Path) -> None:
        softmax = next(op for op in ops_of(converted.package) if op.type == "softmax")
        made = cut(converted.package, softmax.name, tmp_path / "cut.mlpackage")
        assert sorted(file.name for file in made.rglob("*") if file.is_file()) == ["Manifest.json", "model.mlmodel"]

    @pytest.mark.parametrize("package", ["lookup"], indirect=True)
    def test_the_cut_says_where_it_comes_from_and_keeps_the_bounds_of_inputs(self, package: Path, tmp_path: Path) -> None:
        gather = next(op for op in ops_of(package) if op.type == "gather")
        made = read_program(cut(package, gather.name, tmp_path / "cut.mlpackage", 1))
        origin = json.loads(made.metadata.user[CUT_KEY])
        assert origin == {"package": package.name, "digest": package_digest(package), "op": gather.name, "radius": 1}
        assert json.loads(made.metadata.user[BOUNDS_KEY]) == {"ids": [0, 49]}
        assert gather.name in made.metadata.description

    @pytest.mark.parametrize("package", ["lookup"], indirect=True)
    def test_the_cut_keeps_the_values_of_inputs(self, package: Path, tmp_path: Path) -> None:
        reader = next(op for op in ops_of(package) if any(value.name == "mask" for value in op.input_values()))
        made = read_program(cut(package, reader.name, tmp_path / "cut.mlpackage"))
        assert json.loads(made.metadata.user[VALUES_KEY]) == {"mask": [0, 1]}

    def test_an_op_is_found_by_its_output_too(self, converted: "Converted") -> None:
        program = read_program(converted.package)
        op = ops_of(converted.package)[3]
        assert plan_cut(program, op.outputs[0].name).op is plan_cut(program, op.name).op


def compressed_in_attributes(save: Save) -> Path:
    from coremltools.converters.mil.mil import Builder, types

    random = np.random.default_rng(0)
    packed, table = random.integers(0, 256, 32 * 64 // 2).astype(np.uint8), random.standard_normal(16).astype(np.float16)

    def body(x: Any) -> Any:
        weight = Builder.constexpr_lut_to_dense(indices=packed, lut=table, shape=np.array([32, 64], np.uint32))
        return Builder.relu(x=Builder.linear(x=x, weight=weight, bias=np.zeros(32, np.float16), name="product"))

    return save("iOS16", [Builder.TensorSpec((1, 64), dtype=types.fp16)], body)


def compressed_in_inputs(save: Save) -> Path:
    """A table that is itself quantised: a constant expression that reads another."""
    from coremltools.converters.mil.mil import Builder, types

    random = np.random.default_rng(0)
    indices = random.integers(0, 16, (32, 64)).astype(types.np_uint4_dtype)
    table, scale = random.integers(-128, 128, (1, 1, 16, 1)).astype(np.int8), np.full((1, 1, 1, 1), 0.01, np.float16)

    def body(x: Any) -> Any:
        lut = Builder.constexpr_blockwise_shift_scale(data=table, scale=scale)
        weight = Builder.constexpr_lut_to_dense(indices=indices, lut=lut)
        return Builder.relu(x=Builder.linear(x=x, weight=weight, bias=np.zeros(32, np.float16), name="product"))

    return save("iOS18", [Builder.TensorSpec((1, 64), dtype=types.fp16)], body)


@pytest.mark.parametrize("make", [compressed_in_attributes, compressed_in_inputs], ids=["iOS16", "iOS18"])
def test_compressed_weights_stay_compressed(make: Callable[[Save], Path], save: Save, tmp_path: Path) -> None:
    package = make(save)
    made = assert_same(package, "product", tmp_path / "cut.mlpackage", sample_for(package))
    expressions = [op.type for op in read_program(made).function()[0].ops if op.type.startswith("constexpr_")]
    assert expressions == [op.type for op in read_program(package).function()[0].ops if op.type.startswith("constexpr_")] != []
    assert next(made.rglob("weight.bin")).stat().st_size < 32 * 64 * 2 / 2
    with pytest.raises(UnsupportedError, match="nothing but constants enters it"):
        cut(package, read_program(package).function()[0].ops[0].name, tmp_path / "other.mlpackage")


def of_other_types(save: Save) -> Path:
    """Values that no feature holds: booleans, 16-bit ids, scalars, and a scalar that is a boolean."""
    from coremltools.converters.mil.mil import Builder, types

    table = np.arange(40, dtype=np.float16).reshape(10, 4)

    def body(x: Any) -> Any:
        above = Builder.greater(x=x, y=np.float16(0), name="above")
        either = Builder.logical_or(x=above, y=Builder.logical_not(x=above, name="below"), name="either")
        kept = Builder.select(cond=either, a=x, b=np.float16(-1), name="kept")
        most = Builder.reduce_max(x=kept, axes=[0], keep_dims=False, name="most")
        scaled = Builder.mul(x=kept, y=most, name="scaled")
        place = Builder.reduce_argmax(x=scaled, axis=0, keep_dims=True, name="place")
        row = Builder.gather(
            x=table, indices=Builder.cast(x=place, dtype="int16", name="short"), axis=0, validate_indices=False, name="row"
        )
        positive = Builder.greater(x=most, y=np.float16(0), name="positive")
        chosen = Builder.cond(
            pred=positive, _true_fn=lambda: Builder.mul(x=row, y=most), _false_fn=lambda: Builder.add(x=row, y=np.float16(1)), name="chosen"
        )
        return Builder.add(x=chosen, y=np.float16(0.5), name="result")

    return save("iOS17", [Builder.TensorSpec((4,), dtype=types.fp16)], body)


class TestTheBorder:
    @pytest.mark.parametrize("radius", [0, 1])
    def test_values_that_no_feature_holds_are_converted_there(self, radius: int, save: Save, tmp_path: Path) -> None:
        package = of_other_types(save)
        sample = sample_for(package)
        for op in ops_of(package):
            assert_same(package, op.outputs[0].name, tmp_path / f"{op.outputs[0].name}.mlpackage", sample, radius=radius)

    def test_values_that_cross_unchanged_keep_their_names(self, save: Save, tmp_path: Path) -> None:
        package = of_other_types(save)

        def features(op: str) -> list[list[tuple[str, str, tuple[int, ...]]]]:
            interface = read_program(cut(package, op, tmp_path / f"{op}.mlpackage")).function()[1]
            return [[(feature.name, feature.dtype, feature.shape) for feature in side] for side in (interface.inputs, interface.outputs)]

        assert features("kept") == [[("x", "float16", (4,)), ("either_as_int32", "int32", (4,))], [("kept", "float16", (4,))]]
        assert features("above") == [[("x", "float16", (4,))], [("above_as_int32", "int32", (4,))]]
        assert features("row") == [[("short_as_int32", "int32", (1,))], [("row", "float16", (1, 4))]]
        assert features("most") == [[("kept", "float16", (4,))], [("most_as_vector", "float16", (1,))]]
        assert features("positive") == [[("most_as_vector", "float16", (1,))], [("positive_as_int32", "int32", (1,))]]
        (chosen,) = {name for name, *_ in features("chosen")[0]} ^ {"row", "most_as_vector"}
        assert chosen == "positive_as_int32"

    def test_before_ios16_fp16_values_cross_as_fp32(self, save: Save, tmp_path: Path) -> None:
        from coremltools.converters.mil.mil import Builder, types

        def body(x: Any) -> Any:
            rounded = Builder.tanh(x=Builder.cast(x=x, dtype="fp16"), name="half")
            return Builder.cast(x=Builder.exp(x=rounded, name="grown"), dtype="fp32")

        package = save("iOS15", [Builder.TensorSpec((2, 3), dtype=types.fp32)], body)
        made = assert_same(package, "grown", tmp_path / "cut.mlpackage", sample_for(package))
        interface = read_program(made).function()[1]
        assert [(feature.name, feature.dtype) for feature in (*interface.inputs, *interface.outputs)] == [
            ("half_as_float32", "float32"),
            ("grown_as_float32", "float32"),
        ]

    def test_inf_that_enters_is_refused_and_a_radius_goes_back_to_its_op(self, save: Save, tmp_path: Path) -> None:
        from coremltools.converters.mil.mil import Builder, types

        def body(x: Any) -> Any:
            return Builder.tanh(x=Builder.exp(x=Builder.mul(x=x, y=np.float16(1000), name="large"), name="grown"), name="last")

        package = save("iOS17", [Builder.TensorSpec((3,), dtype=types.fp16)], body)
        sample = Sample(label="ones", inputs={"x": np.ones(3, np.float16)})
        with pytest.raises(InputError, match="tanh 'last' reads 'grown', which holds NaN or inf; cut with a larger radius"):
            record_inputs(package, "last", sample)
        assert_same(package, "last", tmp_path / "cut.mlpackage", sample, radius=1)


class TestOracles:
    """coremltools reads what was written."""

    @pytest.mark.parametrize("make", [of_other_types, compressed_in_attributes, compressed_in_inputs])
    @pytest.mark.parametrize("radius", [0, 2])
    def test_its_loader_infers_the_types_that_were_declared(
        self, make: Callable[[Save], Path], radius: int, save: Save, tmp_path: Path
    ) -> None:
        ct = quiet_coremltools()
        from coremltools.converters.mil.frontend.milproto.load import load

        package = make(save)
        for op in ops_of(package):
            path = cut(package, op.outputs[0].name, tmp_path / f"{op.outputs[0].name}.mlpackage", radius)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = ct.models.MLModel(str(path), skip_model_load=True)
                loaded = load(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
            graph = read_program(path).function()[0]
            assert [op.op_type for op in loaded.functions["main"].operations if op.op_type != "const"] == [op.type for op in graph.ops]
            assert [value.name for value in loaded.functions["main"].outputs] == [value.name for value in graph.outputs]
            assert [tuple(value.shape) for value in loaded.functions["main"].outputs] == [value.shape for value in graph.outputs]

    @pytest.mark.parametrize("dtype", BLOB_DTYPES)
    def test_its_reader_finds_the_weights_that_were_copied(self, dtype: str, tmp_path: Path) -> None:
        quiet_coremltools()
        from coremltools.converters.mil.mil import types
        from coremltools.libmilstoragepython import _BlobStorageReader, _BlobStorageWriter

        _, bits, numpy_type = BLOB_DTYPES[dtype]
        values = (np.arange(13) % (1 << min(bits, 3))).astype(numpy_type)
        name = {"float16": "fp16", "float32": "float"}.get(dtype, dtype)
        stored: Any = values.view(np.uint16) if dtype == "float16" else values
        if bits < 8:
            stored = values.astype(getattr(types, f"np_{dtype}_dtype"))
        writer = _BlobStorageWriter(str(tmp_path / "weight.bin"), True)
        writer.write_float_data(np.zeros(5, np.float32))
        offset = int(getattr(writer, f"write_{name}_data")(stored))
        del writer
        blob = WeightFile(tmp_path / "weight.bin", "weights").blob(offset)
        assert blob.content.nbytes == packed_bytes(dtype, 13)
        offsets = write_blobs(tmp_path / "copy.bin", [blob, blob])
        for offset in offsets:
            read = getattr(_BlobStorageReader(str(tmp_path / "copy.bin")), f"read_{name}_data")(offset)
            np.testing.assert_array_equal(np.asarray(read, stored.dtype), stored)


class TestRefusals:
    def test_an_op_that_is_not_there_is_named_with_those_like_it(self, converted: "Converted", tmp_path: Path) -> None:
        op = ops_of(converted.package)[-1]
        with pytest.raises(ConfigError, match=rf"no op '{op.name}x'; did you mean {op.name}"):
            cut(converted.package, f"{op.name}x", tmp_path / "cut.mlpackage")
        with pytest.raises(ConfigError, match="radius -1; 0 takes the op alone"):
            cut(converted.package, op.name, tmp_path / "cut.mlpackage", -1)

    def test_an_op_in_a_block_is_refused_with_the_op_around_it(self, save: Save, tmp_path: Path) -> None:
        package = of_other_types(save)
        cond = next(op for op in ops_of(package) if op.type == "cond")
        inner = cond.blocks[0].ops[0].name
        with pytest.raises(UnsupportedError, match=rf"'{inner}' is in a block of cond 'chosen'; cut that one, whole"):
            cut(package, inner, tmp_path / "cut.mlpackage")

    def test_states_stay_outside(self, save: Save, tmp_path: Path) -> None:
        from coremltools.converters.mil.mil import Builder, types

        def body(x: Any, total: Any) -> Any:
            current = Builder.read_state(input=total, name="held")
            return Builder.mul(x=Builder.add(x=current, y=x, name="sum"), y=np.float16(2), name="twice")

        specs = [Builder.TensorSpec((2,), dtype=types.fp16), Builder.StateTensorSpec((2,), dtype=types.fp16)]
        package = save("iOS18", specs, body)
        with pytest.raises(UnsupportedError, match="'held' cannot be cut out: 'total' is a state, no tensor"):
            cut(package, "held", tmp_path / "cut.mlpackage")
        sample = Sample(label="x", inputs={"x": np.array([1, 2], np.float16)})
        made = assert_same(package, "twice", tmp_path / "cut.mlpackage", sample, radius=5)
        assert [feature.name for feature in read_program(made).function()[1].inputs] == ["x", "held"]

    def test_an_open_shape_that_enters_is_refused(self, save: Save, tmp_path: Path) -> None:
        from coremltools.converters.mil.mil import Builder, types

        def body(x: Any) -> Any:
            places = Builder.non_zero(x=x, name="places")
            return Builder.reduce_max(x=places, axes=[0], keep_dims=True, name="last")

        package = save("iOS17", [Builder.TensorSpec((6,), dtype=types.fp16)], body)
        with pytest.raises(UnsupportedError, match="places, which enters it, has a shape that only a prediction tells"):
            cut(package, "last", tmp_path / "cut.mlpackage")
        sample = Sample(label="x", inputs={"x": np.array([0, 1, 0, 2, 3, 0], np.float16)})
        assert_same(package, "places", tmp_path / "places.mlpackage", sample)

    def test_nothing_is_overwritten_and_nothing_half_done_stays(self, converted: "Converted", tmp_path: Path) -> None:
        softmax = next(op for op in ops_of(converted.package) if op.type == "softmax")
        made = cut(converted.package, softmax.name, tmp_path / "cut.mlpackage")
        digest = package_digest(made)
        with pytest.raises(ExportError, match="exists already"):
            cut(converted.package, softmax.name, made)
        with pytest.raises(ConfigError, match=r"NAME\.mlpackage"):
            cut(converted.package, softmax.name, tmp_path / "cut")
        (tmp_path / "file").write_text("")
        with pytest.raises(ExportError, match="could not be written"):
            cut(converted.package, softmax.name, tmp_path / "file" / "cut.mlpackage")
        assert package_digest(made) == digest and sorted(path.name for path in tmp_path.iterdir()) == ["cut.mlpackage", "file"]

    def test_the_same_cut_has_the_same_bytes_in_every_process(self, converted: "Converted", tmp_path: Path) -> None:
        op = next(op for op in ops_of(converted.package) if op.type == "linear")
        made = [cut(converted.package, op.name, tmp_path / "here.mlpackage", 4)]
        for seed in ("1", "2"):
            made.append(tmp_path / f"{seed}.mlpackage")
            code = f"from coreflow.export.package.edit import cut; cut({str(converted.package)!r}, {op.name!r}, {str(made[-1])!r}, 4)"
            subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        contents = [{file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()} for folder in made]
        assert contents[0] == contents[1] == contents[2]
