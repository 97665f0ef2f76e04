"""Saved programs that compute something else than their reference, by less than fp16 rounds or with the same ops."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.recipe import Recipe
from coreflow.models.spec import TensorSpec
from coreflow.validate import validate


class Net(nn.Module):
    """A convolution, a pool, a norm, attention over one axis and a linear layer, each with a choice that a conversion may get wrong."""

    def __init__(
        self,
        approximate: str = "none",
        eps: float = 1e-5,
        factor: float = 1.0,
        axis: int = -1,
        residual: str = "before",
        slope: float = 0.01,
    ) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.LayerNorm(64, eps=eps)
        self.expand, self.contract, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 16)
        self.approximate, self.factor, self.axis, self.residual, self.slope, self.scale = approximate, factor, axis, residual, slope, 0.1

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.conv(x), self.slope)
        x = nn.functional.avg_pool2d(x, 2).flatten(2)
        normed = self.norm(x)
        y = nn.functional.gelu(self.expand(normed), approximate=self.approximate)
        x = (x if self.residual == "before" else normed) + self.contract(y) * self.factor
        return self.head((normed @ x.transpose(1, 2) * self.scale).softmax(self.axis) @ x)


def recipe(**choices: object) -> Recipe:
    torch.manual_seed(0)
    return Recipe(name="net", module=Net(**choices).eval(), inputs={"x": TensorSpec((1, 3, 16, 16))}, outputs=("y",))  # type: ignore[arg-type]


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "tanh GELU for the exact one": ({"approximate": "tanh"}, "gelu"),
    "epsilon 2e-5 for 1e-5": ({"eps": 2e-5}, "layer_norm"),
    "epsilon 1e-3 for 1e-5": ({"eps": 1e-3}, "layer_norm"),
    "a factor of 1.001": ({"factor": 1.001}, "mul"),
    "a slope of 0.0101": ({"slope": 0.0101}, "leaky_relu"),
    "a softmax over another axis": ({"axis": 1}, "softmax"),
    "a residual from behind the norm": ({"residual": "after"}, "add"),
}


@pytest.fixture(scope="module")
def reference() -> Recipe:
    return recipe()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("fault", WRONG)
def test_another_program_fails_as_translation_and_its_op_is_named(fault: str, reference: Recipe, tmp_path: Path) -> None:
    choices, op_type = WRONG[fault]
    report = validate(build(recipe(**choices), tmp_path), reference)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "translation", 4), report.text
    assert "program" in {gate.name for gate in report.outputs["y"].failed_gates}
    assert "translation" not in {gate.name for gate in report.outputs["y"].failed_gates}, "a fresh conversion is right"
    assert report.culprits[0].type == op_type, [(culprit.name, culprit.text) for culprit in report.culprits]


def test_the_same_program_passes(reference: Recipe, tmp_path: Path) -> None:
    report = validate(build(reference, tmp_path), reference)
    assert report.verdict == "pass", report.text
    assert report.outputs["y"].rungs["R2s"].relative_rms < 1e-6 < report.outputs["y"].rungs["R3"].relative_rms


def change_one_bias(net: Net) -> None:
    net.head.bias[3] += 0.05


def zero_block(net: Net) -> None:
    net.expand.weight[:8, :8] = 0


def scale_slightly(net: Net) -> None:
    net.contract.weight *= 1.001


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("change", "weight"), [(change_one_bias, "head.bias"), (zero_block, "expand.weight"), (scale_slightly, "contract.weight")]
)
def test_other_weights_fail_as_weights_and_are_named(change: Callable[[Net], None], weight: str, reference: Recipe, tmp_path: Path) -> None:
    other = recipe()
    assert isinstance(other.module, Net)
    with torch.no_grad():
        change(other.module)
    report = validate(build(other, tmp_path), reference)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "weights", 1), report.text
    assert report.culprits[0].kind == "weights" and weight in report.culprits[0].text


def test_packages_in_fp32_are_looked_at_alike(reference: Recipe, tmp_path: Path) -> None:
    in_fp32 = replace(reference, precision="fp32")
    wrong = validate(build(replace(recipe(eps=2e-5), precision="fp32"), tmp_path / "wrong"), in_fp32)
    assert (wrong.verdict, wrong.cause) == ("fail", "translation")
    healthy = validate(build(in_fp32, tmp_path / "healthy"), in_fp32)
    assert healthy.verdict == "pass", healthy.text


class Untraceable(Net):
    """A module that cannot be converted anew."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or torch._C._get_tracing_state():
            raise RuntimeError("this module runs eagerly only")
        return super().forward(x)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("choices", "verdict"), [({}, "pass"), ({"approximate": "tanh"}, "fail"), ({"factor": 0.5}, "fail")])
def test_without_a_fresh_conversion_the_module_alone_is_enough(choices: dict[str, object], verdict: str, tmp_path: Path) -> None:
    package = build(recipe(**choices), tmp_path)
    plain = recipe()
    torch.manual_seed(0)
    report = validate(package, replace(plain, module=Untraceable().eval()))
    assert "R2" not in report.outputs["y"].rungs and "R2s" in report.outputs["y"].rungs
    assert report.verdict == verdict, report.text
