"""Conversions that end well and are wrong, made as a user makes them, by coremltools itself: none of them passes.

Every network is small; its fault is the one that larger ones have. The report names the op or the line that is wrong. Where the project's
own export would make the same mistake it either refuses or does not make it, which is tested beside it.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.models.arrays import Arrays
from coreflow.models.errors import ConfigError
from coreflow.validate import validate
from tests.validate.conversions import FLOAT16, WHOLE, Shapes, at_line, convert, failing_gates, normal, padded, recipe_of, rows

# --- torch.export drops keyword arguments ---------------------------------------------------------------------------------------------


class Padded(nn.Module):
    """torch's own encoder with a key-padding mask; the padding is where the mask is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1, enable_nested_tensor=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=mask < 0.5)


def test_a_padding_mask_that_torch_export_inverts(tmp_path: Path) -> None:
    module = Padded()
    shapes = {"x": ((1, 8, 16), FLOAT16), "mask": ((1, 8), FLOAT16)}
    report = validate(convert(module, tmp_path, shapes, front_end="export"), module, draw=padded)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "translation", 4)
    assert report.outputs["y"].rho_rms > 100
    assert report.culprits[0].kind == "translation" and report.culprits[0].module == "encoder.layers.0.self_attn"
    assert at_line(report.culprits[0], Padded, "src_key_padding_mask=mask")


class PaddedWords(nn.Module):
    """``Padded`` over token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.padded = nn.Embedding(50, 16), Padded()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.padded(self.embedding(ids), mask)


def padded_words(seed: int) -> Arrays:
    return {"ids": np.random.default_rng(seed).integers(0, 50, (1, 8)).astype(WHOLE), "mask": padded(seed)["mask"]}


@pytest.mark.slow
def test_a_fresh_conversion_is_made_of_the_callers_samples(tmp_path: Path) -> None:
    """Nobody has recorded bounds for the ids, so that none can be drawn; the inverted mask was called wrong weights."""
    module = PaddedWords()
    shapes: Shapes = {"ids": ((1, 8), WHOLE), "mask": ((1, 8), FLOAT16)}
    report = validate(convert(module, tmp_path, shapes, front_end="export"), module, [padded_words(seed) for seed in range(4)])
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "translation", 4)
    assert "R2" in report.outputs["y"].rungs and not any("R2 was not run" in note for note in report.notes)
    assert at_line(report.culprits[0], Padded, "src_key_padding_mask=mask")


@pytest.mark.slow
def test_the_own_export_of_the_same_mask_is_right(tmp_path: Path) -> None:
    recipe = recipe_of(Padded().eval(), padded)
    assert validate(build(recipe, tmp_path), recipe).verdict == "pass"


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.tanh(self.before(x))
        return self.after(torch.add(x, gate, alpha=0.5))


def test_an_alpha_of_add_that_torch_export_loses(tmp_path: Path) -> None:
    """The converter refuses the alpha of a trace: the conversion at FLOAT32 is by torch.export, with alpha as a product."""
    module = Scaled()
    report = validate(convert(module, tmp_path, {"x": ((4, 16), FLOAT16)}, front_end="export"), module, draw=rows)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "translation", 4)
    assert report.outputs["y"].rungs["R2"].relative_rms < 1e-6 and not any("R2 was not run" in note for note in report.notes)
    assert (report.culprits[0].kind, report.culprits[0].type) == ("translation", "add")
    assert at_line(report.culprits[0], Scaled, "alpha=0.5")


def test_wrong_weights_are_not_taken_for_translation_where_alpha_is_lost_too(tmp_path: Path) -> None:
    module = Scaled()
    package = convert(module, tmp_path, {"x": ((4, 16), FLOAT16)}, front_end="export")
    with torch.no_grad():
        module.before.weight[0, 0] += 0.5
    assert validate(package, module, draw=rows).cause == "weights"


class ScaledByHand(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.after(x + torch.tanh(self.before(x)) * 0.5)


def test_a_fresh_conversion_that_is_wrong_alone_is_no_fault_of_the_package(tmp_path: Path) -> None:
    module = ScaledByHand()
    package = convert(module, tmp_path, {"x": ((4, 16), FLOAT16)})
    exported = Scaled()
    exported.load_state_dict(module.state_dict())
    (tmp_path / "wide").mkdir()
    fresh = convert(exported, tmp_path / "wide", {"x": ((4, 16), np.float32)}, front_end="export", precision=np.float32)
    report = validate(package, module, draw=rows, wide_package=fresh)
    assert report.verdict == "pass", report.text
    assert "R2" not in report.outputs["y"].rungs and report.outputs["y"].rungs["R2s"].relative_rms < 1e-6


def test_the_own_export_keeps_an_alpha_that_the_converter_does_not_know(tmp_path: Path) -> None:
    recipe = recipe_of(Scaled().eval(), rows)
    assert validate(build(recipe, tmp_path), recipe, quick=True).verdict == "pass"


# --- numbers that fp16 does not hold --------------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """Attention whose mask is the most negative float32 where keys are absent."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        bias = (1.0 - mask) * torch.finfo(torch.float32).min
        scores = self.query(x) @ self.key(x).transpose(-1, -2) * 0.25
        return (scores + bias[:, None]).softmax(-1) @ self.value(x)


def test_a_mask_of_the_smallest_float_becomes_nan(tmp_path: Path) -> None:
    """0 · -inf: the largest float32 is beyond fp16, so that where a key is present its bias is not a number."""
    module = Masked().eval()
    package = convert(module, tmp_path, {"x": ((1, 8, 16), FLOAT16), "mask": ((1, 8), FLOAT16)})
    report = validate(package, module, draw=padded)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "non-finite", 3)
    assert failing_gates(report) >= {"finite"}
    assert (report.culprits[0].kind, report.culprits[0].type) == ("non-finite", "mul")
    assert at_line(report.culprits[0], Masked, "finfo")
    assert "overflows" in {constant.problem for constant in report.constants}


def test_the_own_export_of_the_same_mask_is_finite(tmp_path: Path) -> None:
    recipe = recipe_of(Masked().eval(), padded)
    assert validate(build(recipe, tmp_path), recipe).verdict == "pass"


class Normed(nn.Module):
    def __init__(self, eps: float = 1e-7) -> None:
        super().__init__()
        self.before, self.norm, self.after = nn.Linear(16, 16, bias=False), nn.RMSNorm(16, eps=eps), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.norm(self.before(x)))


def some_zero_rows(seed: int) -> Arrays:
    x = normal(seed, 4, 16)
    if seed % 4 == 3:  # in two of eight seeds: one sample must not hide behind the others
        x[seed % 4] = 0
    return {"x": x}


def test_torchs_rms_norm_divides_zero_rows_by_zero(tmp_path: Path) -> None:
    """The converter divides by the largest element first."""
    module = Normed()
    package = convert(module, tmp_path, {"x": ((4, 16), FLOAT16)})
    report = validate(package, module, draw=some_zero_rows)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "non-finite", 3)
    assert failing_gates(report) >= {"finite", "translation"}
    assert report.outputs["y"].non_finite == 2 * 16
    assert (report.culprits[0].kind, report.culprits[0].type, report.culprits[0].module) == ("non-finite", "real_div", "norm")
    assert at_line(report.culprits[0], Normed, "self.norm(self.before(x))")


def test_torchs_rms_norm_adds_its_epsilon_after_it_divided(tmp_path: Path) -> None:
    """No rounding hides this from the conversion at FLOAT32, and fp16 alone would not have told."""
    module = Normed(eps=1e-4)
    report = validate(convert(module, tmp_path, {"x": ((4, 16), FLOAT16)}), module, draw=rows)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "translation", 4)
    assert failing_gates(report) == {"translation"}
    assert report.culprits[0].kind == "translation" and report.culprits[0].module == "norm"


def test_what_every_conversion_has_is_a_warning_where_it_is_small_and_can_be_accepted(tmp_path: Path) -> None:
    """The same epsilon a tenth as large: 1.3e-5 of the output, where fp16 may cost 4.9e-4."""
    module = Normed(eps=1e-5)
    package = convert(module, tmp_path, {"x": ((4, 16), FLOAT16)})
    report = validate(package, module, draw=rows)
    assert (report.verdict, report.cause, failing_gates(report)) == ("warn", None, {"translation"})
    assert "the converter's" in report.text
    culprit = report.culprits[0]
    assert (culprit.kind, culprit.module) == ("translation", "norm")

    accepted = validate(package, module, draw=rows, accept={culprit.name: "rows are never as small", "other_op": "never seen"})
    assert accepted.verdict == "pass" and not failing_gates(accepted)
    (difference,) = accepted.accepted
    assert (difference.op, difference.reason) == (culprit.name, "rows are never as small")
    assert 1e-6 < difference.relative_rms < 1e-4
    assert [note for note in accepted.notes if "never seen" in note] == ["accepted at other_op (never seen): no difference was found there"]
    assert any("rows are never as small" in note for note in accepted.notes)

    elsewhere = validate(package, module, draw=rows, accept={"other_op": "never seen"})
    assert elsewhere.verdict == "warn" and not elsewhere.accepted
    with pytest.raises(ConfigError, match="a reason"):
        validate(package, module, draw=rows, accept={culprit.name: " "})


@pytest.mark.slow
def test_an_accepted_difference_hides_no_wrong_weight(tmp_path: Path) -> None:
    module = Normed(eps=1e-5)
    package = convert(module, tmp_path, {"x": ((4, 16), FLOAT16)})
    name = validate(package, module, draw=rows).culprits[0].name
    with torch.no_grad():
        module.after.weight[0, 0] += 0.5
    report = validate(package, module, draw=rows, accept={name: "rows are never as small"})
    assert (report.verdict, report.cause) == ("fail", "weights"), report.text


def test_without_zero_rows_the_same_package_is_right(tmp_path: Path) -> None:
    """What is not reached is not found: the inputs decide."""
    module = Normed()
    assert validate(convert(module, tmp_path, {"x": ((4, 16), FLOAT16)}), module, draw=rows).verdict == "pass"


class SquareNorm(nn.Module):
    """T5's: the mean of the squares, as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + 1e-6))


class Residual(nn.Module):
    """A residual stream of several hundreds."""

    def __init__(self, size: float = 1000.0) -> None:
        super().__init__()
        self.size = size
        self.feed_forward, self.norm, self.out = nn.Linear(16, 16), SquareNorm(), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(x + self.feed_forward(x) * self.size))


@pytest.mark.parametrize("by", ["coremltools", "the own export"])
def test_residuals_above_256_overflow_in_the_square_of_a_t5_norm(by: str, tmp_path: Path) -> None:
    """Torch's own fp16 overflows as well: the module, not the conversion, is unfit for fp16."""
    module = Residual().eval()
    package = convert(module, tmp_path, {"x": ((4, 16), FLOAT16)}) if by == "coremltools" else build(recipe_of(module, rows), tmp_path)
    report = validate(package, module, draw=rows)
    assert (report.verdict, report.exit_code) == ("fp16-unsafe", 6)
    assert failing_gates(report) == {"ceiling", "contract"}
    assert (report.culprits[0].kind, report.culprits[0].type, report.culprits[0].module) == ("non-finite", "pow", "norm")
    assert at_line(report.culprits[0], SquareNorm, "x.pow(2)")


@pytest.mark.slow
def test_residuals_below_256_pass(tmp_path: Path) -> None:
    module = Residual(size=30.0)
    assert validate(convert(module, tmp_path, {"x": ((4, 16), FLOAT16)}), module, draw=rows).verdict == "pass"
