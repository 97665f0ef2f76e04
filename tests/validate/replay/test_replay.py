"""A failing sample in a file of its own fails again, for the same cause, and the file can neither run code nor reach out."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from coreflow.export.package.manifest import COMPANIONS, read_manifest
from coreflow.export.recipe import Recipe
from coreflow.export.run import stage_recipes
from coreflow.models.arrays import Array
from coreflow.models.energy.stages import energy_stages
from coreflow.models.energy.training.checkpoint import WEIGHTS
from coreflow.models.energy.training.checkpoint import load_model as load_reference
from coreflow.models.errors import BundleError, ConfigError, InputError, UnsupportedError
from coreflow.models.training.checkpoint import load_tensors
from coreflow.runtime.load import load_model
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.package import validate
from coreflow.validate.recorded import replay
from coreflow.validate.references.torch_module import TorchReference
from coreflow.validate.replay.recording import KEY, read_replay, worst_sample, write_replay
from coreflow.validate.report.model import AmbiguousSample, Culprit, OutputReport, Report, Samples

if TYPE_CHECKING:
    from tests.validate.conftest import Converted

RECIPES = """
from pathlib import Path
Path(__file__).with_name("executed").touch()
from coreflow.export.recipe import Recipe
from coreflow.models.spec import TensorSpec
from torch import nn
NET = Recipe(name="other", module=nn.Identity(), inputs={"x": TensorSpec((1, 16, 64))}, outputs=("y",))
"""


def judge_and_write(package: Path, recipe: Recipe, path: Path, *, simulated: bool = True, reference: str | Path | None = None) -> Report:
    """Judge eight seeds, write the worst of them to ``path``; the report of all."""
    report = validate(package, recipe)
    torch_reference, model = TorchReference(recipe.module), load_model(package, "lifted", engine="interpreter")
    samples = [Sample(label=f"seed {seed}", inputs=recipe.inputs_for(seed), seed=seed) for seed in range(8)]
    expected = [torch_reference.outputs(dict(sample.inputs)) for sample in samples]
    worst = worst_sample(report, samples, expected, [model.predict(sample.inputs) for sample in samples])
    in_fp16 = torch_reference.simulated_outputs(dict(samples[worst].inputs))
    write_replay(
        path,
        package=package,
        sample=samples[worst],
        report=report,
        outputs=dict(zip(recipe.outputs, expected[worst], strict=True)),
        simulated=dict(zip(recipe.outputs, in_fp16, strict=True)) if simulated else None,
        reference=reference,
    )
    return report


def drop_bias(weights: dict[str, Tensor]) -> None:
    weights["layers.0.contract.bias"].zero_()


@pytest.fixture(scope="module")
def recorded(converted: "Converted", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a faulty package and the recording of its worst sample; not to be changed."""
    folder = tmp_path_factory.mktemp("recorded")
    package = converted.with_fault(folder / "network.mlpackage", drop_bias)
    report = judge_and_write(package, converted.recipe(), folder / "worst.safetensors", reference="recipes.py:NET")
    assert (report.verdict, report.cause) == ("fail", "weights")
    (folder / "recipes.py").write_text(RECIPES)
    return folder


@pytest.fixture
def folder(recorded: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(recorded, tmp_path / "recorded"))


def edit(path: Path, change: Callable[[dict[str, Any], dict[str, Array]], None]) -> None:
    with safe_open(path, framework="numpy") as file:
        entry = json.loads(file.metadata()[KEY])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(entry, arrays)
    save_file(arrays, path, {KEY: json.dumps(entry)})


@pytest.fixture
def report() -> Report:
    """A report that a validation might have given."""
    culprit = Culprit(kind="rounding", name="linear_3", type="linear", ratio=9, text="")
    shared: dict[str, Any] = dict.fromkeys([field.name for field in fields(OutputReport)], 0.0)
    outputs = {
        name: OutputReport(**{**shared, "name": name, "budget": budget, "gates": ()}) for name, budget in (("a", 0.01), ("b", 0.0001))
    }
    return Report(
        name="net",
        package="net.mlpackage",
        digest="0" * 64,
        weights_digest=None,
        backend="lifted",
        numerics="fp16",
        compute_units="all",
        precision="fp16",
        verdict="fail",
        cause="fp16",
        text="",
        outputs=outputs,
        samples=Samples(seeds=(), drawn=0, given=0),
        versions={},
        seconds=0.0,
        culprits=(culprit,),
    )


class TestWriting:
    def test_everything_survives_a_round_trip(self, recorded: Path, converted: "Converted") -> None:
        record, recipe = read_replay(recorded / "worst.safetensors"), converted.recipe()
        assert (record.package, record.name, record.reference_kind, record.reference) == (
            "network.mlpackage",
            "network",
            "recipe",
            "recipes.py:NET",
        )
        assert (record.numerics, record.backend, record.compute_units) == ("fp16", "lifted", "all")
        assert (record.verdict, record.cause) == ("fail", "weights") and record.label == f"seed {record.seed}"
        assert record.seed is not None
        np.testing.assert_array_equal(record.inputs["x"], recipe.inputs_for(record.seed)["x"])
        with torch.no_grad():
            expected = recipe.module.double()(torch.from_numpy(recipe.inputs_for(record.seed)["x"]).double()).numpy()
        assert record.outputs["y"].dtype == np.float64
        np.testing.assert_allclose(record.outputs["y"], expected, rtol=1e-12, atol=1e-12)
        assert record.simulated is not None and 0 < np.abs(record.simulated["y"] - record.outputs["y"]).max() < 0.1

    @pytest.mark.parametrize(("name", "kind"), [("demo", "bundle"), ("other.mlpackage", "package"), ("net.onnx", "onnx"), (None, "none")])
    def test_the_way_to_the_reference_is_relative_to_the_file(self, name: str | None, kind: str, report: Report, tmp_path: Path) -> None:
        sample = Sample(label="one", inputs={"x": np.ones(3)})
        reference = None if name is None else tmp_path / "a" / name
        path = write_replay(
            tmp_path / "b/c/one.safetensors",
            package=tmp_path / "a/net.mlpackage",
            sample=sample,
            report=report,
            outputs={"y": np.ones(2)},
            reference=reference,
        )
        record = read_replay(path)
        assert (record.reference_kind, record.reference) == (kind, "" if name is None else f"../../a/{name}")
        assert record.package == "../../a/net.mlpackage" and record.culprits == ("linear_3",) and record.simulated is None

    def test_arrays_of_any_layout_and_scalars_are_stored_in_order(self, report: Report, tmp_path: Path) -> None:
        values = np.arange(12.0).reshape(3, 4)
        inputs = {"turned": values.T, "spread": np.broadcast_to(np.float16(2), (2, 2)), "scalar": np.array(3, np.int32)}
        path = write_replay(
            tmp_path / "one.safetensors",
            package=tmp_path,
            sample=Sample(label="one", inputs=inputs),
            report=report,
            outputs={"y": values[:, ::2]},
        )
        record = read_replay(path)
        for name, array in inputs.items():
            assert record.inputs[name].dtype == array.dtype
            np.testing.assert_array_equal(record.inputs[name], array)
        np.testing.assert_array_equal(record.outputs["y"], values[:, ::2])

    def test_a_write_that_fails_leaves_the_old_file(self, folder: Path, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
        path = folder / "worst.safetensors"
        before = path.read_bytes()

        def fail(*_: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            write_replay(
                path, package=folder, sample=Sample(label="one", inputs={"x": np.ones(3)}), report=report, outputs={"y": np.ones(2)}
            )
        assert path.read_bytes() == before and not list(folder.glob(".worst*"))

    def test_another_suffix_is_refused(self, report: Report, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"NAME\.safetensors"):
            write_replay(
                tmp_path / "one.npz", package=tmp_path, sample=Sample(label="one", inputs={}), report=report, outputs={"y": np.ones(2)}
            )


class TestTheWorstSample:
    SAMPLES = tuple(Sample(label=f"seed {seed}", inputs={}) for seed in range(3))
    EXACT = tuple((np.arange(4.0), np.ones((2, 2))) for _ in range(3))

    def find(self, recorded_report: Report, *errors: tuple[float, float]) -> int:
        actual = [{"a": a + error[0], "b": b + error[1]} for (a, b), error in zip(self.EXACT, errors, strict=True)]
        return worst_sample(recorded_report, self.SAMPLES, self.EXACT, actual)

    def test_it_has_the_largest_error_in_budgets(self, report: Report) -> None:
        assert self.find(report, (0.1, 0), (0.3, 0), (0.2, 0)) == 1
        assert self.find(report, (0.1, 0), (0.3, 0), (0.2, 0.02)) == 2  # the budget of b is smaller

    def test_non_finite_errors_are_worse_than_any_error(self, report: Report) -> None:
        assert self.find(report, (1e9, 0), (0, float("nan")), (0, 0)) == 1
        assert self.find(report, (1e9, 0), (0, 0), (float("inf"), 0)) == 2

    def test_an_ambiguous_sample_that_was_left_out_is_not_it(self, report: Report) -> None:
        ambiguous = AmbiguousSample(label="seed 1", left_out=True, nearness=0.1, differing=3)
        without = replace(report, samples=replace(report.samples, ambiguous=(ambiguous,)))
        assert self.find(without, (0.1, 0), (0.3, 0), (0.2, 0)) == 2


class TestReplaying:
    def test_the_sample_alone_fails_again_against_the_recorded_outputs(self, recorded: Path) -> None:
        report = replay(recorded / "worst.safetensors")
        assert (report.verdict, report.cause, report.exit_code) == ("fail", "weights", 1)
        assert report.samples.total == 1 and report.name == "network" and report.backend == "lifted"
        assert "rho_rms" in {gate.name for gate in report.outputs["y"].failed_gates} and report.budget == "recorded fp16 of the reference"
        assert report.replay == str(recorded / "worst.safetensors")
        assert report.notes[-1].startswith("recorded as fail (weights)") and "it is so again" in report.notes[-1]

    def test_a_recipe_is_executed_only_when_it_is_given_again(self, folder: Path) -> None:
        report = replay(folder / "worst.safetensors")
        assert not (folder / "executed").exists()
        assert "the reference was recipes.py:NET, which is executed only when it is given" in report.notes[-1]
        other = replay(folder / "worst.safetensors", reference=f"{folder / 'recipes.py'}:NET")
        assert (folder / "executed").exists()
        assert other.verdict == "fail" and other.outputs["y"].rho_rms > 50  # an identity

    def test_the_reference_gives_the_recorded_outputs(self, recorded: Path, converted: "Converted") -> None:
        alone = replay(recorded / "worst.safetensors")
        for reference in (converted.recipe(), converted.recipe().module):
            report = replay(recorded / "worst.safetensors", reference=reference)
            assert (report.verdict, report.cause, report.samples.total) == ("fail", "weights", 1)
            assert report.outputs["y"].rho_rms == pytest.approx(alone.outputs["y"].rho_rms, rel=1e-6)

    def test_another_reference_than_the_recorded_one_does_not_pass_as_it(self, converted: "Converted", tmp_path: Path) -> None:
        package = converted.copy(tmp_path / "network.mlpackage")
        judge_and_write(package, converted.recipe(), tmp_path / "one.safetensors")
        other = converted.recipe()
        with torch.no_grad():
            other.module.get_parameter("head.weight").mul_(1.0002)
        assert replay(tmp_path / "one.safetensors", reference=converted.recipe()).verdict == "pass"
        report = replay(tmp_path / "one.safetensors", reference=other)
        assert (report.verdict, report.cause) == ("fail", "weights"), "R2s sees that the package has other weights"
        assert any("another torch model" in problem for problem in report.problems)

    def test_a_package_can_be_the_reference(self, recorded: Path, converted: "Converted", tmp_path: Path) -> None:
        report = replay(recorded / "worst.safetensors", reference=converted.package)
        assert report.verdict == "fail" and report.samples.total == 1

    def test_a_healthy_package_passes_with_and_without_a_recorded_simulation(self, converted: "Converted", tmp_path: Path) -> None:
        package = converted.copy(tmp_path / "network.mlpackage")
        for simulated, budget in ((True, "recorded fp16 of the reference"), (False, "drawn rounding")):
            judge_and_write(package, converted.recipe(), tmp_path / "one.safetensors", simulated=simulated)
            report = replay(tmp_path / "one.safetensors")
            assert (report.verdict, report.budget) == ("pass", budget), report.text

    def test_without_a_simulation_the_fault_is_found_by_drawn_rounding(self, converted: "Converted", tmp_path: Path) -> None:
        package = converted.with_fault(tmp_path / "network.mlpackage", drop_bias)
        judge_and_write(package, converted.recipe(), tmp_path / "one.safetensors", simulated=False)
        assert replay(tmp_path / "one.safetensors").verdict == "fail"

    def test_numerics_are_those_of_then(self, folder: Path) -> None:
        edit(folder / "worst.safetensors", lambda entry, _: entry.update(numerics="fp32"))
        assert replay(folder / "worst.safetensors").numerics == "fp32"


class TestPlaces:
    def test_a_package_elsewhere_has_to_be_given(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = folder / "worst.safetensors"
        (folder / "network.mlpackage").rename(tmp_path / "moved.mlpackage")
        with pytest.raises(BundleError, match=r"its package .*network\.mlpackage is not there; say where it is "):
            replay(path)
        assert replay(path, package=tmp_path / "moved.mlpackage").verdict == "fail"
        edit(path, lambda entry, _: entry.update(package="../moved.mlpackage"))
        with pytest.raises(InputError, match=r"\.\./moved\.mlpackage lies outside its folder and the working folder; say where it is "):
            replay(path)
        monkeypatch.chdir(tmp_path)
        assert replay(path).verdict == "fail"

    @pytest.mark.parametrize("way", ["absolute", "link"])
    def test_neither_an_absolute_path_nor_a_link_leads_out(self, way: str, folder: Path, tmp_path: Path) -> None:
        outside = Path(shutil.move(folder / "network.mlpackage", tmp_path / "outside.mlpackage"))
        if way == "link":
            (folder / "network.mlpackage").symlink_to(outside)
        else:
            edit(folder / "worst.safetensors", lambda entry, _: entry.update(package=str(outside)))
        with pytest.raises(InputError, match="lies outside"):
            replay(folder / "worst.safetensors")

    def test_a_changed_package_is_not_replayed(self, folder: Path) -> None:
        weights = next(folder.rglob("weight.bin"))
        weights.write_bytes(weights.read_bytes()[:-2] + b"\0\1")
        with pytest.raises(BundleError, match=r"is not the package that was recorded: its digest is .* Validate it again"):
            replay(folder / "worst.safetensors")

    def test_a_backend_that_is_not_here_is_named_and_another_can_be_taken(self, folder: Path) -> None:
        edit(folder / "worst.safetensors", lambda entry, _: entry.update(backend="abacus", numerics="device"))
        with pytest.raises(UnsupportedError, match="backend 'abacus'; choose one of auto, coreml, lifted"):
            replay(folder / "worst.safetensors")
        assert replay(folder / "worst.safetensors", backend="lifted").numerics == "fp16"


DAMAGES: dict[str, tuple[Callable[[dict[str, Any], dict[str, Array]], Any], str]] = {
    "a newer format": (lambda entry, _: entry.update(format=2), "has replay format 2; this coreflow reads 1"),
    "a package that is no text": (lambda entry, _: entry.update(package=7), "package in its metadata cannot be used"),
    "a kind that is not known": (lambda entry, _: entry.update(reference_kind="pickle"), "reference_kind in its metadata"),
    "culprits that are no names": (lambda entry, _: entry.update(culprits=[1]), "culprits in its metadata"),
    "a seed that is no number": (lambda entry, _: entry.update(seed="one"), "seed in its metadata"),
    "a label that is not there": (lambda entry, _: entry.pop("label"), "label in its metadata"),
    "no inputs": (lambda _, arrays: arrays.pop("input.x"), "holds no inputs; it has to be recorded again"),
    "no outputs": (lambda _, arrays: arrays.pop("exact.y"), "holds no outputs"),
    "another output": (lambda _, arrays: arrays.update({"exact.z": arrays.pop("exact.y")}), "records z; the outputs of its package are y"),
    "another shape": (lambda _, arrays: arrays.update({"exact.y": np.ones((1, 2))}), "two arrays of numbers of one shape are right"),
    "an input of another shape": (
        lambda _, arrays: arrays.update({"input.x": np.ones((1, 2))}),
        r"'x': expected shape .*\[1, 2\]",
    ),
    "NaN": (lambda _, arrays: arrays.update({"input.x": arrays["input.x"] * np.nan}), "input 'x' holds nan"),
    "numerics that do not exist": (lambda entry, _: entry.update(numerics="fp8"), "numerics 'fp8'; choose one of"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_with_impossible_values_is_refused(damage: str, folder: Path) -> None:
    change, said = DAMAGES[damage]
    edit(folder / "worst.safetensors", change)
    with pytest.raises((InputError, UnsupportedError), match=said):
        replay(folder / "worst.safetensors")


@pytest.mark.parametrize(
    ("content", "said"), [(None, "no such replay file"), (b"", "is no replay file"), (b"\x80\x04K\x01.", "is no replay file")]
)
def test_a_file_that_is_no_replay_is_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "one.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=said):
        replay(tmp_path / "one.safetensors")


def test_a_cut_file_and_plain_tensors_are_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "worst.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="or was cut short"):
        replay(path)
    save_file({"input.x": np.ones(2)}, path)
    with pytest.raises(InputError, match=r"its metadata has no 'coreflow\.replay'"):
        replay(path)


class TestBundles:
    def test_a_bundle_below_the_folder_brings_its_own_reference(
        self, bundle: Path, edit_weights: Callable[[Path, Mapping[str, Tensor], Mapping[str, Tensor]], None]
    ) -> None:
        manifest = read_manifest(bundle)
        package = bundle / manifest.stages["mapper_in"].package
        weights = load_tensors(bundle / str(manifest.companions) / WEIGHTS)
        wrong = {name: tensor.clone() for name, tensor in weights.items()}
        wrong["mapper_in.layers.0.weight"][3] = 0
        edit_weights(package, weights, wrong)
        recipe = bundle_recipe(bundle, manifest.companions, "mapper_in")
        stage = validate(package, recipe)
        assert stage.verdict == "fail"
        sample = Sample(label="seed 0", inputs=recipe.inputs_for(0), seed=0)
        names, expected = list(recipe.outputs), TorchReference(recipe.module).outputs(dict(sample.inputs))
        path = write_replay(
            bundle.parent / "worst.safetensors",
            package=package,
            sample=sample,
            report=stage,
            outputs=dict(zip(names, expected, strict=True)),
            reference=bundle,
        )
        report = replay(path)
        assert (report.verdict, report.name, report.reference) == ("fail", "mapper_in", stage.reference)
        shutil.move(bundle / COMPANIONS, bundle.parent / "elsewhere")
        with pytest.raises(BundleError, match="the reference in it is another one"):
            replay(path)
        (bundle / "manifest.json").unlink()
        assert replay(path).reference == "recorded outputs of the reference"


def bundle_recipe(bundle: Path, companions: str | None, stage: str) -> Recipe:
    folder = bundle / str(companions)
    model = load_reference(folder)
    return next(recipe for recipe in stage_recipes(energy_stages(model)) if recipe.name == stage)
