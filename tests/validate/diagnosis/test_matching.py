"""Torch operations of the ops of a program: matches against the source and against the converter's own record."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coreflow.export.bundle import build
from coreflow.export.package.graph import Op
from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe
from coreflow.export.run import stage_recipes
from coreflow.models.arrays import Array
from coreflow.models.energy.config import find_preset
from coreflow.models.energy.model import EnergyFlow
from coreflow.models.energy.stages import energy_stages
from coreflow.models.spec import TensorSpec
from coreflow.runtime.backend import LoadOptions
from coreflow.runtime.lifted import LiftedModel
from coreflow.validate.diagnosis.matching import Matcher
from coreflow.validate.diagnosis.tracing import TracedValue, trace_values

if TYPE_CHECKING:
    from tests.validate.conftest import Converted

HERE = Path(__file__)
FP32, FP16 = 1e-5, 2e-3  # tolerances for packages in fp32 and in fp16
# Ops that only move values: they tie with their inputs.
MOVES = {"cast", "const", "concat", "expand_dims", "reshape", "slice_by_index", "split", "squeeze", "transpose"}
X = {"x": np.random.default_rng(0).standard_normal((2, 6))}


def marked(label: str) -> int:
    """The line of this file that ends in the comment ``label``."""
    (line,) = [number for number, text in enumerate(HERE.read_text("utf-8").splitlines(), 1) if text.endswith(f"  # {label}")]
    return line


class Operations(nn.Module):
    """One function of its inputs, with a parameter."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.full((6,), 3.0))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def attend(_: Operations, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x[None], x[None] + 1, x[None] * 2)


def test_fused_attention_is_traced_product_by_product() -> None:
    values = trace_values(Operations(attend), X)
    x = X["x"]
    scores = x @ (x + 1).T / math.sqrt(6)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    matcher = Matcher(values, FP32)
    for product in (x / math.sqrt(6), scores, weights, weights @ (x * 2)):  # queries are scaled by the whole factor
        assert matcher.match(torch.from_numpy(product)) is not None


def matched(function: Callable[..., Any], values: Array, after: int = -1, tolerance: float = FP32) -> TracedValue | None:
    return Matcher(trace_values(Operations(function), X), tolerance).match(torch.from_numpy(np.asarray(values)), after)


def test_an_op_from_nowhere_has_no_origin() -> None:
    assert matched(lambda _, x: x * 2, X["x"] * 2.001) is None
    assert matched(lambda _, x: x * 2, X["x"][:, :5] * 2) is None
    assert matched(lambda _, x: x * 2, np.full((2, 6), np.nan)) is None


def test_the_nearest_value_is_taken_not_the_first_within_the_tolerance() -> None:
    match = matched(lambda _, x: ((x * 2) * 1.0004) * 1.0004, X["x"] * 2 * 1.0004, tolerance=FP16)
    assert match is not None
    assert match.index == 1


def test_of_equal_values_the_first_after_the_operands_matches_or_else_the_first() -> None:
    def zeros(_: Operations, x: Tensor) -> Tensor:
        return (x - x).relu() + (x - x)

    places = [matched(zeros, np.zeros(12), after) for after in (-1, 0, 1, 2, 3)]
    assert [match and match.index for match in places] == [0, 1, 2, 3, 0]
    assert [match and match.origin.operation for match in places[:2]] == ["aten.sub.Tensor", "aten.relu.default"]


def test_a_constant_comes_after_equal_values_that_are_computed() -> None:
    match = matched(lambda _, x: torch.zeros(2, 6) * 2 + (x - x), np.zeros(12))
    assert match is not None
    assert match.origin.operation == "aten.sub.Tensor"
    match = matched(lambda m, x: x + m.scale * 2, np.full(6, 6.0))
    assert match is not None
    assert match.constant


def test_nothing_traced_matches_nothing() -> None:
    assert Matcher((), FP32).match(torch.zeros(3)) is None


# -- programs -------------------------------------------------------------------------------------------------------------------------


class HandGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        half = 0.5 * x
        inner = torch.erf(x / math.sqrt(2)) + 1
        return half * inner  # gelu


class HandNorm(nn.Module):
    """Layer norm over the channels of (B, C, 1, S)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.linspace(0.5, 2, 8)), nn.Parameter(torch.linspace(-1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(1, keepdim=True) + 1e-4)
        scaled = centred * scale * self.weight.view(1, -1, 1, 1)
        return scaled + self.bias.view(1, -1, 1, 1)  # layer norm


class RootMeanSquare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, 8).view(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-4)
        return x * scale * self.weight  # rms norm


class Folded(nn.Module):
    """Two convolutions: a batch norm is folded into the first, a scale into the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        nn.init.normal_(self.norm.get_buffer("running_mean"))
        nn.init.uniform_(self.norm.get_buffer("running_var"), 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(self.conv_1(x))  # batch norm
        linear = self.conv_2(normed)
        return linear * 0.37  # scale


class Product(nn.Module):
    """A product with a matrix and a sum, which become one linear."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.shift = nn.Parameter(torch.randn(16, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        product = x[:, :, 0] @ self.matrix
        return product + self.shift  # product and sum


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, 0]
        return F.scaled_dot_product_attention(self.query(x), self.key(x), x)  # attention


class Patterns(nn.Module):
    """(1, 8, 1, 16) through everything that a converter may fuse."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gelu, self.norm, self.rms, self.folded = HandGelu(), HandNorm(), RootMeanSquare(), Folded()
        self.product, self.attention, self.shared = Product(), Attention(), nn.Conv2d(8, 8, 1)
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        once = self.shared(x)  # once
        twice = self.shared(once)  # twice
        largest = twice.argmax(1)  # integers
        return self.gelu(x), self.norm(x), self.rms(x), self.folded(x), self.product(x), self.attention(x), twice, largest


@dataclasses.dataclass(frozen=True)
class Traced:
    """The ops of one package, each with what it was matched with, and the modules that the converter says they come from."""

    module: nn.Module
    matches: list[tuple[Op, TracedValue | None]]
    scopes: Mapping[str, str]  # name of a result -> path in the module tree, lists of modules left out

    def matches_of(self, op_type: str) -> list[TracedValue]:
        return [value for op, value in self.matches if op.type == op_type and value is not None]

    def errors(self) -> list[str]:
        """Ops that compute something and are not traced to the module that they come from."""
        computing = [(op, value) for op, value in self.matches if op.type not in MOVES]
        assert len(computing) > 0
        return [
            f"{op.type} {op.name}: {value and value.origin.module!r}, not {self.scopes[op.outputs[0].name]!r}"
            for op, value in computing
            if value is None or self._called(value.origin.module) != self.scopes[op.outputs[0].name]
        ]

    def _called(self, path: str) -> str:
        """``path`` without lists of modules, which are never called and do not occur in a trace."""
        parts = path.split(".")
        owners = [self.module.get_submodule(".".join(parts[: place + 1])) for place in range(len(parts))]
        return ".".join(part for part, owner in zip(parts, owners, strict=True) if not isinstance(owner, nn.ModuleList))


@pytest.fixture
def scopes(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Filled by every conversion: the module that the converter recorded for every result while it followed torch's trace."""
    import coremltools as ct
    from coremltools.converters.mil.mil.scope import ScopeSource

    recorded: dict[str, str] = {}
    save = ct.models.MLModel.save

    def recording(model: Any, *args: Any, **kwargs: Any) -> None:
        for op in model._mil_program.functions["main"].operations:
            path = ".".join(op.scopes.get(ScopeSource.TORCHSCRIPT_MODULE_NAME, [""])[:-1])  # the last one is the value's own name
            recorded.update((output.name, path) for output in op.outputs)
        save(model, *args, **kwargs)

    monkeypatch.setattr(ct.models.MLModel, "save", recording)
    return recorded


def follow(recipe: Recipe, folder: Path, scopes: dict[str, str], seed: int = 0) -> Traced:
    """Convert, trace, and match every op, with what it reads as the lower bound among equal values."""
    scopes.clear()
    is_fp16 = recipe.precision == "fp16"
    model = LiftedModel(read_program(build(recipe, folder)), LoadOptions(engine="interpreter", numerics="fp64"))
    inputs = {name: array.astype(model.inputs[name].dtype) for name, array in recipe.inputs_for(seed).items()}
    matcher = Matcher(trace_values(recipe.module, inputs, fp16_weights=is_fp16), FP16 if is_fp16 else FP32)
    matches: list[tuple[Op, TracedValue | None]] = []
    places: dict[int, int] = {}

    def observe(op: Op, results: tuple[Any, ...]) -> None:
        after = max((places.get(id(value), -1) for value in op.input_values()), default=-1)
        value = matcher.match(results[0], after)
        matches.append((op, value))
        places.update((id(output), after if value is None else value.index) for output in op.outputs)

    model.predict(inputs, observe=observe)
    return Traced(recipe.module, matches, dict(scopes))


def test_an_op_that_replaces_several_comes_from_the_last_of_them(tmp_path: Path, scopes: dict[str, str]) -> None:
    outputs = ("gelu", "norm", "rms", "folded", "product", "attention", "twice", "largest")
    recipe = Recipe(name="patterns", module=Patterns(), inputs={"x": TensorSpec((1, 8, 1, 16))}, outputs=outputs, precision="fp32")
    traced = follow(recipe, tmp_path, scopes)
    last = {
        "gelu": ("gelu", "gelu"),
        "linear": ("product", "product and sum"),
    }
    for op_type, (module, label) in last.items():
        origin = traced.matches_of(op_type)[0].origin
        assert (origin.module, origin.line) == (module, marked(label))
    norm = [(op.type, value.origin.line) for op, value in traced.matches if value is not None and value.origin.module == "norm"]
    before, last_line = marked("layer norm") - 1, marked("layer norm")
    # Over channels: the converter scales and shifts apart, and so does the source, in two lines.
    assert [pair for pair in norm if pair[0] not in MOVES] == [("layer_norm", before), ("mul", before), ("add", last_line)]
    convolutions = [(value.origin.module, value.origin.operation, value.origin.line) for value in traced.matches_of("conv")]
    assert convolutions == [
        ("shared", "aten.convolution.default", marked("once")),
        ("shared", "aten.convolution.default", marked("twice")),
        ("folded.norm", "aten.native_batch_norm.default", marked("batch norm")),
        ("folded", "aten.mul.Tensor", marked("scale")),
    ]
    attention = [(op.type, value and value.origin.line) for op, value in traced.matches if traced.scopes[op.outputs[0].name] == "attention"]
    assert [pair for pair in attention if pair[0] not in MOVES] == [
        (op_type, marked("attention")) for op_type in ("mul", "matmul", "softmax", "matmul")
    ]
    assert traced.matches_of("reduce_argmax")[0].origin.line == marked("integers")
    assert traced.matches_of("rsqrt")[0].origin.module == "rms"
    assert traced.errors() == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_op_of_a_transformer_is_traced_to_its_module(
    precision: Literal["fp32", "fp16"], converted: "Converted", tmp_path: Path, scopes: dict[str, str]
) -> None:
    traced = follow(dataclasses.replace(converted.recipe(), precision=precision), tmp_path, scopes)
    assert traced.errors() == []
    assert [value.origin.module for value in traced.matches_of("gelu")] == ["layers.0", "layers.1"]  # equal layers, other values


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("stage", ["encoder", "mapper_in", "mapper_out", "lattice_step"])
def test_nearly_every_op_of_a_real_stage_is_traced_to_its_module(
    stage: str, precision: Literal["fp32", "fp16"], tmp_path: Path, scopes: dict[str, str]
) -> None:
    torch.manual_seed(0)
    model = EnergyFlow(find_preset("demo").config("demo", vocabulary=64, decoder_vocabulary=64)).eval()
    for parameter in model.parameters():
        if not parameter.any():  # branches that start at zero
            nn.init.normal_(parameter, std=0.02)
    (recipe,) = [recipe for recipe in stage_recipes(energy_stages(model)) if recipe.name == stage]
    traced = follow(dataclasses.replace(recipe, precision=precision), tmp_path, scopes)
    computing = [op for op, _ in traced.matches if op.type not in MOVES]
    # A trace does not show calls of methods other than forward: there the origin says more than the converter.
    assert len(traced.errors()) <= 0.05 * len(computing)
    assert all(value is not None for _, value in traced.matches)
