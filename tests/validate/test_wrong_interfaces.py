"""Outputs, tokens and compressed weights that a converter makes something else of. None of them passes; see ``test_wrong_conversions``."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.mlpackage import read_program
from coreflow.export.package.summary import stored_weights, summarize
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Draw
from coreflow.models.errors import ExportError
from coreflow.models.spec import TensorSpec
from coreflow.validate import validate
from coreflow.validate.options import Evidence
from tests.validate.conversions import FLOAT16, WHOLE, convert, normal, padded, recipe_of, rows

# --- names and types ------------------------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        return y, y


def test_one_tensor_returned_twice_loses_both_names(tmp_path: Path) -> None:
    module = Twice()
    package = convert(module, tmp_path, {"x": ((4, 16), FLOAT16)}, ("surface", "copy"))
    (kept,) = {output.name for output in read_program(package).function()[1].outputs}
    for reference in (module, recipe_of(module, rows, ("surface", "copy"))):
        report = validate(package, reference, draw=rows)
        assert (report.verdict, report.cause, report.exit_code) == ("fail", "translation", 4)
        assert f"has 1 outputs ({kept}) and the reference 2, of which 1 and 2 are one tensor" in report.text


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        return y, y * 2


def test_an_output_that_is_missing_for_another_reason_is_structure(tmp_path: Path) -> None:
    """The package may be another module's: nothing shows that the converter lost the second."""
    package = convert(nn.Sequential(nn.Linear(16, 16)), tmp_path, {"x": ((4, 16), FLOAT16)}, ("surface",))
    for reference in (Doubled(), recipe_of(Doubled(), rows, ("surface", "double"))):
        report = validate(package, reference, draw=rows)
        assert (report.verdict, report.cause, report.exit_code) == ("fail", "structure", 3)


def test_the_own_export_refuses_one_tensor_as_two_outputs(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="one tensor as two outputs"):
        build(recipe_of(Twice().eval(), rows, ("surface", "copy")), tmp_path)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(3000, 8), nn.Linear(8, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.embedding(ids))


def words_up_to(most: int) -> Draw:
    return lambda seed: {"ids": np.random.default_rng(seed).integers(0, most, (1, 16)).astype(WHOLE)}


@pytest.mark.parametrize("most", [3000, 2000], ids=["ids that fp16 rounds", "ids that fp16 holds"])
def test_tokens_that_became_floats_are_translation(most: int, tmp_path: Path) -> None:
    """Without a dtype the converter takes ids as fp16; those above 2048 then meet a neighbour's embedding."""
    module = Words()
    package = convert(module, tmp_path, {"ids": ((1, 16), None)})
    for reference in (module, recipe_of(module, words_up_to(most))):
        report = validate(package, reference, draw=words_up_to(most))
        assert (report.verdict, report.cause, report.exit_code) == ("fail", "translation", 4)
        assert report.text == "input 'ids' is float16; int32 is right, the reference runs on whole numbers only"


class Gated(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(x) * mask


def test_whole_numbers_for_a_float_are_no_fault(tmp_path: Path) -> None:
    """A mask of ones and zeros may well be given in integers: the module runs on floats as well."""
    module = Gated()
    package = convert(module, tmp_path, {"x": ((1, 8), FLOAT16), "mask": ((1, 8), FLOAT16)})
    report = validate(package, module, draw=lambda seed: {"x": normal(seed, 1, 8), "mask": padded(seed)["mask"].astype(WHOLE)})
    assert report.verdict == "pass", report.text


class ScaledChannels(nn.Module):
    """A channel-wise scale and shift."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.linspace(low, 1.5, 8).reshape(1, 8, 1, 1)) for low in (0.5, -0.5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.tanh(x) * self.gamma + self.beta)


def test_a_scale_and_shift_of_channels_keeps_its_scale(tmp_path: Path) -> None:
    """The converter's own pass makes a batch norm of it with an epsilon of 1e-5 under a variance of 1: 5e-6 are missing."""
    recipe = Recipe(name="scaled", module=ScaledChannels(), inputs={"x": TensorSpec((1, 8, 4, 4))}, outputs=("y",))
    report = validate(build(recipe, tmp_path), recipe)
    assert report.verdict == "pass", report.text
    assert report.outputs["y"].rungs["R2"].relative_rms < 1e-7


# --- compression ----------------------------------------------------------------------------------------------------------------------


def pruned_by_half(package: Path, out: Path) -> Path:
    """Magnitude pruning of half of every weight."""
    optimize = pytest.importorskip("coremltools.optimize.coreml")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruning = optimize.OptimizationConfig(global_config=optimize.OpMagnitudePrunerConfig(target_sparsity=0.5))
        model = quiet_coremltools().models.MLModel(str(package), skip_model_load=True)
        optimize.prune_weights(model, pruning).save(str(out))
    return out


def test_pruning_that_prunes_nothing_is_translation_and_names_the_weight(tmp_path: Path) -> None:
    """numpy 2 cannot find a percentile of more than 65504 fp16 numbers: nothing is pruned. The package computes what it did before, so
    that no comparison of outputs fails; what it stores tells."""
    module = nn.Sequential(nn.Linear(256, 260))
    parent = convert(module, tmp_path, {"x": ((1, 256), FLOAT16)})
    pruned = pruned_by_half(parent, tmp_path / "pruned.mlpackage")
    report = validate(pruned, parent)
    assert report.outputs["y"].rungs["R3"].relative_rms < 1e-6, "the same weights"
    (weight,) = (stored for stored in stored_weights(read_program(pruned).function()[0]) if stored.compression)
    for validated in (report, validate(pruned, module)):
        assert (validated.verdict, validated.cause, validated.exit_code) == ("fail", "translation", 4)
        assert weight.name in validated.text and "saves nothing; Core ML Tools under numpy 2" in validated.text
    kept = validate(pruned, module, evidence=Evidence(folder=tmp_path / "evidence"))
    assert kept.replay is None, "its outputs are right: no sample shows the fault"
    assert validate(parent, module).verdict == "pass"
    before, after = (summarize(read_program(package)) for package in (parent, pruned))
    (group,) = (weights for weights in after.weights if "sparse" in weights.compression)
    assert group.stored_bytes > 2 * group.parameters > 2 * 65504, "a mask on top of every weight"
    assert after.size_bytes > before.size_bytes


def test_pruning_that_misses_one_weight_of_two_is_a_warning(tmp_path: Path) -> None:
    """The other one is smaller than it was, so that something of what was asked for is there."""
    module = nn.Sequential(nn.Linear(256, 260), nn.Linear(260, 240))
    parent = convert(module, tmp_path, {"x": ((1, 256), FLOAT16)})
    pruned = pruned_by_half(parent, tmp_path / "pruned.mlpackage")
    large, small = (stored for stored in stored_weights(read_program(pruned).function()[0]) if stored.compression)
    assert large.saves_nothing and not small.saves_nothing
    report = validate(pruned, pruned)
    assert (report.verdict, report.cause, report.exit_code, report.exit_code_for(strict=True)) == ("warn", None, 0, 1)
    assert large.name in report.text and small.name not in report.text
