"""What would convert into something else is refused before it is converted."""

import pytest
import torch
from torch import Tensor, nn

from coreflow.export import Recipe, TensorSpec
from coreflow.export.capture import capture
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
        (Dictionary(), ("y",), "returns dict"),
        (nn.Linear(4, 2), ("y", "z"), "returns 1 tensors, the recipe names 2"),
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


def test_convolutions_are_traced_as_operations() -> None:
    inputs = {"x": TensorSpec((1, 3, 8, 8))}
    traced = capture(recipe(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), inputs=inputs)).traced
    x = torch.randn(1, 3, 8, 8)
    assert not torch.equal(traced(x), traced(x + 1))
