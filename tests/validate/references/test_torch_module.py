"""The simulation of fp16 against roundings done by hand in numpy."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.models.arrays import Array
from coreflow.models.errors import ConfigError
from coreflow.validate.references.fp16_rounding import Fp16Rounding
from coreflow.validate.references.torch_module import TorchReference

X = np.random.default_rng(0).standard_normal((1, 6)).astype(np.float16)


def to_fp16(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float32)


def number(value: float) -> np.float32:
    """A number of the code as a saved program holds it."""
    return np.float32(np.float16(value))


class Function(nn.Module):
    """A module that is one function of its inputs."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(*inputs)


def in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y.mul_(1.1)
    y += 0.3
    y[:, :2].sub_(0.7)
    return y


def in_place_by_hand(x: Array) -> Array:
    y = to_fp16(to_fp16(x * number(1.1)) + number(0.3))
    y[:, :2] = to_fp16(y[:, :2] - number(0.7))
    return y


CASES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Array], Array]]] = {
    "two operations round twice": (lambda x: x * 1.1 + 0.3, lambda x: to_fp16(to_fp16(x * number(1.1)) + number(0.3))),
    "in place, and through a view": (in_place, in_place_by_hand),
    "a sum accumulates in fp32": (lambda x: (x * 1000).sum(1), lambda x: to_fp16(to_fp16(x * np.float32(1000)).sum(1))),
    "an overflow is infinite": (lambda x: x.abs() + 70000, lambda x: np.full_like(x, np.inf)),
    "an underflow is zero": (lambda x: x * 1e-9, lambda x: x * 0),
    "an output buffer is rounded": (lambda x: torch.add(x, 0.1, out=torch.empty_like(x)), lambda x: to_fp16(x + number(0.1))),
    "a divisor and an exponent are numbers too": (
        lambda x: x.abs() ** 0.7 / 1.3,
        lambda x: to_fp16(to_fp16(np.abs(x) ** number(0.7)) / number(1.3)),
    ),
    "numbers beyond fp16 stay": (lambda x: x * 65536 + 1e-6, lambda x: to_fp16(to_fp16(x * np.float32(65536)) + np.float32(1e-6))),
    "a view is no operation": (lambda x: x.view(2, 3).t().contiguous(), lambda x: x.reshape(2, 3).T),
}


@pytest.mark.parametrize("case", CASES)
def test_every_result_is_rounded_as_by_hand(case: str) -> None:
    function, by_hand = CASES[case]
    (simulated,) = TorchReference(Function(function)).simulated_outputs({"x": X})
    np.testing.assert_array_equal(simulated, by_hand(X.astype(np.float32)))


def test_a_linear_layer_rounds_its_weights_its_input_and_its_result_once() -> None:
    layer = nn.Linear(6, 4)
    weight, bias = (to_fp16(tensor.detach().numpy()) for tensor in (layer.weight, layer.bias))
    (simulated,) = TorchReference(layer).simulated_outputs({"x": X})
    np.testing.assert_array_equal(simulated, to_fp16(X.astype(np.float32) @ weight.T + bias))


def test_the_reference_is_float64_throughout() -> None:
    class Everything(nn.Module):
        buffer: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.register_buffer("buffer", torch.randn(6))
            self.plain = torch.randn(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.buffer + self.plain + torch.eye(6)[0] / 3 + torch.full((6,), 0.1)

    module = Everything()
    (output,) = TorchReference(module).outputs({"x": X})
    tensors = (module.layer.weight, module.layer.bias, module.buffer, module.plain)
    weight, bias, buffer, plain = (tensor.detach().double().numpy() for tensor in tensors)
    np.testing.assert_allclose(output, X.astype(np.float64) @ weight.T + bias + buffer + plain + np.eye(6)[0] / 3 + 0.1, rtol=1e-14)


def test_module_inputs_and_settings_stay_as_they_were() -> None:
    double, add = Function(lambda x: x.mul_(2)), Function(lambda x: x.add_(1))
    module = nn.Sequential(double, nn.Linear(6, 6), nn.Dropout(0.5), add, nn.ReLU(inplace=True)).train()
    before, x = copy.deepcopy(module.state_dict()), X.astype(np.float32)
    unchanged = x.copy()
    settings = torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    reference = TorchReference(module)
    reference.outputs({"x": x}), reference.simulated_outputs({"x": x})
    assert module.training and all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    np.testing.assert_array_equal(x, unchanged)
    assert settings == (torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled)


def test_dropout_is_off_and_shared_weights_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 6)
            self.head = nn.Linear(6, 9, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.dropout(self.head(self.embedding(ids)), 0.5, self.training)

    reference = TorchReference(Tied())
    ids = {"ids": np.array([[1, 2]], np.int32)}
    np.testing.assert_array_equal(reference.simulated_outputs(ids)[0], reference.simulated_outputs(ids)[0])
    for module in (reference._module_fp64, reference._simulated):
        assert module.get_parameter("head.weight") is module.get_parameter("embedding.weight")


@pytest.mark.parametrize(
    ("module", "at_least"),
    [
        (nn.MultiheadAttention(8, 2, batch_first=True), 6),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 12),
        (nn.LSTM(8, 8, batch_first=True), 20),
        (Function(lambda x: nn.functional.scaled_dot_product_attention(x, x, x)), 3),
    ],
    ids=["attention", "encoder layer", "lstm", "fused attention"],
)
def test_fused_modules_are_taken_apart(module: nn.Module, at_least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer roundings than a saved program has would make a budget that no package meets."""
    rounded: list[str] = []
    dispatch = Fp16Rounding.__torch_dispatch__

    def recording(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "view" not in str(func):
            rounded.append(str(func))
        return dispatch(self, func, types, args, kwargs)

    monkeypatch.setattr(Fp16Rounding, "__torch_dispatch__", recording)

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> Tensor:
            result = self.inner(x, x, x) if isinstance(module, nn.MultiheadAttention) else self.inner(x)
            return result[0] if isinstance(result, tuple) else result

    TorchReference(First()).simulated_outputs({"x": np.random.default_rng(0).standard_normal((1, 4, 8)).astype(np.float16)})
    assert sum(any(word in name for word in ("mm", "add", "mul", "softmax", "sigmoid", "tanh", "norm")) for name in rounded) >= at_least


def test_integers_and_margins_are_left_whole() -> None:
    class Deciding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0.1).to(torch.int32)

        def decision_margins(self, x: Tensor) -> Tensor:
            return (x - 0.1).abs().unsqueeze(1)

    reference = TorchReference(Deciding())
    assert reference.has_margins and not TorchReference(nn.Linear(2, 2)).has_margins
    assert reference.outputs({"x": X})[0].dtype == np.int32
    assert reference.margins({"x": X}).dtype == np.float64
    assert math.isclose(float(reference.simulated_margins({"x": X})[0, 0, 0]), abs(float(X[0, 0]) - 0.1), rel_tol=1e-3)


def test_fp32_packages_have_the_error_of_fp32_as_their_budget() -> None:
    layer = nn.Linear(6, 4)
    reference = TorchReference(layer, "fp32")
    with torch.no_grad():
        plain = layer(torch.from_numpy(X).float()).numpy()
    np.testing.assert_allclose(reference.simulated_outputs({"x": X})[0], plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Function(lambda x: x @ torch.ones(3, 3)), "does not run in torch.float64 on x [1, 6]"),
        (Function(lambda x: {"kept": 3}), "returns dict"),
        (Function(lambda x: "text"), "returns str"),
    ],
    ids=["shape", "no tensors", "text"],
)
def test_a_reference_that_cannot_be_executed_is_named(module: nn.Module, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("[", r"\[").replace("]", r"\]")):
        TorchReference(module).outputs({"x": X})
