"""References of every kind, and those that are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe
from coreflow.export.user_files import load_recipes
from coreflow.models.errors import BundleError, ConfigError, InputError
from coreflow.models.spec import TensorSpec
from coreflow.runtime.lift.onnx.write import write_onnx
from coreflow.validate import validate
from coreflow.validate.inputs.samples import Sample


class Net(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Choosing(Net):
    """Also the place of the largest score."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        scores = super().forward(x)
        return scores, scores.argmax(-1).to(torch.int32)


def recipe(name: str = "net", outputs: tuple[str, ...] = ("y",), module: nn.Module | None = None) -> Recipe:
    return Recipe(name=name, module=(module or Net()).eval(), inputs={"x": TensorSpec((64, 32))}, outputs=outputs)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(recipe(), tmp_path_factory.mktemp("net"))


def other(folder: Path, scale: float) -> Recipe:
    changed = Net()
    with torch.no_grad():
        changed.second.weight[3] *= scale
    return recipe("other", module=changed)


def test_a_package_can_have_another_s_fp16_as_its_reference(package: Path, tmp_path: Path) -> None:
    assert validate(package, package).verdict == "pass"
    report = validate(package, build(other(tmp_path, 1.1), tmp_path))
    assert (report.verdict, report.cause, report.budget) == ("fail", "weights", "the reference package's own fp16")
    assert report.outputs["y"].worst_slice == "[:, 3]"


def test_an_onnx_reference_is_compared_within_drawn_rounding(package: Path, tmp_path: Path) -> None:
    write_onnx(read_program(package), tmp_path / "same.onnx")
    same = validate(package, tmp_path / "same.onnx")
    assert (same.verdict, same.budget) == ("pass", "drawn rounding")
    assert {gate.name for gate in same.outputs["y"].gates} >= {"rho_rms", "contract", "finite"}
    write_onnx(read_program(build(other(tmp_path, 1.1), tmp_path)), tmp_path / "other.onnx")
    assert validate(package, tmp_path / "other.onnx").verdict == "fail"


def test_recorded_outputs_stand_for_a_reference(package: Path) -> None:
    module, samples = Net().eval(), []
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal((64, 32)).astype(np.float16)
        with torch.no_grad():
            y = module(torch.from_numpy(x.astype(np.float32))).numpy()
        samples.append(Sample(label=f"recorded {seed}", inputs={"x": x}, expected={"y": y}))
    assert validate(package, None, samples).verdict == "pass"
    wrong = [
        Sample(label=sample.label, inputs=sample.inputs, expected={"y": np.roll((sample.expected or {})["y"], 1, -1)}) for sample in samples
    ]
    assert validate(package, None, wrong).verdict == "fail"
    with pytest.raises(InputError, match="recorded 0 records no y"):
        validate(package, None, [Sample(label="recorded 0", inputs=samples[0].inputs, expected={})])


def test_names_have_to_be_the_same(package: Path, tmp_path: Path) -> None:
    named = build(recipe("named", outputs=("z",)), tmp_path)
    with pytest.raises(ConfigError, match="gives z; the package gives y"):
        validate(package, named)


def test_other_files_are_refused(package: Path, tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    with pytest.raises(BundleError, match=r"no\.onnx is no ONNX file"):
        validate(package, tmp_path / "no.onnx")
    with pytest.raises(ConfigError, match=r"a \.mlpackage or an \.onnx file"):
        validate(package, tmp_path / "model.tflite")


class TestChoices:
    """Places of largest values: a flip between scores that fp16 does not tell apart is no fault."""

    @pytest.fixture(scope="class")
    @classmethod
    def choosing(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return build(recipe("choosing", ("scores", "best"), Choosing()), tmp_path_factory.mktemp("choosing"))

    def test_a_near_tie_may_fall_either_way(self, choosing: Path) -> None:
        tied = Choosing()
        with torch.no_grad():  # two scores that differ by less than fp16 can hold
            tied.second.weight[1] = tied.second.weight[0] * (1 + 1e-7)
            tied.second.bias[1] = tied.second.bias[0] = 3.0
        report = validate(build(recipe("tied", ("scores", "best"), tied), choosing.parent), recipe("tied", ("scores", "best"), tied))
        assert report.verdict == "pass" and report.outputs["best"].outcome == "pass"
        assert report.outputs["best"].flips > 0 and "within fp16 noise" in report.outputs["best"].gates[0].text

    def test_another_choice_is_a_fault(self, choosing: Path) -> None:
        turned = Choosing()
        with torch.no_grad():
            turned.second.bias[5] += 0.3
        report = validate(choosing, recipe("choosing", ("scores", "best"), turned))
        assert report.verdict == "fail" and report.outputs["best"].outcome == "fail" and report.outputs["best"].flips > 0


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 0.1 * torch.rand(64, 32)


class Dropping(Noisy):
    """A dropout that no mode switches off."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.layer(x), 0.1, training=True)


class Counting(Noisy):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) * self.calls


class TestUnrepeatable:
    """A reference that gives something else each time is named, whatever the package is."""

    @pytest.mark.parametrize("module", [Noisy(), Dropping()], ids=["rand", "dropout"])
    def test_random_numbers_make_no_reference(self, module: nn.Module, package: Path) -> None:
        report = validate(package, module)
        assert (report.verdict, report.cause, report.exit_code) == ("incomplete", None, 5)
        assert "for the same inputs whenever it runs: it draws random numbers, or a dropout is on" in report.text

    def test_a_state_that_the_package_lacks_is_translation(self, package: Path) -> None:
        report = validate(package, Counting())
        assert (report.verdict, report.cause, report.exit_code) == ("fail", "translation", 4)
        assert "changes its own buffers, and the package keeps no state" in report.text

    @pytest.mark.parametrize("seeded", [False, True])
    def test_weights_that_a_recipe_draws_when_it_is_loaded_are_not_called_wrong(self, seeded: bool, tmp_path: Path) -> None:
        file = tmp_path / "recipes.py"
        file.write_text(
            "import torch\nfrom torch import nn\nfrom coreflow.export import Recipe, TensorSpec\n"
            + ("torch.manual_seed(0)\n" if seeded else "")
            + "NET = Recipe(name='net', module=nn.Linear(32, 32), inputs={'x': TensorSpec((64, 32))}, outputs=('y',))\n"
        )
        (exported,), (loaded,) = (load_recipes(f"{file}:NET") for _ in range(2))
        report = validate(build(exported, tmp_path), loaded)
        if seeded:
            assert report.verdict == "pass", report.text
            return
        assert (report.verdict, report.cause, report.exit_code) == ("incomplete", None, 5)
        assert f"{file}:NET draws its weights anew whenever it is loaded ('weight' differs)" in report.text

    def test_inputs_that_no_seed_decides_are_noted(self, package: Path) -> None:
        random = np.random.default_rng(0)
        report = validate(package, recipe(), draw=lambda seed: {"x": random.standard_normal((64, 32)).astype(np.float16)})
        assert report.verdict == "pass" and any("the draw gives other inputs for the same seed" in note for note in report.notes)
        assert not any("same seed" in note for note in validate(package, recipe()).notes)
