"""A whole bundle: healthy, and with one fault in one package."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from coreflow.export.bundle import export_bundle
from coreflow.export.package.manifest import COMPANIONS, read_manifest
from coreflow.export.recipe import Recipe
from coreflow.models.energy.training.checkpoint import WEIGHTS
from coreflow.models.errors import BundleError, ConfigError
from coreflow.models.spec import TensorSpec
from coreflow.models.training.checkpoint import load_tensors, save_tensors
from coreflow.validate.bundle import PartDone, judge_bundle, validate_bundle
from coreflow.validate.report.model import BundleReport

Weights = dict[str, Tensor]
Edit = Callable[[Path, Mapping[str, Tensor], Mapping[str, Tensor]], None]
STAGES = ("encoder", "mapper_in", "lattice_step", "mapper_out", "decoder_memory", "decoder_step")


@pytest.fixture(scope="module")
def events(exported: Path) -> list[PartDone | BundleReport]:
    return list(judge_bundle(exported / "bundle"))


@pytest.fixture(scope="module")
def healthy(events: list[PartDone | BundleReport]) -> BundleReport:
    assert isinstance(events[-1], BundleReport)
    return events[-1]


@pytest.mark.slow
def test_a_healthy_bundle_passes_stage_by_stage_and_as_a_chain(healthy: BundleReport) -> None:
    assert (healthy.verdict, healthy.cause, healthy.exit_code) == ("pass", None, 0), healthy.text
    assert tuple(healthy.stages) == STAGES
    for name, stage in healthy.stages.items():
        assert stage.verdict == "pass", name
        assert stage.samples.drawn >= 8 and stage.samples.given >= 8
        assert all(0 <= output.rho_rms < 1.3 for output in stage.outputs.values())
    assert not healthy.warnings and not healthy.problems


def test_the_chain_is_compared_where_the_stages_meet(healthy: BundleReport) -> None:
    cascade = healthy.cascade
    assert cascade is not None and cascade.verdict == "pass"
    assert [row.stage for row in cascade.rows] == ["encoder", "mapper_in", "lattice_step", "mapper_out", "decoder_memory", "decoder_step"]
    assert all(0.3 < row.teacher_forced < 1.5 and 0.3 < row.cascaded < 1.5 for row in cascade.rows)
    assert cascade.tokens.sentences == 8 and cascade.tokens.share >= 0.8 and not cascade.tokens.unexplained
    assert cascade.outputs["decoder.logits"].elements > 8 * 300


def test_every_part_is_an_event_and_the_report_the_last(events: list[PartDone | BundleReport]) -> None:
    assert [event.part for event in events if isinstance(event, PartDone)] == [*STAGES, "cascade"]
    assert [event.done for event in events if isinstance(event, PartDone)] == list(range(1, 8))
    assert isinstance(events[-1], BundleReport)


def zero_a_head(weights: Weights) -> None:
    name = "decoder.t5.blocks.0.self_attention.output.weight"
    weights[name][:, : weights[name].shape[1] // 4] = 0


def swap_two_rows(weights: Weights) -> None:
    rows = weights["encoder.head.0.weight"]
    rows[[3, 4]] = rows[[4, 3]]


def change_a_bias(weights: Weights) -> None:
    weights["encoder.head.4.bias"][7] += 0.01


def change_the_carrier(weights: Weights) -> None:
    weights["lattice.processor.carrier.layers.0.candidate_input.bias"][0] += 0.02


FAULTS = {
    "a head zeroed": (zero_a_head, "decoder_step"),
    "two rows swapped": (swap_two_rows, "encoder"),
    "a bias changed": (change_a_bias, "encoder"),
    "a bias of the carrier changed": (change_the_carrier, "lattice_step"),
}


def plant(bundle: Path, stage: str, fault: Callable[[Weights], None], edit: Edit) -> None:
    manifest = read_manifest(bundle)
    assert manifest.companions is not None
    healthy = load_tensors(bundle / manifest.companions / WEIGHTS)
    wrong = {name: tensor.clone() for name, tensor in healthy.items()}
    fault(wrong)
    edit(bundle / manifest.stages[stage].package, healthy, wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [fault if place == 0 else pytest.param(fault, marks=pytest.mark.slow) for place, fault in enumerate(FAULTS)]
)
def test_a_fault_in_one_package_fails_and_names_the_stage(fault: str, bundle: Path, edit_weights: Edit) -> None:
    change, stage = FAULTS[fault]
    plant(bundle, stage, change, edit_weights)
    report = validate_bundle(bundle, quick=True)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "weights", 1)
    assert report.failing_stages == (stage,)
    assert stage in report.text and "cascade" not in report.text
    assert len(report.warnings) == 1 and f"{stage}.mlpackage" in report.warnings[0]
    assert report.cascade is not None
    alone = {row.stage: row.alone for row in report.cascade.rows}
    assert [name for name, verdict in alone.items() if verdict == "fail"] == [stage]


@pytest.mark.slow  # three validations; tests/cli has one
def test_a_changed_package_never_passes_however_good_its_numbers(bundle: Path) -> None:
    package = next(bundle.glob("packages/mapper_in.mlpackage"))
    (package / "note.txt").write_text("nothing that a program reads")
    validate_bundle(bundle)  # a file more changes nothing
    about = package / "Manifest.json"
    about.write_text(about.read_text() + " ")
    report = validate_bundle(bundle)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "structure", 3)
    assert "Manifest.json" in report.text and "within tolerance" in report.text
    accepted = validate_bundle(bundle, verify=False)
    assert (accepted.verdict, accepted.exit_code) == ("pass", 0)
    assert "Manifest.json" in accepted.warnings[0]


def test_a_changed_reference_is_refused(bundle: Path) -> None:
    path = next((bundle / COMPANIONS).iterdir()) / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BundleError, match=r"weights\.safetensors was changed"):
        validate_bundle(bundle)


@pytest.mark.slow
def test_golden_samples_of_another_model_leave_the_verdict_open(bundle: Path) -> None:
    companions = next((bundle / COMPANIONS).iterdir())
    weights = load_tensors(companions / WEIGHTS)
    weights["mapper_in.layers.0.weight"] *= 1.0002
    save_tensors(companions / WEIGHTS, weights)
    report = validate_bundle(bundle, verify=False)
    stage = report.stages["mapper_in"]
    assert (stage.verdict, report.verdict, report.exit_code) == ("incomplete", "incomplete", 5)
    assert "the golden samples are of another torch model" in stage.text


def test_golden_sentences_that_cannot_be_read_are_refused(bundle: Path) -> None:
    path = next((bundle / COMPANIONS).iterdir()) / "golden" / "sentences.json"
    path.write_text(json.dumps([{"words": 3}]))
    with pytest.raises(BundleError, match="does not hold golden sentences"):
        validate_bundle(bundle, verify=False)


@pytest.fixture(scope="module")
def recipes() -> list[Recipe]:
    torch.manual_seed(0)
    return [
        Recipe(name=name, module=torch.nn.Linear(8, 8), inputs={"x": TensorSpec((1, 8))}, outputs=("y",)) for name in ("first", "second")
    ]


@pytest.fixture(scope="module")
def of_recipes(recipes: list[Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recipes") / "bundle"
    list(export_bundle(recipes, out, jobs=1))
    return out


def test_a_bundle_of_recipes_passes_with_the_recipes_it_was_made_from(of_recipes: Path, recipes: list[Recipe]) -> None:
    report = validate_bundle(of_recipes, recipes=recipes)
    assert (report.verdict, report.exit_code, report.cascade) == ("pass", 0, None)


@pytest.mark.parametrize("known", [0, 1])
def test_a_bundle_of_recipes_is_incomplete_without_them(of_recipes: Path, recipes: list[Recipe], known: int) -> None:
    report = validate_bundle(of_recipes, recipes=recipes[:known])
    assert (report.verdict, report.exit_code) == ("incomplete", 5)
    assert report.stages["second"].text == "no reference: nothing was compared"
    assert "pass the recipes" in report.problems[0]


def test_a_bundle_of_recipes_fails_with_other_weights(of_recipes: Path, recipes: list[Recipe]) -> None:
    other = Recipe(name="second", module=torch.nn.Linear(8, 8), inputs=recipes[1].inputs, outputs=("y",))
    report = validate_bundle(of_recipes, recipes=[recipes[0], other])
    assert report.verdict == "fail" and report.failing_stages == ("second",)


def test_recipes_for_a_bundle_with_a_reference_of_its_own_are_refused(exported: Path) -> None:
    recipe = Recipe(name="encoder", module=torch.nn.Linear(8, 8), inputs={"x": TensorSpec((1, 8))}, outputs=("y",))
    with pytest.raises(ConfigError, match="brings its own reference"):
        validate_bundle(exported / "bundle", recipes=[recipe])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".txt", pytest.param(".jsonl", marks=pytest.mark.slow)])
def test_texts_of_a_file_join_the_encoders_samples_and_the_chain(
    exported: Path, healthy: BundleReport, tmp_path: Path, suffix: str
) -> None:
    texts = ["the fox wrapped the honest bowl", "a river", "words that nobody trained on"]
    file = tmp_path / f"texts{suffix}"
    file.write_text("\n".join(texts if suffix == ".txt" else [json.dumps({"text": text}) for text in texts]))
    report = validate_bundle(exported / "bundle", texts=file, quick=True)
    assert report.verdict == "pass", report.text
    for name in STAGES:
        assert report.stages[name].samples.given - healthy.stages[name].samples.given == (3 if name == "encoder" else 0)
    assert report.cascade is not None and report.cascade.tokens.sentences == 8 + 3
