"""What a trace loses or freezes: writes into caches and buffers, positions and branches. None of them passes; see
``test_wrong_conversions``.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.package.mlpackage import read_program
from coreflow.models.arrays import Arrays
from coreflow.models.errors import ExportError
from coreflow.validate import validate
from coreflow.validate.ladder.fp32 import try_fp32
from coreflow.validate.ladder.opening import open_package
from coreflow.validate.options import Options
from tests.validate.conversions import FLOAT16, WHOLE, Shapes, at_line, convert, failing_gates, line_of, normal, recipe_of, rows

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


def test_a_write_at_a_tensor_index_is_lost_by_the_converter(tmp_path: Path) -> None:
    """The trace is right; the conversion at FLOAT32 shows the loss."""
    module = Cached().eval()
    shapes: Shapes = {"x": ((1, 8), FLOAT16), "cache": ((1, 8, 6), FLOAT16), "position": ((1,), WHOLE)}
    package = convert(module, tmp_path, shapes)
    assert "linear" not in {op.type for op in read_program(package).function()[0].ops}, "what would be written is not even computed"
    report = validate(package, module, draw=at_positions)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "translation", 4)
    assert failing_gates(report) >= {"translation", "rho_rms"}
    assert report.culprits[0].kind == "translation" and "the program does not" in report.culprits[0].text
    assert at_line(report.culprits[0], Cached, "cache[:, :, position] =")


@pytest.mark.slow
def test_the_own_export_keeps_a_write_at_a_tensor_index(tmp_path: Path) -> None:
    recipe = recipe_of(Cached().eval(), at_positions)
    assert validate(build(recipe, tmp_path), recipe, quick=True).verdict == "pass"


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


@pytest.mark.slow
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
    assert f"{Path(__file__).name}:{line_of(Positioned, 'position.item()')}" in right.text


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
    assert f"{Path(__file__).name}:{line_of(Branching, 'if x.max()')}," in report.text, "the line, and no other one"
    for samples in ([large(0)], [large(0), large(1)], [everyday(0), large(0)]):
        reached = validate(package, module, samples)
        assert (reached.verdict, reached.cause) == ("fail", "translation"), reached.text


def test_the_own_export_refuses_a_value_that_is_read(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"\.item\(\)"):
        build(recipe_of(Positioned().eval(), looked_up), tmp_path)
