"""Conversions that end well and are wrong, made as a user makes them, by coremltools itself: none of them passes.

Every network is small; its fault is the one that larger ones have. The report names the op or the line that is wrong. Where the project's
own export would make the same mistake it either refuses or does not make it, which is tested beside it.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.mlpackage import read_program
from coreflow.export.package.summary import stored_weights, summarize
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Array, Arrays, Draw
from coreflow.models.errors import ConfigError, ExportError
from coreflow.models.spec import TensorSpec
from coreflow.validate import validate
from coreflow.validate.ladder.fp32 import try_fp32
from coreflow.validate.ladder.opening import open_package
from coreflow.validate.options import Evidence, Options
from coreflow.validate.report.model import Culprit, Report

Shapes = Mapping[str, tuple[tuple[int, ...], type[np.generic] | None]]
FLOAT16, WHOLE = np.float16, np.int32


def convert(
    module: nn.Module,
    folder: Path,
    inputs: Shapes,
    outputs: Sequence[str] = ("y",),
    *,
    front_end: Literal["trace", "export"] = "trace",
    example: Callable[[], tuple[Tensor, ...]] | None = None,
    target: str = "iOS17",
    state: Mapping[str, tuple[int, ...]] | None = None,
    precision: type[np.generic] = FLOAT16,
) -> Path:
    """What a user saves without this project: traced or exported, converted; ``None`` leaves out an input's dtype."""
    ct = quiet_coremltools()
    given = example() if example is not None else tuple(_example(*specification) for specification in inputs.values())
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a trace cannot follow it
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = (
            torch.jit.trace(module.eval(), given, check_trace=False)
            if front_end == "trace"
            else torch.export.export(module.eval(), given, strict=False).run_decompositions({})
        )
        model = ct.convert(
            program,
            inputs=[
                ct.TensorType(name=name, shape=shape, **({} if dtype is None else {"dtype": dtype}))
                for name, (shape, dtype) in inputs.items()
            ],
            outputs=[ct.TensorType(name=name, dtype=precision) for name in outputs],
            states=[
                ct.StateType(wrapped_type=ct.TensorType(shape=shape, dtype=FLOAT16), name=name) for name, shape in (state or {}).items()
            ]
            or None,
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=ct.precision.FLOAT16 if precision is FLOAT16 else ct.precision.FLOAT32,
            skip_model_load=True,
        )
    torch.backends.mha.set_fastpath_enabled(fast)
    package = folder / "user.mlpackage"
    model.save(str(package))
    return package


def _example(shape: tuple[int, ...], dtype: type[np.generic] | None) -> Tensor:
    return torch.full(shape, 2, dtype=torch.int32) if dtype is not FLOAT16 else torch.ones(shape)


def recipe_of(module: nn.Module, draw: Draw, outputs: tuple[str, ...] = ("y",)) -> Recipe:
    specs = {name: TensorSpec(array.shape, str(array.dtype)) for name, array in draw(0).items()}  # type: ignore[arg-type]
    return Recipe(name="user", module=module, inputs=specs, outputs=outputs, draw=draw)


def line_of(owner: Any, text: str) -> int:
    lines, first = inspect.getsourcelines(owner)
    return first + next(place for place, line in enumerate(lines) if text in line)


def at_line(culprit: Culprit, owner: Any, text: str) -> bool:
    """Whether a culprit is traced to this line of this file."""
    return (Path(culprit.file or "").name, culprit.line) == (Path(__file__).name, line_of(owner, text))


def failing_gates(report: Report, output: str = "y") -> set[str]:
    return {gate.name for gate in report.outputs[output].failed_gates}


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(FLOAT16)


# --- torch.export drops keyword arguments ---------------------------------------------------------------------------------------------


class Padded(nn.Module):
    """torch's own encoder with a key-padding mask; the padding is where the mask is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1, enable_nested_tensor=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=mask < 0.5)


def padded(seed: int) -> Arrays:
    mask = np.ones((1, 8), FLOAT16)
    mask[0, 3 + seed % 4 :] = 0
    return {"x": normal(seed, 1, 8, 16), "mask": mask}


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


def test_a_fresh_conversion_is_made_of_the_callers_samples(tmp_path: Path) -> None:
    """Nobody has recorded bounds for the ids, so that none can be drawn; the inverted mask was called wrong weights."""
    module = PaddedWords()
    shapes: Shapes = {"ids": ((1, 8), WHOLE), "mask": ((1, 8), FLOAT16)}
    report = validate(convert(module, tmp_path, shapes, front_end="export"), module, [padded_words(seed) for seed in range(4)])
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "translation", 4)
    assert "R2" in report.outputs["y"].rungs and not any("R2 was not run" in note for note in report.notes)
    assert at_line(report.culprits[0], Padded, "src_key_padding_mask=mask")


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


def rows(seed: int) -> Arrays:
    return {"x": normal(seed, 4, 16)}


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


def test_the_own_export_refuses_an_alpha_that_the_converter_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not support"):
        build(recipe_of(Scaled().eval(), rows), tmp_path)


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


@pytest.mark.parametrize("by", ["coremltools", "the own export"])
def test_a_mask_of_the_smallest_float_becomes_nan(by: str, tmp_path: Path) -> None:
    """0 · -inf: the largest float32 is beyond fp16, so that where a key is present its bias is not a number."""
    module = Masked().eval()
    shapes = {"x": ((1, 8, 16), FLOAT16), "mask": ((1, 8), FLOAT16)}
    package = convert(module, tmp_path, shapes) if by == "coremltools" else build(recipe_of(module, padded), tmp_path)
    report = validate(package, module, draw=padded)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "non-finite", 3)
    assert failing_gates(report) >= {"finite"}
    assert (report.culprits[0].kind, report.culprits[0].type) == ("non-finite", "mul")
    assert at_line(report.culprits[0], Masked, "finfo")
    assert "overflows" in {constant.problem for constant in report.constants}


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


def test_residuals_below_256_pass(tmp_path: Path) -> None:
    module = Residual(size=30.0)
    assert validate(convert(module, tmp_path, {"x": ((4, 16), FLOAT16)}), module, draw=rows).verdict == "pass"


# --- what a trace freezes or loses ----------------------------------------------------------------------------------------------------


class Cached(nn.Module):
    """One new key of a cache that comes and goes as a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(8, 8)

    def forward(self, x: Tensor, cache: Tensor, position: Tensor) -> Tensor:
        cache = cache * 1.0
        cache[:, :, position] = self.key(x).unsqueeze(-1)
        return cache


def at_positions(seed: int) -> Arrays:
    return {"x": normal(seed, 1, 8), "cache": normal(seed + 100, 1, 8, 6), "position": np.array([seed % 6], WHOLE)}


@pytest.mark.parametrize("by", ["coremltools", "the own export"])
def test_a_write_at_a_tensor_index_is_lost_by_the_converter(by: str, tmp_path: Path) -> None:
    """The trace is right, so the own export has nothing to refuse; the conversion at FLOAT32 shows the loss."""
    module = Cached().eval()
    shapes: Shapes = {"x": ((1, 8), FLOAT16), "cache": ((1, 8, 6), FLOAT16), "position": ((1,), WHOLE)}
    package = convert(module, tmp_path, shapes) if by == "coremltools" else build(recipe_of(module, at_positions), tmp_path)
    assert "linear" not in {op.type for op in read_program(package).function()[0].ops}, "what would be written is not even computed"
    report = validate(package, module, draw=at_positions)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "translation", 4)
    assert failing_gates(report) >= {"translation", "rho_rms"}
    assert report.culprits[0].kind == "translation" and "the program does not" in report.culprits[0].text
    assert at_line(report.culprits[0], Cached, "cache[:, :, position] =")


class Buffered(nn.Module):
    """``Cached`` with its cache in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(8, 8)
        self.register_buffer("cache", torch.zeros(1, 8, 6))
        self.cache: Tensor

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        self.cache[:, :, position] = self.key(x).unsqueeze(-1)
        return self.cache.sum(-1)


def new_keys(seed: int) -> Arrays:
    return {"x": normal(seed, 1, 8), "position": np.array([seed % 6], WHOLE)}


class Named(nn.Module):
    """Outputs by name, as no converter takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.linear(x)
        return {"y": y, "size": torch.tanh(y)}


class NamedAsTuple(Named):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        y = self.linear(x)
        return y, torch.tanh(y)


def test_outputs_by_name_have_a_fresh_conversion(tmp_path: Path) -> None:
    module = Named()
    plain = NamedAsTuple()
    plain.load_state_dict(module.state_dict())
    report = validate(convert(plain, tmp_path, {"x": ((4, 16), FLOAT16)}, ("y", "size")), module, draw=rows)
    assert not any("R2 was not run" in note for note in report.notes), report.notes
    assert report.outputs["y"].rungs["R2"].relative_rms < 1e-6


def test_a_module_without_a_fresh_conversion_says_how_to_get_one(tmp_path: Path) -> None:
    class Inverted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.linalg.inv(x @ x.transpose(0, 1) + torch.eye(4) * 1e4).sum() * 0.0

    opened = open_package(read_program(convert(nn.Sequential(nn.Identity()), tmp_path, {"x": ((4, 16), FLOAT16)})), Options())
    fresh = try_fp32(opened, Inverted(), None, [rows(0)])
    assert fresh.program is None
    assert "inv" in fresh.problem and "wide_package=" in fresh.problem, fresh.problem


def test_a_buffer_that_a_trace_forgets_to_write(tmp_path: Path) -> None:
    module = Buffered()
    report = validate(convert(module, tmp_path, {"x": ((1, 8), FLOAT16), "position": ((1,), WHOLE)}), module, draw=new_keys)
    assert (report.verdict, report.cause) == ("fail", "translation")
    assert "it changes its own buffers, and the package keeps no state" in report.text


def test_the_own_export_refuses_a_module_that_writes_to_a_buffer(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="changes the buffer cache"):
        build(recipe_of(Buffered().eval(), new_keys), tmp_path)


class Positioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 8)

    def forward(self, table: Tensor, position: Tensor) -> Tensor:
        place = int(position.item())
        row = table[:, place : place + 1]
        return self.out(row)


def looked_up(seed: int) -> Arrays:
    # The position traced is the first one drawn too: only other samples show that it was frozen.
    return {"table": normal(seed, 4, 6, 8), "position": np.array([(seed + 2) % 6], WHOLE)}


def test_a_position_read_by_item_is_frozen_by_a_trace(tmp_path: Path) -> None:
    module = Positioned()
    package = convert(module, tmp_path, {"table": ((4, 6, 8), FLOAT16), "position": ((1,), WHOLE)})
    report = validate(package, module, draw=looked_up)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "translation", 4)
    assert (report.culprits[0].kind, report.culprits[0].type) == ("translation", "slice_by_index")
    assert at_line(report.culprits[0], Positioned, "row = table")
    right = validate(package, module, [looked_up(0)])
    assert right.verdict == "warn", "at the position traced nothing is wrong, and no other was given"
    assert f"test_wrong_conversions.py:{line_of(Positioned, 'position.item()')}" in right.text


class Branching(nn.Module):
    """A branch that inputs of everyday size do not take, beside two that say nothing of the program."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.isfinite(x).all():
            raise ValueError("not finite")
        assert self.out.weight.sum() < 1e6
        y = self.out(x)
        if x.max() > 50:
            y = torch.tanh(y) * 2.0
        return y


def everyday(seed: int) -> Arrays:
    return {"x": normal(seed, 4, 8)}


def large(seed: int) -> Arrays:
    return {"x": normal(seed, 4, 8) * 60}


def test_a_branch_that_no_draw_takes_is_a_warning_and_a_sample_that_takes_it_a_failure(tmp_path: Path) -> None:
    module = Branching()
    package = convert(module, tmp_path, {"x": ((4, 8), FLOAT16)})
    report = validate(package, module)
    assert report.verdict == "warn", report.text
    assert f"test_wrong_conversions.py:{line_of(Branching, 'if x.max()')}," in report.text, "the line, and no other one"
    for samples in ([large(0)], [large(0), large(1)], [everyday(0), large(0)]):
        reached = validate(package, module, samples)
        assert (reached.verdict, reached.cause) == ("fail", "translation"), reached.text


def test_the_own_export_refuses_a_value_that_is_read(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"\.item\(\)"):
        build(recipe_of(Positioned().eval(), looked_up), tmp_path)


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
