"""Writes through views: torch.export keeps what a trace loses, and an error names the line of what neither keeps."""

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from coreflow.export import Recipe, TensorSpec
from coreflow.export.bundle import BundleDone, StageDone, build, conversion_of, export_bundle
from coreflow.export.capture import front_ends
from coreflow.export.capture.capture import Captured, FrontEndError, capture, capture_by_export
from coreflow.export.capture.front_ends import capture_best
from coreflow.export.package.mlpackage import read_program
from coreflow.export.targets.mlprogram import convert
from coreflow.models.errors import ExportError
from tests.validate.diagnosis.test_lost_writes import KEPT, LOST, Collecting, Writing, add_to_item, clamp, last_line, scale

ROWS = {"x": TensorSpec((4, 16))}
THERE = "tests/validate/diagnosis/test_lost_writes.py"


def recipe(module: nn.Module) -> Recipe:
    return Recipe(name="net", module=module.eval(), inputs=ROWS, outputs=("y",))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("write", LOST)
def test_a_write_that_a_trace_loses_is_kept_by_the_other_front_end(write: Callable[[Tensor, Tensor], None]) -> None:
    captured = capture_best(recipe(Writing(write)))
    assert captured.front_end == "export"
    assert [str(place) for place in captured.lost_writes] == [f"{THERE}:{last_line(write)}"]
    x = torch.randn(4, 16)
    assert isinstance(captured.program, torch.export.ExportedProgram)
    with torch.no_grad():
        torch.testing.assert_close(captured.program.module()(x), captured.recipe.module(x))


@pytest.mark.parametrize("write", [write for write in KEPT if write is not add_to_item])
def test_a_write_that_a_trace_keeps_is_traced(write: Callable[[Tensor, Tensor], None]) -> None:
    assert capture_best(recipe(Writing(write))).front_end == "trace"


@pytest.mark.parametrize("module", [Writing(clamp), Collecting("input")], ids=["a value", "an input"])
def test_what_is_saved_has_the_writes(module: nn.Module, tmp_path: Path) -> None:
    *_, done = export_bundle([recipe(module)], tmp_path / "bundle")
    assert isinstance(done, BundleDone)
    stage = done.manifest.stages["net"]
    assert stage.recipe["front_end"] == "export"
    assert stage.errors is not None and stage.errors["y"] < 1e-3


def refuse(recipe: Recipe) -> None:
    raise FrontEndError(f"{recipe.name}: not today")


@pytest.mark.parametrize("check", [True, False])
def test_a_write_that_neither_keeps_is_refused_with_its_line(check: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_ends, "capture_by_export", refuse)
    with pytest.raises(ExportError, match=rf"forward writes through a view at {THERE}:{last_line(scale)}, which is lost: assign"):
        build(recipe(Writing(scale)), tmp_path, check=check)
    assert not list(tmp_path.iterdir())


def test_a_write_that_looks_lost_and_is_not_is_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_ends, "capture_by_export", refuse)
    assert build(recipe(Writing(add_to_item)), tmp_path).is_dir()


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(16, 8), Mismatch())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


class Mismatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(3, 3)


class Bessel(nn.Module):
    """An operation that no front end converts."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.special.i0(x)


@pytest.mark.parametrize("capture_by", [capture, capture_by_export])
def test_an_error_of_the_converter_names_the_line_and_the_submodule(capture_by: Callable[[Recipe], Captured], tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.ReLU(), Bessel()))
    line = inspect.getsourcelines(Bessel)[1] + 4
    place = rf"tests/export/capture/test_front_ends.py:{line} \(1.1\)"
    with pytest.raises(ExportError, match=rf"^net: the converter gave up at {place}: .*i0"):
        convert(conversion_of(capture_by(recipe(module))), tmp_path / "net.mlpackage")


class Picks(nn.Module):
    """As many values as are above a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        return x[x > self.limit] * 2


@pytest.mark.parametrize("limit", [0.0, -1e3], ids=["others for each sample", "all, as it happens"])
def test_an_output_whose_shape_depends_on_values_is_refused(limit: float, tmp_path: Path) -> None:
    line = inspect.getsourcelines(Picks)[1] + 8
    place = f"tests/export/capture/test_front_ends.py:{line}"
    with pytest.raises(
        ExportError, match=f"^net: the shape of 'y' depends on values.*, by index at {place}; return all places, and a mask"
    ):
        build(recipe(Picks(limit)), tmp_path)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(8, 8, 2, batch_first=True)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.layer(x, h)
        return y, h


@pytest.mark.parametrize("steps", [1, 3])
def test_a_gru_is_its_operations_for_one_step_and_a_loop_that_is_warned_of_for_more(steps: int, tmp_path: Path) -> None:
    inputs = {"x": TensorSpec((1, steps, 8)), "h": TensorSpec((2, 1, 8))}
    event, done = export_bundle([Recipe(name="net", module=Recurrent(), inputs=inputs, outputs=("y", "h_next"))], tmp_path / "bundle")
    assert isinstance(event, StageDone) and isinstance(done, BundleDone)
    graph, _ = read_program(done.path / done.manifest.stages["net"].package).function()
    loops = sum(op.type == "while_loop" for op in graph.walk())
    assert loops == (0 if steps == 1 else 2)
    assert [text for text in event.warnings if "while_loop" in text] == [text for text in event.warnings if text.startswith("2 loops")]
    assert bool(event.warnings) == (steps > 1)


def test_an_error_of_the_module_names_its_line_and_the_submodule() -> None:
    line = inspect.getsourcelines(Mismatch)[1] + 2
    place = rf"tests/export/capture/test_front_ends.py:{line} \(inner.1\)"
    with pytest.raises(ExportError, match=rf"^net: the module does not run on x \(4, 16\) at {place}: "):
        capture(recipe(Fails()))
