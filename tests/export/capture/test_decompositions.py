"""What torch.export gives and the converter would misread, rewritten: converted at FLOAT32 it computes what torch does."""

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from coreflow.export.bundle import conversion_of
from coreflow.export.capture.capture import capture_by_export
from coreflow.export.capture.decompositions import _READ, ignored_keywords, safe_decompositions
from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe
from coreflow.export.targets.mlprogram import convert
from coreflow.models.errors import ExportError
from coreflow.models.spec import TensorSpec
from coreflow.runtime.backend import LoadOptions
from coreflow.runtime.lifted import LiftedModel


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Last(nn.Module):
    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x: Tensor) -> Tensor:
        result = self.recurrent(x)
        return result[0] if isinstance(result, tuple) else result


def grouped_attention(x: Tensor) -> Tensor:
    query, key = torch.stack([x, x + 1, x * 2, x - 1])[None], torch.stack([x, x.flip(0)])[None]
    return functional.scaled_dot_product_attention(query, key, key, enable_gqa=True)


CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "add with alpha": lambda x: torch.add(x, x, alpha=0.5),
    "sub with alpha": lambda x: torch.sub(x, x * 2, alpha=0.5),
    "rsub with alpha": lambda x: torch.rsub(x, x * x, alpha=0.5),
    "tanh GELU": lambda x: functional.gelu(x, approximate="tanh"),
    "zeros like a bool": lambda x: torch.zeros_like(x > 0, dtype=torch.float32).masked_fill(x > 0, float("-inf")).exp() * x,
    "ones like a bool": lambda x: x + torch.ones_like(x > 0, dtype=torch.float32) * 0.5,
    "full like a bool": lambda x: x + torch.full_like(x > 0, 0.25, dtype=torch.float32),
    "zeros and ones of integers": lambda x: x * (torch.ones(4, dtype=torch.int64) + torch.zeros(4, dtype=torch.int64)),
    "full without a dtype": lambda x: x * torch.full((4,), 3) + torch.full((4,), 0.5),
    "new tensors": lambda x: x * x.new_ones(4) * x.new_full((4,), 3.0) + x.new_zeros(()),
    "new tensors of another dtype": lambda x: x + (x > 0).new_full((4,), 0.5, dtype=torch.float32),
    "arange of floats": lambda x: x * torch.arange(4, dtype=torch.float32) / torch.arange(1, 5, dtype=torch.float32),
    "sum in a dtype": lambda x: (x > 0).sum(-1, keepdim=True, dtype=torch.float32) * 0.5 + x,
    "and, or, xor": lambda x: x * (((x > 0) & (x < 1)) | (x < -1)) + x * ((x > 0) ^ (x > 1)),
    "where with a number": lambda x: torch.where(x > 0, x, 0.5),
    "index_add": lambda x: torch.zeros_like(x).index_add(0, torch.tensor([1, 0]), x),
    "addcmul and lerp": lambda x: torch.lerp(torch.addcmul(x, x, x, value=0.5), x, 0.25),
    "rms_norm": lambda x: functional.rms_norm(x, (4,), eps=1e-3),
    "grouped attention": grouped_attention,
}
MODULES: dict[str, nn.Module] = {
    **{name: Applied(function) for name, function in CASES.items()},
    "GRU": Last(nn.GRU(4, 3)),
    "GRU cell": Last(nn.GRUCell(4, 3)),
    "LSTM": Last(nn.LSTM(4, 3)),
}


def draw(seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((2, 4)).astype(np.float32)}


def recipe(module: nn.Module) -> Recipe:
    inputs = {"x": TensorSpec((2, 4), "float32")}
    return Recipe(name="exported", module=module.eval(), inputs=inputs, outputs=("y",), precision="fp32", draw=draw)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", MODULES)
def test_a_rewritten_operation_computes_what_torch_does(name: str, tmp_path: Path) -> None:
    module = MODULES[name]
    package = convert(conversion_of(capture_by_export(recipe(module))), tmp_path / "exported.mlpackage")
    model = LiftedModel(read_program(package), LoadOptions(numerics="fp64", engine="interpreter"))
    inputs = draw(9)
    with torch.no_grad():
        expected = module(torch.from_numpy(inputs["x"])).numpy()
    np.testing.assert_allclose(model.predict(inputs)["y"], expected, rtol=1e-5, atol=1e-6)


def test_a_keyword_that_the_converter_would_ignore_is_refused() -> None:
    with pytest.raises(ExportError, match=r"ignore out_int32= of aten::searchsorted"):
        capture_by_export(recipe(Applied(lambda x: torch.searchsorted(torch.tensor([[0.0, 1.0]] * 2), x, out_int32=True) * x)))


def test_without_the_table_keywords_would_be_ignored() -> None:
    module = Applied(lambda x: functional.gelu(torch.add(x, x, alpha=0.5), approximate="tanh"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(module, (torch.ones(2, 4),), strict=False)
        plain, safe = exported.run_decompositions({}), exported.run_decompositions(safe_decompositions())
    assert ignored_keywords(plain) == ["alpha= of aten::add", "approximate= of aten::gelu"]
    assert ignored_keywords(safe) == []


@pytest.mark.parametrize(("operation", "keyword"), [(operation, keyword) for operation in _READ for keyword in sorted(_READ[operation])])
def test_the_converter_reads_the_keywords_that_are_left_to_it(operation: str, keyword: str) -> None:
    quiet_coremltools()
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    short = operation.removeprefix("aten::")
    function = _TORCH_OPS_REGISTRY.get_func(short)
    assert function is not None and f'"{keyword}"' in inspect.getsource(function)
