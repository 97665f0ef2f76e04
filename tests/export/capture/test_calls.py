"""Modules as they come: inputs by name, results by name, in an export and in its validation alike."""

import copy
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export import Recipe, TensorSpec, build
from coreflow.export.capture.calls import call, pick
from coreflow.export.capture.capture import capture, capture_by_export
from coreflow.models.errors import ConfigError, ExportError
from coreflow.runtime import load_model
from coreflow.validate import validate

X = TensorSpec((2, 4))
Pair = namedtuple("Pair", ["sum", "product"])


@dataclass
class Both:
    sum: Tensor
    product: Tensor
    cache: object = None


class Named(nn.Module):
    """x + 2 w and x * w of two inputs, in the form that it is told."""

    def __init__(self, form: Callable[..., Any] = dict) -> None:
        super().__init__()
        self.form, self.layer = form, nn.Linear(4, 4)

    def forward(self, x: Tensor, extra: Tensor | None = None, *, w: Tensor) -> Any:
        return self.form(sum=self.layer(x) + 2 * w, product=x * w)


def recipe(module: nn.Module, outputs: tuple[str, ...] = ("product", "sum"), names: tuple[str, ...] = ("w", "x")) -> Recipe:
    return Recipe(name="named", module=module, inputs=dict.fromkeys(names, X), outputs=outputs)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("form", [dict, Both, Pair], ids=["dict", "dataclass", "named tuple"])
def test_inputs_and_results_have_their_names_through_export_and_validation(form: Callable[..., Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Named(form)
    package = build(recipe(module), tmp_path)
    inputs = recipe(module).inputs_for(0)
    x, w = (torch.from_numpy(inputs[name]).float() for name in ("x", "w"))
    outputs = load_model(package, "lifted").predict(inputs)
    np.testing.assert_allclose(outputs["product"], x * w, atol=1e-2)
    np.testing.assert_allclose(outputs["sum"], (module.layer(x) + 2 * w).detach(), atol=1e-2)
    assert validate(package, recipe(module), quick=True).verdict == "pass"
    assert validate(package, module, quick=True).verdict == "pass", "a module alone, with the names of the package"
    with torch.no_grad():
        module.layer.weight[1] += 0.5
    report = validate(package, recipe(module))
    assert (report.verdict, report.cause) == ("fail", "weights")
    assert {culprit.module for culprit in report.culprits if culprit.module} <= {"", "layer"}, "paths are the module's own"


def test_both_front_ends_capture_what_is_called_by_name() -> None:
    inputs = {name: torch.randn(2, 4) for name in ("w", "x")}
    module = Named()
    expected = call(module, inputs, ("product", "sum"))
    exported = capture_by_export(recipe(module)).program
    assert isinstance(exported, torch.export.ExportedProgram)
    for program in (capture(recipe(module)).program, exported.module()):
        torch.testing.assert_close(program(*inputs.values()), expected)


def test_weights_of_a_module_that_is_plain_already_keep_their_names() -> None:
    (weight, bias) = (name for name, _ in capture(recipe(nn.Linear(4, 4), ("y",), ("x",))).program.named_parameters())
    assert (weight, bias) == ("weight", "bias")


class Signatures(nn.Module):
    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = forward


a, b = torch.tensor([1.0]), torch.tensor([10.0])
SIGNATURES: list[tuple[Callable[..., Tensor], tuple[str, ...]]] = [
    (lambda x, y: x - y, ("y", "x")),  # by name
    (lambda x, y: y - x, ("first", "second")),  # in order
    (lambda *tensors: tensors[1] - tensors[0], ("y", "x")),
    (lambda **tensors: tensors["x"] - tensors["y"], ("y", "x")),
    (lambda x, **more: x - more["y"], ("y", "x")),
    (lambda x, y=None, **more: y - x if not more else x, ("first", "second")),  # which ``more`` would swallow
    (lambda y, /, x: x - y, ("y", "x")),
]


@pytest.mark.parametrize(("forward", "names"), SIGNATURES)
def test_inputs_go_by_name_where_forward_has_the_names_and_in_order_otherwise(
    forward: Callable[..., Tensor], names: tuple[str, ...]
) -> None:
    (result,) = call(Signatures(forward), dict(zip(names, (a, b), strict=True)))
    assert result.item() == 9


def test_an_input_that_would_go_to_the_parameter_of_another_is_refused() -> None:
    module = Signatures(lambda ids, mask=None, kinds=None: ids)
    with pytest.raises(ConfigError, match=r"forward has no 'kind', and in their order .* 'mask' to 'kinds'; .* ids, mask, kinds"):
        call(module, {"ids": a, "kind": b, "mask": b})


@pytest.mark.parametrize(
    ("result", "names", "picked"),
    [
        (a, ("y",), (a,)),
        ([a, b], ("y", "z"), (a, b)),
        ((a, None), ("y",), (a,)),  # attention without its weights
        ((a, (b, a)), ("y",), (a,)),  # an LSTM of which only the outputs are wanted
        ((a, (b, a)), ("y", "h", "c"), (a, b, a)),
        ({"y": a, "cache": object(), "z": b}, ("z",), (b,)),
        ({"y": a, "cache": object(), "z": b}, ("z", "y"), (b, a)),
        ({"y": a, "z": b}, ("one", "two"), (a, b)),  # of a package that somebody else made
        (Pair(a, b), ("product",), (b,)),
        (Pair(a, b), ("one", "two"), (a, b)),
        ({"y": a, "z": b}, (), (a, b)),
        ((a, b), ("y",), (a, b)),  # of a package that lost an output
    ],
)
def test_results_are_picked_by_name_or_taken_in_order(result: object, names: tuple[str, ...], picked: tuple[Tensor, ...]) -> None:
    actual = pick(result, names)
    assert len(actual) == len(picked) and all(map(lambda x, y: x is y, actual, picked))


@pytest.mark.parametrize(
    ("result", "names", "message"),
    [
        ({"logits": a, "cache": (a,), "loss": None}, ("logit",), r"no tensor 'logit'; there is 'logits' \(1,\), 'cache' \(a tuple\)$"),
        ({"logits": a, "cache": (a,)}, ("logits", "cache"), r"no tensor 'cache'; there is 'logits'"),
        (Both(a, b), ("sum", "products"), r"no tensor 'products'; there is 'sum' \(1,\), 'product' \(1,\)$"),
        ((a, b), ("y",), r"returns 2 tensors, 1 outputs are named \(y\)"),
        ("text", ("y",), "returns str; return a tensor, a tuple of tensors, or tensors by name"),
    ],
)
def test_a_name_that_is_not_there_is_one_error_that_lists_what_is(result: object, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pick(result, names, strict=True)
    module = Signatures(lambda x: result)
    with pytest.raises(ExportError, match=f"named: .*{message}"):
        capture(recipe(module, names, ("x",)))


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    return BertModel(config).eval()


IDS = {
    "attention_mask": TensorSpec((1, 6), "int32", values=(0, 1)),
    "input_ids": TensorSpec((1, 6), "int32", bounds=(0, 49)),
}


def test_a_model_of_transformers_is_captured_unmodified(bert: nn.Module) -> None:
    given = Recipe(name="bert", module=bert, inputs=IDS, outputs=("pooler_output", "last_hidden_state"))
    captured = capture(given)
    inputs = {name: torch.from_numpy(array) for name, array in given.inputs_for(20).items()}
    expected = copy.deepcopy(bert)(**inputs)
    pooled, hidden = captured.program(*inputs.values())
    torch.testing.assert_close(pooled, expected.pooler_output)
    torch.testing.assert_close(hidden, expected.last_hidden_state)
    with pytest.raises(ExportError, match=r"no tensor 'pooled'; there is 'last_hidden_state' \(1, 6, 16\), 'pooler_output' \(1, 16\)$"):
        capture(Recipe(name="bert", module=bert, inputs=IDS, outputs=("pooled",)))
