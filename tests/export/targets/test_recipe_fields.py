"""What a recipe says beyond inputs and outputs is in the saved package, and computes there what torch computes."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from coreflow.export import ImageSpec, Range, Recipe, TensorSpec, build
from coreflow.export.package.mlpackage import read_program
from coreflow.export.package.weights import Blob, WeightFile, write_blobs
from coreflow.export.states import warn_of_states
from coreflow.export.targets.functions import stored_twice
from coreflow.models.arrays import Array
from coreflow.models.errors import ConfigError, ExportError, InputError
from coreflow.runtime import load_model
from coreflow.runtime.backend import Model


def assert_close(actual: Any, reference: Any, rtol: float = 5e-3, atol: float = 5e-3) -> None:
    np.testing.assert_allclose(actual, reference, rtol=rtol, atol=atol)


class Head(nn.Module):
    """A linear layer, a norm and a softmax."""

    def __init__(self, linear: nn.Linear, scale: float = 1.0) -> None:
        super().__init__()
        self.linear, self.norm, self.scale = linear, nn.LayerNorm(linear.out_features), scale

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(self.linear(x)) * self.scale).softmax(-1)


def head(scale: float = 1.0, size: int = 64) -> Head:
    torch.manual_seed(0)
    return Head(nn.Linear(16, size), scale).eval()


def numbers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).uniform(-1, 1, shape).astype(np.float16)


def torch_of(module: nn.Module, *arrays: Array) -> Array:
    with torch.no_grad():
        return np.asarray(module(*(torch.from_numpy(array).float() for array in arrays)))


def built(folder: Path, function_name: str | None = None, **fields: Any) -> Model:
    return load_model(build(Recipe(**{"name": "head", "outputs": ("y",)} | fields), folder), "lifted", function_name=function_name)


@pytest.mark.parametrize(
    ("shapes", "batches", "refused"),
    [([(1, 16), (5, 16)], (2, 1, 5), 3), ((Range(1, 6), 16), (1, 2, 3, 6), 7)],
    ids=["list", "range"],
)
def test_every_shape_computes_what_torch_does_and_others_are_refused(tmp_path: Path, shapes: Any, batches: Any, refused: int) -> None:
    module = head()
    model = built(tmp_path, module=module, inputs={"x": TensorSpec((2, 16))}, shapes={"x": shapes})
    for batch in batches:
        x = numbers(batch, 16)
        assert_close(model.predict({"x": x})["y"], torch_of(module, x))
    with pytest.raises(InputError, match="expected shape"):
        model.predict({"x": numbers(refused, 16)})


def test_a_shape_that_the_trace_freezes_is_refused(tmp_path: Path) -> None:
    class Frozen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.shape[0])

    with pytest.raises(ExportError, match="traced on one input, 'y' is wrong on another"):
        build(
            Recipe(name="frozen", module=Frozen(), inputs={"x": TensorSpec((2, 4))}, outputs=("y",), shapes={"x": [(3, 4)]}),
            tmp_path,
        )


def test_inputs_that_share_a_named_range_change_together(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (x @ y.transpose(1, 2)).softmax(-1)

    length = Range(1, 9, "length")
    specs = {"x": TensorSpec((1, 4, 8)), "y": TensorSpec((1, 4, 8))}
    model = built(tmp_path, module=Sum(), inputs=specs, outputs=("z",), shapes=dict.fromkeys(specs, (1, length, 8)))
    x, y = numbers(1, 7, 8), numbers(1, 7, 8)
    assert_close(model.predict({"x": x, "y": y})["z"], torch_of(Sum(), x, y))


def test_a_classifier_says_the_label_that_torch_finds_likeliest(tmp_path: Path) -> None:
    module, labels = head(size=5), ("ant", "bee", "cat", "dog", "eel")
    model = built(tmp_path, module=module, inputs={"x": TensorSpec((1, 16))}, labels=labels)
    for seed in range(4):
        x = np.random.default_rng(seed).uniform(-1, 1, (1, 16)).astype(np.float16)
        outputs, reference = model.predict({"x": x}), torch_of(module, x)[0]
        assert outputs["classLabel"] == labels[reference.argmax()]
        assert_close([outputs["classLabel_probs"][label] for label in labels], reference)


def test_labels_that_are_not_as_many_as_the_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"2 labels for 'y', float16 \[1, 5\]; the first output needs floats of shape \[1, 2\]"):
        built(tmp_path, module=head(size=5), inputs={"x": TensorSpec((1, 16))}, labels=("ant", "bee"))


class Pixels(nn.Module):
    """The pixels as the module gets them."""

    def forward(self, photo: Tensor) -> Tensor:
        return photo * 1


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGES = {
    "mean and std": (ImageSpec.of(6, 4, mean=MEAN, std=STD), lambda pixels: (pixels / 255 - np.array(MEAN)) / np.array(STD)),
    "BGR": (ImageSpec.of(6, 4, "BGR", scale=1 / 127.5, bias=-1), lambda pixels: pixels[..., ::-1] / 127.5 - 1),
    "as they are": (ImageSpec.of(6, 4), lambda pixels: pixels),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_picture_is_preprocessed_to_one_unit_in_255(tmp_path: Path, name: str) -> None:
    spec, preprocess = IMAGES[name]
    model = built(tmp_path, module=Pixels(), inputs={"photo": spec})
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3)).astype(np.uint8)
    reference = preprocess(pixels.astype(np.float64)).transpose(2, 0, 1)[None]
    unit = np.abs(np.array(spec.scale)).reshape(1, -1, 1, 1)
    assert np.abs((model.predict({"photo": Image.fromarray(pixels)})["y"] - reference) / unit).max() <= 1


class Accumulator(nn.Module):
    """A sum over calls that fades, and a row of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(1, 32))
        self.register_buffer("table", torch.zeros(1, 4, 32))

    def forward(self, x: Tensor) -> Tensor:
        total, table = self.get_buffer("total"), self.get_buffer("table")
        total.mul_(0.5).add_(x)
        table[:, 1:2] = total[:, None] * 2
        return total + table.sum(1)


STATEFUL: dict[str, Any] = {"inputs": {"x": TensorSpec((1, 32))}, "states": ("total", "table"), "target": "iOS18"}


def test_states_are_kept_between_predictions_as_torch_keeps_its_buffers(tmp_path: Path) -> None:
    module, kept = Accumulator(), Accumulator()
    model = built(tmp_path, module=module, **STATEFUL)
    assert not module.get_buffer("total").any(), "the export leaves the buffers as they were"
    state = model.make_state()
    for seed in range(4):
        x = np.random.default_rng(seed).uniform(-1, 1, (1, 32)).astype(np.float16)
        assert_close(model.predict({"x": x}, state)["y"], torch_of(kept, x))
    assert_close(state.read("table"), kept.get_buffer("table").numpy())


class Named(nn.Module):
    """The same, with its result by name: what is traced is a module around it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = Accumulator(), nn.LayerNorm(32)

    def forward(self, *, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.norm(self.inner(x))}


def test_states_and_submodules_keep_their_names_in_a_module_that_is_called_by_name(tmp_path: Path) -> None:
    module, kept = Named(), Named()
    model = built(tmp_path, module=module, **STATEFUL | {"states": ("inner.total", "inner.table")}, compute_dtype={"norm": "fp32"})
    assert sorted(model.states) == ["inner_table", "inner_total"]
    state = model.make_state()
    for seed in range(3):
        x = np.random.default_rng(seed).uniform(-1, 1, (1, 32)).astype(np.float16)
        with torch.no_grad():
            reference = kept(x=torch.from_numpy(x).float())["y"].numpy()
        assert_close(model.predict({"x": x}, state)["y"], reference)


def test_buffers_that_forward_changes_and_states_that_it_does_not_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"changes the buffer table, .* states=\('table',\)"):
        built(tmp_path, module=Accumulator(), **STATEFUL | {"states": ("total",)})
    still = Accumulator()
    still.register_buffer("other", torch.zeros(3))
    with pytest.raises(ExportError, match="does not write into the state other"):
        built(tmp_path, module=still, **STATEFUL | {"states": ("total", "table", "other")})


def test_states_that_the_engine_was_seen_to_refuse_are_warned_of() -> None:
    module = Accumulator()
    for name, width in (("narrow", 20), ("third", 64)):
        module.register_buffer(name, torch.zeros(1, width))
    recipe = Recipe(name="sums", module=module, outputs=("y",), **STATEFUL | {"states": ("total", "table", "narrow")})
    assert [line.partition(":")[0] for line in warn_of_states(recipe)] == ["state 'narrow' of width 20", "3 states"]


class Replacing(nn.Module):
    """A state for which forward puts another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(1, 32))

    def forward(self, x: Tensor) -> Tensor:
        self.total = self.get_buffer("total") + x
        return self.total * 2


def test_a_state_that_forward_replaces_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"puts another tensor in the place of the state total; .*self\.total\.copy_\("):
        built(tmp_path, module=Replacing(), **STATEFUL | {"states": ("total",)})


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Head, Head]:
    """A package of two functions over the same large weights, one of them alone, and the modules."""
    torch.manual_seed(0)
    linear = nn.Linear(16, 4096)
    many, one = Head(linear).eval(), Head(linear, 3.0).eval()
    folder = tmp_path_factory.mktemp("functions")
    step = Recipe(name="step", module=one, inputs={"x": TensorSpec((1, 16), bounds=(-1, 1))}, outputs=("y",), target="iOS18")
    fields: dict[str, Any] = {"module": many, "inputs": {"x": TensorSpec((8, 16), bounds=(-2, 2))}, "outputs": ("y",), "target": "iOS18"}
    metadata = {"author": "Jane Doe", "licence": "Apache-2.0", "version": "1.2", "corpus": "wiki"}
    both = build(Recipe(name="prefill", **fields, functions=(step,), metadata=metadata), folder)
    return both, build(Recipe(name="alone", **fields), folder), many, one


def test_functions_compute_what_their_modules_do(functions: tuple[Path, Path, Head, Head]) -> None:
    package, _, many, one = functions
    for name, module, batch in ((None, many, 8), ("prefill", many, 8), ("step", one, 1)):
        x, model = numbers(batch, 16), load_model(package, "lifted", function_name=name)
        assert_close(model.predict({"x": x})["y"], torch_of(module, x), rtol=2e-2, atol=1e-4)
    assert load_model(package, "lifted", function_name="step").inputs["x"].bounds == (-1, 1)


def test_functions_share_their_weights(functions: tuple[Path, Path, Head, Head]) -> None:
    package, alone, *_ = functions
    assert stored_twice(read_program(package)) == []
    both, one = (sum(file.stat().st_size for file in path.rglob("weight.bin")) for path in (package, alone))
    assert both <= 1.01 * one


def test_weights_that_are_stored_twice_are_found(functions: tuple[Path, Path, Head, Head], tmp_path: Path) -> None:
    program = read_program(functions[1])
    graph, _ = program.function()
    first = next(value for value in graph.constants if value.name == "linear_weight_to_fp16")
    assert isinstance(first.data, np.ndarray)
    blob = Blob(1, 0, np.ascontiguousarray(first.data).view(np.uint8).reshape(-1))
    offset, *_ = write_blobs(tmp_path / "weight.bin", [blob])
    copied = WeightFile(tmp_path / "weight.bin", "copy").read(offset, "float16", first.data.shape)
    twice = replace(graph, constants=(*graph.constants, replace(first, name="copied", data=copied)))
    assert stored_twice(program) == [] and stored_twice(program.with_function(twice)) == ["copied"]


def test_a_package_carries_the_metadata_of_its_recipe(functions: tuple[Path, Path, Head, Head]) -> None:
    metadata = read_program(functions[0]).metadata
    assert (metadata.author, metadata.licence, metadata.version, metadata.user["corpus"]) == ("Jane Doe", "Apache-2.0", "1.2", "wiki")


def test_submodules_compute_in_fp32_where_the_recipe_says_so(tmp_path: Path) -> None:
    model = built(tmp_path, module=head(), inputs={"x": TensorSpec((1, 16))}, compute_dtype={"norm": "fp32"})
    dtypes = {op.type: op.outputs[0].dtype for op in read_program(tmp_path / "head.mlpackage").function()[0].ops if op.type != "cast"}
    assert dtypes["layer_norm"] == "float32" and dtypes["linear"] == "float16" == dtypes["softmax"], Counter(dtypes)
    assert model.outputs["y"].dtype == "float16"


def test_a_submodule_that_the_converter_cannot_tell_from_another_is_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.ModuleList([nn.Linear(4, 4)]), nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, x: Tensor) -> Tensor:
            return self.right[0](self.left[0](x))

    with pytest.raises(ConfigError, match=r"compute_dtype of 'left\.0': the converter cannot tell it from right\.0"):
        built(tmp_path, module=Two(), inputs={"x": TensorSpec((1, 4))}, compute_dtype={"left.0": "fp32"})
