"""What people hand over as a module: in half precision, compiled, as a method, in an object."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coreflow.cli.main import main
from coreflow.export import Recipe, TensorSpec, build
from coreflow.export.capture.capture import capture
from coreflow.models.errors import ConfigError
from coreflow.validate import validate

X = {"x": TensorSpec((2, 8))}


def layers(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8))


class Pipeline:
    """No module, but holds some."""

    def __init__(self) -> None:
        self.first, self.others, self.named = layers(0), [layers(1), layers(2)], {"last": layers(3)}
        self.scale = 2.0

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        for part in (self.first, *self.others, self.named["last"]):
            x = part(x)
        return {"y": x * self.scale}


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = layers()

    def features(self, *, x: Tensor) -> Tensor:
        return self.layers(x) * 2


def compiled_inside() -> nn.Module:
    compiled: Any = torch.compile(layers(1), backend="eager")
    return nn.Sequential(layers(), compiled)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("make", [Pipeline, lambda: Features().features, compiled_inside], ids=["object", "method", "compiled part"])
def test_what_holds_modules_is_exported_and_validated(make: Callable[[], Any], tmp_path: Path) -> None:
    recipe = Recipe(name="held", module=make(), inputs=X, outputs=("y",))
    package = build(recipe, tmp_path)
    assert validate(package, recipe, quick=True).verdict == "pass"
    with torch.no_grad():
        next(recipe.module.parameters())[0] += 1
    assert validate(package, recipe, quick=True).verdict == "fail", "the reference runs the modules that it shows"


def test_a_compiled_module_is_the_module_that_was_compiled() -> None:
    module = layers()
    compiled: Any = torch.compile(module, backend="eager")
    recipe = Recipe(name="compiled", module=compiled, inputs=X, outputs=("y",))
    assert recipe.module is module
    assert capture(recipe).fingerprint == capture(Recipe(name="compiled", module=layers(), inputs=X, outputs=("y",))).fingerprint


def test_parts_have_the_names_that_the_object_gives_them() -> None:
    pipeline: Any = Pipeline()
    module = Recipe(name="held", module=pipeline, inputs=X, outputs=("y",)).module
    assert [name for name, _ in module.named_children()] == ["first", "others", "named"]


@pytest.mark.parametrize("value", [lambda x: x, Pipeline, "layers"])
def test_what_holds_no_module_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"neither an nn\.Module nor an object that is called and holds some"):
        Recipe(name="none", module=value, inputs=X, outputs=("y",))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_modules_in_half_precision_go_through_export_and_validation(dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipes.py"
    file.write_text(
        "import torch\nfrom torch import nn\nfrom coreflow.export import Recipe, TensorSpec\ntorch.manual_seed(0)\n"
        f"module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 4)).to(torch.{dtype})\n"
        'NET = Recipe(name="net", module=module, inputs={"x": TensorSpec((2, 8))}, outputs=("y",))\n'
    )
    bundle = tmp_path / "bundle"
    assert main(["export", f"{file}:NET", "--out", str(bundle)]) == 0
    assert main(["validate", str(bundle), "--reference", f"{file}:NET", "--quick"]) == 0
    assert "PASS" in capsys.readouterr().out
