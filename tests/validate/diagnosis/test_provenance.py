"""Where the ops of a program come from: fingerprints against numpy, origins against the source and against the converter's own record."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coreflow.export.bundle import build
from coreflow.export.package.graph import Op
from coreflow.export.recipe import Recipe
from coreflow.export.run import stage_recipes
from coreflow.models.arrays import Array
from coreflow.models.energy.config import find_preset
from coreflow.models.energy.model import EnergyFlow
from coreflow.models.energy.stages import energy_stages
from coreflow.models.errors import ConfigError
from coreflow.models.spec import TensorSpec
from coreflow.runtime import load_model
from coreflow.validate.diagnosis.provenance import Fingerprint, Matcher, TracedValue, distance, fingerprint, trace_values

if TYPE_CHECKING:
    from conftest import Converted

if TYPE_CHECKING:
    from conftest import Converted

HERE = Path(__file__)
EXACT, HALF = 1e-5, 2e-3  # tolerances for packages in fp32 and in fp16
# Ops that only move values: they tie with what they were made from.
MOVES = {"cast", "const", "concat", "expand_dims", "reshape", "slice_by_index", "split", "squeeze", "transpose"}
RANDOM = np.random.default_rng(0)
X = {"x": RANDOM.standard_normal((2, 6))}


def marked(label: str) -> int:
    """The line of this file that ends in the comment ``label``."""
    (line,) = [number for number, text in enumerate(HERE.read_text("utf-8").splitlines(), 1) if text.endswith(f"  # {label}")]
    return line


def named(values: tuple[TracedValue, ...], operation: str) -> list[TracedValue]:
    return [value for value in values if value.origin.operation.startswith(f"aten.{operation}.")]


# -- fingerprints ----------------------------------------------------------------------------------------------------------------------


def by_hand(values: Array) -> Fingerprint:
    x = np.asarray(values, np.float64).ravel()
    finite = x[np.isfinite(x)]
    peak = np.abs(finite).max()
    return Fingerprint(
        count=x.size,
        non_finite=x.size - finite.size,
        mean=finite.mean(),
        rms=math.sqrt((finite**2).mean()),
        mean_abs=np.abs(finite).mean(),
        skew=(finite**3).mean() / (peak * (finite**2).mean()) if peak else 0.0,
        min=finite.min(),
        max=finite.max(),
    )


VALUES = {
    "normal": RANDOM.standard_normal((3, 4, 5)),
    "more than one block": RANDOM.exponential(2.0, 40_000),
    "fp16": RANDOM.standard_normal(64).astype(np.float16),
    "integers": RANDOM.integers(-5, 300, (7, 3)),
    "booleans": RANDOM.random(33) < 0.3,
    "a scalar": np.array(-2.5),
    "zeros": np.zeros((2, 3)),
    "a mask": np.where(RANDOM.random((4, 9)) < 0.5, -1e4, 0.0),
    "with infinities and NaN": np.array([1.0, np.inf, -3.0, np.nan, -np.inf, 0.5]),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_fingerprint_is_what_numpy_says_about_the_values(kind: str) -> None:
    found, want = dataclasses.asdict(fingerprint(VALUES[kind])), dataclasses.asdict(by_hand(VALUES[kind]))
    assert found == pytest.approx(want, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", VALUES)
def test_layout_and_type_of_array_do_not_count(kind: str) -> None:
    values, want = VALUES[kind], fingerprint(VALUES[kind])
    shuffled = np.random.default_rng(1).permutation(values.ravel())
    for same in (torch.from_numpy(values.copy()), values.T, torch.from_numpy(shuffled.copy()).reshape(1, -1), np.flip(values)):
        assert distance(fingerprint(same), want) < 1e-13


def test_an_expanded_tensor_counts_as_if_it_were_written_out() -> None:
    row = torch.tensor([[1.0, float("nan"), -4.0]])
    expanded = row.expand(5, 3)
    assert distance(fingerprint(expanded), fingerprint(expanded.clone())) < 1e-15
    assert (fingerprint(expanded).count, fingerprint(expanded).non_finite) == (15, 5)


def test_sizes_whose_powers_overflow_or_vanish_are_told_apart() -> None:
    largest = np.finfo(np.float64).max
    for size in (1e-200, 1e200, largest):
        values = size * np.array([1.0, -0.5, 0.25])
        found = fingerprint(values)
        assert found.rms / size == pytest.approx(math.sqrt(1.3125 / 3))
        assert distance(found, fingerprint(values[::-1])) == pytest.approx(0, abs=1e-15)
        assert distance(found, fingerprint(-values)) > 0.1
    assert distance(fingerprint(np.array([largest, 0])), fingerprint(np.array([-largest, 0]))) == pytest.approx(math.sqrt(2))


def test_nothing_at_all_has_a_fingerprint_too() -> None:
    for empty in (np.zeros(0), np.array([np.nan])):
        assert distance(fingerprint(empty), fingerprint(empty)) == 0
    assert distance(fingerprint(np.zeros(0)), fingerprint(np.array([np.nan]))) == math.inf


def test_other_counts_are_infinitely_far_apart() -> None:
    assert distance(fingerprint(np.zeros(3)), fingerprint(np.zeros(4))) == math.inf
    assert distance(fingerprint(np.array([0, np.inf])), fingerprint(np.zeros(2))) == math.inf


@pytest.mark.parametrize("kind", ["normal", "more than one block", "a mask", "one large among many"])
@pytest.mark.parametrize("size", [1e-6, 2.0**-11])
def test_roundings_of_every_element_move_a_fingerprint_by_no_more_than_twice_their_size(kind: str, size: float) -> None:
    values = VALUES.get(kind, np.where(np.arange(50_000) == 7, 1.0, 1e-5))
    noisy = values * (1 + np.random.default_rng(2).uniform(-size, size, values.shape))
    assert 0 < distance(fingerprint(noisy), fingerprint(values)) <= 2.05 * size
    assert distance(fingerprint(noisy), fingerprint(values)) == distance(fingerprint(values), fingerprint(noisy))


@pytest.mark.parametrize("change", [lambda x: -x, lambda x: x + 0.01, lambda x: x * 1.01, np.abs, lambda x: x.clip(-1, 1)])
def test_other_values_are_apart(change: Callable[[Array], Array]) -> None:
    values = RANDOM.standard_normal(1000)
    assert distance(fingerprint(values), fingerprint(change(values))) > 5e-3


# -- what torch does -------------------------------------------------------------------------------------------------------------------


class Part(nn.Module):
    """Called by ``forward`` and by another method."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh()

    def other(self, x: Tensor) -> Tensor:
        return self.linear(x).sigmoid()


def doubled(x: Tensor) -> Tensor:
    return x * 2  # free function


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Part() for _ in range(2))
        self.again = self.parts[0]
        self.stack = nn.Sequential(nn.Linear(6, 3), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.parts[0](x)
        x = self.parts[1].other(x)
        x = self.again(x).exp()
        return doubled(self.stack(x))  # call of the stack


def test_every_value_names_the_module_that_computed_it() -> None:
    values = trace_values(Whole(), X)
    assert [value.index for value in values] == list(range(len(values)))
    modules = [(value.origin.operation, value.origin.module) for value in values]
    assert modules == [
        ("aten.addmm.default", "parts.0.linear"),
        ("aten.tanh.default", "parts.0"),
        ("aten.addmm.default", "parts.1.linear"),
        ("aten.sigmoid.default", "parts.1"),
        ("aten.addmm.default", "parts.0.linear"),  # used twice: its first name
        ("aten.tanh.default", "parts.0"),
        ("aten.exp.default", ""),
        ("aten.addmm.default", "stack.0"),
        ("aten.gelu.default", "stack.1"),
        ("aten.mul.Tensor", ""),
    ]


def test_lines_are_the_users_and_not_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE.parent)
    values = trace_values(Whole(), X)
    assert {value.origin.file for value in values} == {HERE.name}
    assert named(values, "gelu")[0].origin.line == marked("call of the stack")
    assert named(values, "mul")[0].origin.line == marked("free function")
    monkeypatch.chdir(HERE.parents[3])
    assert trace_values(Whole(), X)[0].origin.file == "tests/validate/diagnosis/test_provenance.py"
    monkeypatch.chdir(Path(torch.__file__).parent)
    assert trace_values(Whole(), X)[0].origin.file == HERE.name


def test_a_model_of_torchs_own_layers_names_their_source() -> None:
    (value,) = named(trace_values(nn.Sequential(nn.Linear(6, 3)), X), "addmm")
    lines = Path(torch.nn.modules.linear.__file__).read_text("utf-8").splitlines()
    assert value.origin.file == "torch/nn/modules/linear.py"
    assert "F.linear" in lines[value.origin.line - 1]


def test_values_are_those_of_float64() -> None:
    module = Whole()
    exact = copy.deepcopy(module).double()
    result = trace_values(module, X)[-1]
    assert distance(result.fingerprint, fingerprint(exact(torch.from_numpy(X["x"])))) < 1e-15


def test_half_weights_are_rounded_and_nothing_else() -> None:
    layer = nn.Linear(6, 6)
    weight, bias = (each.detach().numpy().astype(np.float16).astype(np.float64) for each in (layer.weight, layer.bias))
    want = fingerprint(X["x"] @ weight.T + bias)
    exact, half = (trace_values(layer, X, weights=weights)[-1].fingerprint for weights in ("exact", "half"))
    assert distance(half, want) < 1e-15
    assert distance(exact, want) > 1e-6


class Operations(nn.Module):
    """One function of its inputs, with a buffer and a parameter."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.full((6,), 3.0))
        self.register_buffer("held", torch.zeros(2, 6))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def write(module: Operations, x: Tensor) -> Tensor:
    cache = module.held.clone()
    cache[:, 1] = x[:, 0]
    return cache


def attend(_: Operations, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x[None], x[None] + 1, x[None] * 2)


TRACED = {
    "a slice": (lambda _, x: x[:, 1:4], lambda x: x[:, 1:4]),
    "an expansion": (lambda _, x: x[:, None].expand(2, 3, 6), lambda x: np.repeat(x, 3, 0)),
    "an overlapping view": (lambda _, x: x.flatten().as_strided((3, 4), (1, 1)), lambda x: x.ravel()[[0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5]]),
    "the second of several results": (lambda _, x: x.split(2, 1)[1], lambda x: x[:, 2:4]),
    "indices of the largest": (lambda _, x: x.argmax(1), lambda x: x.argmax(1)),
    "a comparison": (lambda _, x: x > 0.3, lambda x: x > 0.3),
    "an operation in place": (lambda _, x: x.mul_(1.5), lambda x: x * 1.5),
    "in place, through a view": (lambda _, x: x[:, 2:3].mul_(1.5), lambda x: np.where(np.arange(6) == 2, x * 1.5, x)),
    "a write into a cache": (write, lambda x: np.where(np.arange(6) == 1, x[:, :1], 0.0)),
    "a result given by name": (lambda _, x: torch.add(x, 1, out=torch.empty_like(x)), lambda x: x + 1),
    "a weight that is transformed": (lambda m, x: x * (m.scale + 1), lambda _: np.full(6, 4.0)),
}


@pytest.mark.parametrize("case", TRACED)
def test_what_an_operation_makes_or_writes_is_traced(case: str) -> None:
    function, by_numpy = TRACED[case]
    values = trace_values(Operations(function), X)
    assert min(distance(value.fingerprint, fingerprint(by_numpy(X["x"]))) for value in values) < 1e-14


def test_fused_attention_is_traced_product_by_product() -> None:
    values = trace_values(Operations(attend), X)
    x = X["x"]
    scores = x @ (x + 1).T / math.sqrt(6)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    matcher = Matcher(values, EXACT)
    for want in (x / math.sqrt(6), scores, weights, weights @ (x * 2)):  # queries are scaled by the whole factor
        assert matcher.match(torch.from_numpy(want)) is not None


def test_a_view_of_a_weight_is_no_operation_and_what_is_made_of_weights_alone_is_a_constant() -> None:
    values = trace_values(Operations(lambda m, x: x + torch.cat([m.scale[:3] * 2, torch.ones(3)]) + torch.zeros_like(x)), X)
    assert [(value.origin.operation, value.constant) for value in values] == [
        ("aten.mul.Tensor", True),
        ("aten.ones.default", True),
        ("aten.cat.default", True),
        ("aten.add.Tensor", False),
        ("aten.zeros_like.default", True),
        ("aten.add.Tensor", False),
    ]


def test_a_buffer_that_an_input_was_written_into_is_no_constant_any_more() -> None:
    values = trace_values(Operations(lambda m, x: m.held.copy_(x).t() * 2), X)
    assert [(value.origin.operation, value.constant) for value in values] == [
        ("aten.copy_.default", False),
        ("aten.t.default", False),
        ("aten.mul.Tensor", False),
    ]


def test_the_module_and_torch_are_left_as_they_were() -> None:
    module = Operations(lambda m, x: m.held.copy_(x) * m.scale).train()
    before, given = copy.deepcopy(module.state_dict()), X["x"].copy()
    trace_values(module, X)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == torch.float32
    assert module.training
    assert torch.get_default_dtype() == torch.float32
    assert not any(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
    np.testing.assert_array_equal(X["x"], given)


def test_a_module_that_does_not_run_is_refused_with_the_shapes_and_leaves_nothing_behind() -> None:
    with pytest.raises(ConfigError, match=r"Part does not run in float64 on x \[2, 5\]"):
        trace_values(Part(), {"x": np.zeros((2, 5))})
    assert torch.get_default_dtype() == torch.float32
    assert torch.zeros(1).dtype == torch.float32


# -- matching --------------------------------------------------------------------------------------------------------------------------


def matched(function: Callable[..., Any], values: Array, after: int = -1, tolerance: float = EXACT) -> TracedValue | None:
    return Matcher(trace_values(Operations(function), X), tolerance).match(torch.from_numpy(np.asarray(values)), after)


def test_an_op_from_nowhere_has_no_origin() -> None:
    assert matched(lambda _, x: x * 2, X["x"] * 2.001) is None
    assert matched(lambda _, x: x * 2, X["x"][:, :5] * 2) is None
    assert matched(lambda _, x: x * 2, np.full((2, 6), np.nan)) is None


def test_the_nearest_value_is_taken_not_the_first_within_the_tolerance() -> None:
    found = matched(lambda _, x: ((x * 2) * 1.0004) * 1.0004, X["x"] * 2 * 1.0004, tolerance=HALF)
    assert found is not None
    assert found.index == 1


def test_of_equal_values_the_first_one_after_what_the_op_reads_is_taken_and_else_the_first() -> None:
    def zeros(_: Operations, x: Tensor) -> Tensor:
        return (x - x).relu() + (x - x)

    places = [matched(zeros, np.zeros(12), after) for after in (-1, 0, 1, 2, 3)]
    assert [found and found.index for found in places] == [0, 1, 2, 3, 0]
    assert [found and found.origin.operation for found in places[:2]] == ["aten.sub.Tensor", "aten.relu.default"]


def test_a_constant_comes_after_equal_values_that_are_computed() -> None:
    found = matched(lambda _, x: torch.zeros(2, 6) * 2 + (x - x), np.zeros(12))
    assert found is not None
    assert found.origin.operation == "aten.sub.Tensor"
    found = matched(lambda m, x: x + m.scale * 2, np.full(6, 6.0))
    assert found is not None
    assert found.constant


def test_nothing_traced_matches_nothing() -> None:
    assert Matcher((), EXACT).match(torch.zeros(3)) is None


# -- programs --------------------------------------------------------------------------------------------------------------------------


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
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

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

    def found(self, op_type: str) -> list[TracedValue]:
        return [value for op, value in self.matches if op.type == op_type and value is not None]

    def wrong(self) -> list[str]:
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
def scopes(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Filled by every conversion: the module that the converter noted for every result while it followed torch's trace."""
    import coremltools as ct
    from coremltools.converters.mil.mil.scope import ScopeSource

    noted: dict[str, str] = {}
    save = ct.models.MLModel.save

    def noting(model: Any, *args: Any, **kwargs: Any) -> None:
        for op in model._mil_program.functions["main"].operations:
            path = ".".join(op.scopes.get(ScopeSource.TORCHSCRIPT_MODULE_NAME, [""])[:-1])  # the last one is the value's own name
            noted.update((output.name, path) for output in op.outputs)
        save(model, *args, **kwargs)

    monkeypatch.setattr(ct.models.MLModel, "save", noting)
    return noted


def follow(recipe: Recipe, folder: Path, scopes: dict[str, str], seed: int = 0) -> Traced:
    """Convert, trace, and match every op, with what it reads as the lower bound among equal values."""
    scopes.clear()
    half = recipe.precision == "fp16"
    model = load_model(build(recipe, folder), "lifted", engine="interpreter", numerics="fp64")
    inputs = {name: array.astype(model.inputs[name].dtype) for name, array in recipe.inputs_for(seed).items()}
    matcher = Matcher(trace_values(recipe.module, inputs, weights="half" if half else "exact"), HALF if half else EXACT)
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
        origin = traced.found(op_type)[0].origin
        assert (origin.module, origin.line) == (module, marked(label))
    norm = [(op.type, value.origin.line) for op, value in traced.matches if value is not None and value.origin.module == "norm"]
    before, last_line = marked("layer norm") - 1, marked("layer norm")
    # Over channels: the converter scales and shifts apart, and so does the source, in two lines.
    assert [pair for pair in norm if pair[0] not in MOVES] == [("layer_norm", before), ("mul", before), ("add", last_line)]
    convolutions = [(value.origin.module, value.origin.operation, value.origin.line) for value in traced.found("conv")]
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
    assert traced.found("reduce_argmax")[0].origin.line == marked("integers")
    assert traced.found("rsqrt")[0].origin.module == "rms"
    assert traced.wrong() == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_op_of_a_transformer_is_traced_to_its_module(
    precision: Literal["fp32", "fp16"], converted: "Converted", tmp_path: Path, scopes: dict[str, str]
) -> None:
    traced = follow(dataclasses.replace(converted.recipe(), precision=precision), tmp_path, scopes)
    assert traced.wrong() == []
    assert [value.origin.module for value in traced.found("gelu")] == ["layers.0", "layers.1"]  # equal layers, other values


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
    (recipe,) = [each for each in stage_recipes(energy_stages(model)) if each.name == stage]
    traced = follow(dataclasses.replace(recipe, precision=precision), tmp_path, scopes)
    computing = [op for op, _ in traced.matches if op.type not in MOVES]
    # A trace does not show calls of methods other than forward: there the origin says more than the converter.
    assert len(traced.wrong()) <= 0.05 * len(computing)
    assert all(value is not None for _, value in traced.matches)
