"""Our passes of the converter and those of a recipe, and the front end that a recipe names."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export import Recipe, TensorSpec, build
from coreflow.export.bundle import export_bundle
from coreflow.export.capture.capture import capture
from coreflow.export.capture.front_ends import capture_best
from coreflow.export.package.mlpackage import read_program
from coreflow.export.targets.finite_masks import finite_masks
from coreflow.export.targets.passes import REMOVED_PASSES, pipeline
from coreflow.models.arrays import Arrays
from coreflow.models.errors import ConfigError, ExportError
from coreflow.runtime import load_model

LEAST = torch.finfo(torch.float32).min


class Attention(nn.Module):
    """Scores of which all of the last row are masked, in the way that ``form`` says."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.form == "masked_fill":
            scores = x.masked_fill(mask == 0, LEAST)
        elif self.form == "where":
            scores = torch.where(mask == 1, x, torch.tensor(-1e32))
        else:
            scores = x + (1.0 - mask) * LEAST
        return scores.softmax(-1) * mask


def attention(form: str) -> Recipe:
    def draw(seed: int) -> Arrays:
        mask = np.tril(np.ones((4, 4), np.int32))[::-1]
        mask = np.where(np.arange(4)[:, None] == 3, 0, mask).astype(np.int32)
        return {"x": np.random.default_rng(seed).normal(size=(1, 4, 4)).astype(np.float16), "mask": mask[None]}

    inputs = {"x": TensorSpec((1, 4, 4)), "mask": TensorSpec((1, 4, 4), "int32", values=(0, 1))}
    return Recipe(name="attention", module=Attention(form), inputs=inputs, outputs=("y",), draw=draw)


@pytest.mark.parametrize("form", ["masked_fill", "where", "product"])
def test_a_row_without_tokens_is_finite(tmp_path: Path, form: str) -> None:
    recipe = attention(form)
    arrays = recipe.inputs_for(0)
    y = load_model(build(recipe, tmp_path), "lifted").predict(arrays)["y"]
    x, mask = torch.from_numpy(arrays["x"]).float(), torch.from_numpy(arrays["mask"])
    np.testing.assert_allclose(y, recipe.module(x, mask).numpy(), atol=2e-3)


def program_of(*values: Any) -> Any:
    """A program whose input of shape [3] meets each value: in a select, and a bound in a clip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import coremltools as ct
        from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec(shape=(3,))], opset_version=ct.target.iOS17)  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        for value in values:
            x = mb.select(cond=mb.greater(x=x, y=np.float32(0)), a=x, b=value)
        return mb.clip(x=x, alpha=np.float32(LEAST), beta=np.float32(-LEAST))

    return program


def constants(program: Any) -> list[Any]:
    operations = program.functions["main"].operations
    return [op.b.val.tolist() for op in operations if op.op_type == "select"] + [
        [op.alpha.val.item(), op.beta.val.item()] for op in operations if op.op_type == "clip"
    ]


def test_only_finite_numbers_of_masks_change_and_the_pass_is_idempotent() -> None:
    values = np.float32(LEAST), np.array([0, 1e31, -3e38], np.float32), np.float32(-np.inf), np.float32(-1e9)
    program = program_of(*values)
    bounds = [LEAST, -LEAST]
    assert constants(program)[-1] == bounds
    finite_masks(program)
    once = constants(program)
    assert once == [-3e4, [0, 3e4, -3e4], -np.inf, np.float32(-1e9).item(), bounds]
    finite_masks(program)
    assert constants(program) == once


def test_the_registry_of_the_converter_is_left_as_it_was() -> None:
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    before = dict(PASS_REGISTRY.passes)
    with pytest.raises(RuntimeError), pipeline(REMOVED_PASSES, [finite_masks, finite_masks]) as passes:
        ours = [name for name in passes.passes if name not in before]
        assert len(ours) == 2 and passes.passes.index(ours[1]) < passes.passes.index("common::add_fp16_cast")
        assert not set(REMOVED_PASSES) & set(passes.passes)
        raise RuntimeError
    assert PASS_REGISTRY.passes == before


OWN = """
from coremltools.converters.mil import Builder as mb
from torch import nn
from coreflow.export import Recipe, TensorSpec

def to_tanh(program):
    for op in list(program.functions["main"].operations):
        if op.op_type == "relu":
            with op.enclosing_block:
                y = mb.tanh(x=op.x, before_op=op)
                op.enclosing_block.replace_uses_of_var_after_op(anchor_op=op, old_var=op.outputs[0], new_var=y)

X = {"x": TensorSpec((1, 4))}
GATE = Recipe(name="gate", module=nn.Sequential(nn.ReLU(), nn.Softmax(-1)), inputs=X, outputs=("y",), passes=[to_tanh])
OTHER = Recipe(name="other", module=nn.ReLU(), inputs=X, outputs=("y",))
"""


def test_a_pass_of_a_recipe_converts_and_is_part_of_the_fingerprint_and_the_manifest(tmp_path: Path) -> None:
    from coreflow.export.user_files import load_recipes

    file = tmp_path / "own.py"
    file.write_text(OWN)
    gate, other = load_recipes(f"{file}:GATE")[0], load_recipes(f"{file}:OTHER")[0]
    with pytest.raises(ExportError, match="not the module"):  # a tanh is no relu, and the proof sees it
        build(gate, tmp_path)
    *_, done = export_bundle([gate, other], tmp_path / "bundle", jobs=2, check=False)
    entry = done.manifest.stages["gate"]  # type: ignore[union-attr]
    assert entry.recipe["passes"] == ["own.py:to_tanh"]
    assert "passes" not in done.manifest.stages["other"].recipe  # type: ignore[union-attr]
    assert [op.type for op in read_program(tmp_path / "bundle" / entry.package).function()[0].walk()] == ["tanh", "softmax"]
    before = capture(gate).fingerprint
    file.write_text(OWN.replace("tanh(x=op.x", "sigmoid(x=op.x"))
    assert capture(load_recipes(f"{file}:GATE")[0]).fingerprint != before


@pytest.mark.parametrize("front_end", ["trace", "export"])
def test_a_recipe_names_its_front_end(tmp_path: Path, front_end: Any) -> None:
    recipe = Recipe(name="n", module=nn.ReLU(), inputs={"x": TensorSpec((1, 4))}, outputs=("y",), front_end=front_end)
    assert capture_best(recipe).front_end == front_end
    *_, done = export_bundle([recipe], tmp_path / "bundle")
    assert done.manifest.stages["n"].recipe["front_end"] == front_end  # type: ignore[union-attr]


def test_the_other_front_end_is_not_tried_behind_a_users_back(tmp_path: Path) -> None:
    class Lost(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1
            row = y[:, 1]
            row.clamp_(min=0)
            return y

    fields: dict[str, Any] = {"name": "lost", "module": Lost(), "inputs": {"x": TensorSpec((1, 4))}, "outputs": ("y",)}
    build(Recipe(**fields), tmp_path)
    with pytest.raises(ExportError, match="forward writes through a view"):
        build(Recipe(**fields, front_end="trace"), tmp_path)


def test_wrong_passes_and_front_ends_are_one_line() -> None:
    fields: dict[str, Any] = {"name": "n", "module": nn.ReLU(), "inputs": {"x": TensorSpec((1, 4))}, "outputs": ("y",)}
    with pytest.raises(ConfigError, match=r"pass 'finite_masks'; a pass is a function of coremltools' Program"):
        Recipe(**fields, passes=("finite_masks",))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"front_end 'onnx'; choose one of auto, trace, export"):
        Recipe(**fields, front_end="onnx")  # type: ignore[arg-type]
