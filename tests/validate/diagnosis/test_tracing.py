"""Traces of torch modules: values against numpy, origins against the source."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.models.errors import ConfigError
from coreflow.validate.diagnosis.fingerprints import distance, fingerprint
from coreflow.validate.diagnosis.tracing import TracedValue, trace_values

HERE = Path(__file__)
X = {"x": np.random.default_rng(0).standard_normal((2, 6))}


def marked(label: str) -> int:
    """The line of this file that ends in the comment ``label``."""
    (line,) = [number for number, text in enumerate(HERE.read_text("utf-8").splitlines(), 1) if text.endswith(f"  # {label}")]
    return line


def named(values: tuple[TracedValue, ...], operation: str) -> list[TracedValue]:
    return [value for value in values if value.origin.operation.startswith(f"aten.{operation}.")]


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
        x = cast(Part, self.parts[1]).other(x)
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
    assert trace_values(Whole(), X)[0].origin.file == "tests/validate/diagnosis/test_tracing.py"
    monkeypatch.chdir(Path(torch.__file__).parent)
    assert trace_values(Whole(), X)[0].origin.file == HERE.name


def test_a_model_of_torchs_own_layers_names_their_source() -> None:
    (value,) = named(trace_values(nn.Sequential(nn.Linear(6, 3)), X), "addmm")
    lines = Path(torch.nn.modules.linear.__file__).read_text("utf-8").splitlines()
    assert value.origin.file == "torch/nn/modules/linear.py"
    assert "F.linear" in lines[value.origin.line - 1]


def test_values_are_those_of_float64() -> None:
    module = Whole()
    in_float64 = copy.deepcopy(module).double()
    result = trace_values(module, X)[-1]
    assert distance(result.fingerprint, fingerprint(in_float64(torch.from_numpy(X["x"])))) < 1e-15


def test_fp16_weights_are_rounded_and_nothing_else() -> None:
    layer = nn.Linear(6, 6)
    weight, bias = (tensor.detach().numpy().astype(np.float16).astype(np.float64) for tensor in (layer.weight, layer.bias))
    by_hand = fingerprint(X["x"] @ weight.T + bias)
    as_they_are, rounded = (trace_values(layer, X, fp16_weights=fp16_weights)[-1].fingerprint for fp16_weights in (False, True))
    assert distance(rounded, by_hand) < 1e-15
    assert distance(as_they_are, by_hand) > 1e-6


class Operations(nn.Module):
    """One function of its inputs, with a buffer and a parameter."""

    cache: Tensor

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.full((6,), 3.0))
        self.register_buffer("cache", torch.zeros(2, 6))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def write(module: Operations, x: Tensor) -> Tensor:
    cache = module.cache.clone()
    cache[:, 1] = x[:, 0]
    return cache


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
def test_results_and_writes_of_an_operation_are_traced(case: str) -> None:
    function, by_numpy = TRACED[case]
    values = trace_values(Operations(function), X)
    assert min(distance(value.fingerprint, fingerprint(by_numpy(X["x"]))) for value in values) < 1e-14


def test_a_view_of_a_weight_is_no_operation_and_values_of_weights_alone_are_constants() -> None:
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
    values = trace_values(Operations(lambda m, x: m.cache.copy_(x).t() * 2), X)
    assert [(value.origin.operation, value.constant) for value in values] == [
        ("aten.copy_.default", False),
        ("aten.t.default", False),
        ("aten.mul.Tensor", False),
    ]


def test_the_module_and_torch_are_left_as_they_were() -> None:
    module = Operations(lambda m, x: m.cache.copy_(x) * m.scale).train()
    before, x = copy.deepcopy(module.state_dict()), X["x"].copy()
    trace_values(module, X)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == torch.float32
    assert module.training
    assert torch.get_default_dtype() == torch.float32
    assert not any(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
    np.testing.assert_array_equal(X["x"], x)


def test_a_module_that_does_not_run_is_refused_with_the_shapes_and_leaves_nothing_behind() -> None:
    with pytest.raises(ConfigError, match=r"Part does not run in float64 on x \[2, 5\]"):
        trace_values(Part(), {"x": np.zeros((2, 5))})
    assert torch.get_default_dtype() == torch.float32
    assert torch.zeros(1).dtype == torch.float32
