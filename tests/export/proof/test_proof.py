"""What is put in place is the module: healthy ones of all kinds are proven, and what is another function is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.cli.main import main
from coreflow.export import Recipe, TensorSpec, build
from coreflow.export.bundle import BundleDone, StageDone, conversion_of, export_bundle
from coreflow.export.capture.capture import capture
from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.manifest import read_manifest, write_manifest
from coreflow.export.proof.proof import LIMIT, prove
from coreflow.export.targets.lowerings.registry import LOWERINGS, Lowering, load_families
from coreflow.export.targets.mlprogram import convert
from coreflow.models.errors import ExportError

ROWS = {"x": TensorSpec((4, 16))}


class Function(nn.Module):
    """A linear layer before a function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(16, 16), function

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.function(self.layer(x), *others)


def chaos(x: Tensor) -> Tensor:
    for _ in range(12):
        x = torch.sin(4 * x.roll(1, -1) + x)
    return x


def normalised() -> nn.Module:
    """A network whose batch norms are folded into its convolutions."""
    layers = nn.Sequential(*(nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU()) for _ in range(3)))
    for _ in range(3):
        layers.train()(torch.randn(8, 4, 16) * 2 + 0.5)
    return layers.eval()


def recipe(module: nn.Module, **changes: object) -> Recipe:
    return replace(Recipe(name="net", module=module.eval(), inputs=ROWS, outputs=("y",)), **changes)  # type: ignore[arg-type]


HEALTHY: dict[str, Callable[[], Recipe]] = {
    "layers": lambda: recipe(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4))),
    "folded": lambda: recipe(normalised(), inputs={"x": TensorSpec((2, 4, 16))}),
    "chaotic": lambda: recipe(Function(chaos)),
    "decisions": lambda: recipe(Function(lambda x: x.argmax(-1))),
    "mask of infinities": lambda: recipe(Function(lambda x: x.masked_fill(torch.ones(16, 16).tril()[:4] == 0, -torch.inf).softmax(-1))),
    "zeros": lambda: recipe(Function(lambda x: x * 0)),
    "fp32": lambda: recipe(nn.Sequential(nn.Linear(16, 32), nn.GELU()), precision="fp32"),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", HEALTHY)
def test_healthy_modules_of_all_kinds_are_proven(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = HEALTHY[kind]()
    package = convert(conversion_of(capture(made)), tmp_path / "net.mlpackage")

    def no_second_conversion() -> Path:
        raise AssertionError("a conversion at FLOAT32 is for what looks wrong")

    proof = prove(made, package, no_second_conversion)
    assert set(proof.errors) == {"y"} and not proof.warning
    assert proof.error < (LIMIT if kind != "folded" else 1e-2)


def is_lost(x: Tensor) -> Tensor:
    part = x[:, 3:4]
    part.mul_(2)
    return x.sin()


def heavy() -> nn.Module:
    """A weight that fp16 does not hold, and an output that it does."""
    layer = nn.Linear(16, 16)
    with torch.no_grad():
        layer.weight[0, 0] = 1e6
    return nn.Sequential(layer, nn.Tanh())


def test_a_weight_beyond_fp16_is_compared_as_it_is(tmp_path: Path) -> None:
    """Infinite in the reference, it would hide what the program has there."""
    torch.manual_seed(0)
    made = recipe(heavy(), draw=lambda seed: {"x": np.full((4, 16), 2e-7 + seed * 1e-7, np.float16)})
    package = convert(conversion_of(capture(made)), tmp_path / "net.mlpackage")
    assert prove(made, package, lambda: package).error < 1e-3
    with torch.no_grad():
        next(made.module.parameters())[0, 0] = 5e5
    with pytest.raises(ExportError, match="the saved program is not the module"):
        prove(made, package, lambda: package)


def is_infinite(x: Tensor, kept: Tensor) -> Tensor:
    return (x + (1 - kept) * torch.finfo(torch.float32).min).softmax(-1)


WRONG: dict[str, tuple[Callable[..., Tensor], str]] = {
    "a lost write": (is_lost, r"net: the saved program is not the module: output 'y' is 0\.\d+ off, where 1e-04 is the limit"),
    "a mask beyond fp16": (is_infinite, "output 'y' of the saved program is infinite or NaN where the module's is not; .* -1e4"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_another_function_is_refused_and_not_put_in_place(fault: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    function, message = WRONG[fault]
    inputs = ROWS if function is is_lost else {**ROWS, "kept": TensorSpec((4, 16), values=(0, 1))}
    made = recipe(Function(function), inputs=inputs)
    conversion = replace(conversion_of(capture(made)), is_lowered=False)  # as plain coremltools does
    package = convert(conversion, tmp_path / "net.mlpackage")

    def convert_fp32() -> Path:
        entry = replace(conversion.entry, recipe={**conversion.entry.recipe, "precision": "fp32"})
        return convert(replace(conversion, entry=entry), tmp_path / "fp32.mlpackage")

    with pytest.raises(ExportError, match=message):
        prove(made, package, convert_fp32)


def test_a_fault_that_the_traced_inputs_do_not_show_is_found_on_others(tmp_path: Path) -> None:
    """A value frozen at what it is for the input that is traced, and for the seven that the trace is compared on."""

    class Rare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if bool(x[0, 0] > 9) else x * 3

    def draw(seed: int) -> dict[str, np.ndarray]:
        return {"x": np.full((4, 16), 10 if seed >= 8 else 1, np.float16)}

    with pytest.raises(ExportError, match="the saved program is not the module"):
        build(recipe(Rare(), draw=draw), tmp_path)
    assert not list(tmp_path.glob("*.mlpackage"))
    assert build(recipe(Rare(), draw=draw), tmp_path, check=False).is_dir()


def test_the_manifest_and_the_summary_say_what_was_proven(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, bundle = tmp_path / "recipes.py", tmp_path / "bundle"
    file.write_text(
        "import torch\nfrom torch import nn\nfrom coreflow.export import Recipe, TensorSpec\ntorch.manual_seed(0)\n"
        'NET = Recipe(name="net", module=nn.Linear(16, 4), inputs={"x": TensorSpec((4, 16))}, outputs=("y",))\n'
    )
    assert main(["export", f"{file}:NET", "--out", str(bundle), "--no-check"]) == 0
    assert "not checked" in capsys.readouterr().out
    assert json.loads((bundle / "manifest.json").read_text())["stages"]["net"]["proof"] == {"checked": False, "errors": {}}
    assert main(["export", f"{file}:NET", "--out", str(bundle), "--json"]) == 0, "a package that was kept is proven later"
    proof = json.loads(capsys.readouterr().out)["stages"]["net"]["proof"]
    assert proof["checked"] and 0 <= proof["errors"]["y"] < LIMIT
    assert main(["export", f"{file}:NET", "--out", str(bundle)]) == 0
    assert f"error {proof['errors']['y']:.1e}" in capsys.readouterr().out


def test_a_proof_on_record_is_not_made_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = recipe(nn.Linear(16, 4))
    *_, done = export_bundle([made], tmp_path / "bundle")
    assert isinstance(done, BundleDone)
    stage = done.manifest.stages["net"]
    write_manifest(done.path, replace(done.manifest, stages={"net": replace(stage, errors={"y": 0.5})}))
    (event, _) = export_bundle([made], tmp_path / "bundle")
    assert isinstance(event, StageDone) and event.reused and event.errors == {"y": 0.5}
    assert read_manifest(done.path).stages["net"].errors == {"y": 0.5}


def test_a_program_that_is_wrong_in_another_shape_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lowering that is right for one row: neither the trace nor the default shape shows it."""
    quiet_coremltools()
    from coremltools.converters.mil import Builder as mb

    def by_rows(x: Any, alpha: float = 1.0) -> Any:
        rows = mb.slice_by_index(x=mb.shape(x=x), begin=[0], end=[1])
        return mb.mul(x=mb.elu(x=x, alpha=alpha), y=mb.cast(x=rows, dtype="fp32"))

    load_families()
    monkeypatch.setitem(LOWERINGS, "aten::celu", Lowering("aten::celu", by_rows, Path(__file__)))
    one = recipe(Function(torch.nn.functional.celu), inputs={"x": TensorSpec((1, 16))})
    assert build(one, tmp_path).exists()
    with pytest.raises(ExportError, match="output 'y' is"):
        build(replace(one, shapes={"x": [(3, 16)]}), tmp_path)
