"""Validation under the published model of the Neural Engine: its own rung, its label, and products that only the engine loses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coreflow.cli.main import main
from coreflow.export import Recipe, TensorSpec, build
from coreflow.models.arrays import Arrays
from coreflow.runtime.backend import PUBLISHED_MODEL
from coreflow.validate import validate
from coreflow.validate.report.wording import execution


def product(scale: float) -> Recipe:
    """4096 terms whose factors have this deviation."""
    torch.manual_seed(0)
    layer = nn.Linear(4096, 16, bias=False)
    nn.init.normal_(layer.weight, std=scale)

    def draw(seed: int) -> Arrays:
        return {"x": (np.random.default_rng(seed).standard_normal((4, 4096)) * scale).astype(np.float16)}

    return Recipe(name="product", module=layer, inputs={"x": TensorSpec((4, 4096))}, outputs=("y",), draw=draw)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("numerics", ["engine-m4", "engine-m4-fast"])
def test_products_of_small_numbers_are_right_in_fp16_and_lost_on_the_engine(numerics: str, tmp_path: Path) -> None:
    """2.7 % of the result, by the rule of products (ane-hardware.md 1.1); with both factors 16 times as large, nothing to speak of."""
    small, large = product(1 / 64), product(1 / 4)
    package = build(small, tmp_path)
    on_cpu, on_engine = (validate(package, small, numerics=name, quick=True) for name in ("fp16", numerics))  # type: ignore[arg-type]
    assert on_cpu.verdict == "pass" and "R5" not in on_cpu.outputs["y"].rungs
    assert on_engine.verdict == "fail"
    assert on_engine.outputs["y"].rungs["R5"].relative_rms == pytest.approx(0.027, rel=0.2 if numerics == "engine-m4" else 0.4)
    assert on_engine.outputs["y"].rungs["R4"].relative_rms < 1e-3
    assert PUBLISHED_MODEL in execution(on_engine)
    assert validate(build(large, tmp_path), large, numerics=numerics, quick=True).verdict == "pass"  # type: ignore[arg-type]


def test_the_command_takes_numerics_and_says_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\nfrom coreflow.export import Recipe, TensorSpec\n"
        'NET = Recipe(name="net", module=nn.Softmax(-1), inputs={"x": TensorSpec((1, 4))}, outputs=("y",))\n'
    )
    assert main(["export", f"{file}:NET", "--out", str(tmp_path / "bundle")]) == 0
    assert main(["validate", str(tmp_path / "bundle"), "--numerics", "engine-m1", "--quick"]) == 0
    assert f"numerics engine-m1 ({PUBLISHED_MODEL})" in " ".join(capsys.readouterr().out.split())
    assert main(["validate", str(tmp_path / "bundle"), "--numerics", "engine-m3", "--quick"]) == 2
    assert "numerics 'engine-m3'; choose one of fp64" in capsys.readouterr().err
