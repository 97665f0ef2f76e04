"""What would convert into something else is refused before it is converted."""

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export import Recipe, TensorSpec
from coreflow.export.bundle import StageDone, build, export_bundle
from coreflow.export.capture.capture import capture, capture_by_export
from coreflow.models.errors import ExportError

VECTOR = {"x": TensorSpec((1, 4))}


def recipe(module: nn.Module, outputs: tuple[str, ...] = ("y",), inputs: dict[str, TensorSpec] | None = None) -> Recipe:
    return Recipe(name="stage", module=module, inputs=inputs or VECTOR, outputs=outputs)


class Counts(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


class Bakes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sum().item()


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x[0, 0] > 0 else -x


class Repeats(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + 1
        return y, y


class Dictionary(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": x}


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Mask(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x > 0


@pytest.mark.parametrize(
    ("module", "outputs", "message"),
    [
        (Counts(), ("y",), "changes the buffer calls"),
        (Bakes(), ("y",), "reads a value"),
        (Branches(), ("y",), "reads a value"),
        (Noise(), ("y",), "draws random numbers"),
        (Repeats(), ("y", "z"), "one tensor as two outputs"),
        (Dictionary(), ("z",), "no tensor 'z'; there is 'y'"),
        (nn.Linear(4, 2), ("y", "z"), "returns 1 tensors, 2 outputs are named"),
        (nn.Linear(5, 2), ("y",), "does not run on x \\(1, 4\\)"),
        (Mask(), ("y",), "'y' is torch.bool"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_modules_that_a_trace_would_change_are_refused(module: nn.Module, outputs: tuple[str, ...], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        capture(recipe(module, outputs))


def test_the_module_is_left_in_the_mode_it_was_in() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    module[0].eval()
    capture(recipe(module))
    assert [part.training for part in module.modules()] == [True, False, True]


def test_a_buffer_that_forward_changes_is_put_back() -> None:
    module = Counts()
    with pytest.raises(ExportError, match="changes the buffer calls"):
        capture(recipe(module))
    assert module.calls.item() == 0


def test_a_trace_is_checked_on_the_samples_given() -> None:
    """None of the draws is as large; the module does not run on the first sample, which says nothing of the trace."""

    class Clips(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.min() < -1e3:
                raise ValueError("out of range")
            return x * 2 if x.max() > 50 else x

    everyday, large, wrong = (np.full((1, 4), value, np.float32) for value in (1, 60, -1e4))
    assert len(capture(recipe(Clips())).frozen) == 1, "the read that guards an error is none"
    capture(recipe(Clips()), [{"x": wrong}, {"x": everyday}])
    with pytest.raises(ExportError, match=r"reads a value .* at .*test_capture.py:\d+"):
        capture(recipe(Clips()), [{"x": everyday}, {"x": large}])


class Watched(nn.Module):
    """``function``, and the first number of every input that it was called with."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.seen = function, set[float]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add(float(x.detach().numpy()[0, 0]))
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "seen"),
    [
        pytest.param(lambda x: x * 2, {1.0, 2.0}, id="nothing depends on values"),
        pytest.param(lambda x: x * 2 if x.max() < 50 else x, {1.0, 2.0, 3.0}, id="a value is read"),
        pytest.param(lambda x: x[:, x[0].argsort()], {1.0, 2.0, 3.0}, id="an index is computed"),
    ],
)
def test_few_replays_are_enough_where_no_sample_can_show_more(function: Callable[[Tensor], Tensor], seen: set[float]) -> None:
    module = Watched(function)
    capture(recipe(module), [{"x": np.full((1, 4), value, np.float32)} for value in (1, 2, 3)], replays=1)
    assert module.seen == seen


def test_an_exported_program_has_a_fingerprint_of_its_own() -> None:
    by_export = capture_by_export(recipe(make(0))).fingerprint
    assert by_export == capture_by_export(recipe(make(0))).fingerprint
    others = [
        capture(recipe(make(0))).fingerprint,
        *(capture_by_export(recipe(other)).fingerprint for other in (make(1), make(0, nn.ReLU))),
    ]
    assert by_export not in others and len(set(others)) == 3


def make(seed: int, activation: type[nn.Module] = nn.GELU) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 4), activation(), nn.Linear(4, 4))


def test_the_fingerprint_covers_weights_operations_constants_and_recipe() -> None:
    class Adds(nn.Module):
        def __init__(self, constant: float) -> None:
            super().__init__()
            self.constant = torch.full((4,), constant)  # neither parameter nor buffer

        def forward(self, x: Tensor) -> Tensor:
            return x + self.constant

    base = capture(recipe(make(0))).fingerprint
    assert base == capture(recipe(make(0))).fingerprint
    others = [
        capture(recipe(make(1))).fingerprint,
        capture(recipe(make(0, nn.ReLU))).fingerprint,
        capture(recipe(make(0), inputs={"x": TensorSpec((2, 4))})).fingerprint,
        capture(recipe(make(0), outputs=("z",))).fingerprint,
        capture(Recipe(name="stage", module=make(0), inputs=VECTOR, outputs=("y",), target="iOS18")).fingerprint,
        capture(recipe(Adds(1.0))).fingerprint,
        capture(recipe(Adds(2.0))).fingerprint,
    ]
    assert len({base, *others}) == len(others) + 1


@pytest.mark.parametrize("after", [nn.ReLU(), nn.Identity()], ids=["inside", "an output"])
def test_convolutions_are_traced_as_operations(after: nn.Module) -> None:
    inputs = {"x": TensorSpec((1, 3, 8, 8))}
    traced = capture(recipe(nn.Sequential(nn.Conv2d(3, 4, 3), after), inputs=inputs)).program
    assert isinstance(traced, torch.jit.ScriptModule)
    x = torch.randn(1, 3, 8, 8)
    assert not torch.equal(traced(x), traced(x + 1))


class Guards(nn.Module):
    """A branch that no drawn input takes."""

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max() > 1000:
            return x * 0
        return x + 1


def test_a_value_that_the_trace_froze_is_told_with_its_line(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is printed a second time
        build(recipe(Guards()), tmp_path)
        (event, _) = export_bundle([recipe(Guards())], tmp_path / "bundle", jobs=1)
    assert isinstance(event, StageDone) and len(event.warnings) == len(caplog.messages) == 1
    assert caplog.messages[0] == f"stage: {event.warnings[0]}"
    line = inspect.getsourcelines(Guards)[1] + 4
    assert f"a value read at tests/export/capture/test_capture.py:{line} is frozen as False" in event.warnings[0]
