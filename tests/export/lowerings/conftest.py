"""Runs functions as converted packages, by either front end, in float64."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import conversion_of
from coreflow.export.capture.capture import capture, capture_by_export
from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe
from coreflow.export.targets.mlprogram import convert
from coreflow.models.arrays import Array, Arrays
from coreflow.models.spec import TensorSpec
from coreflow.runtime.backend import LoadOptions
from coreflow.runtime.lifted import LiftedModel

Function = Callable[..., Tensor | Sequence[Tensor]]


class Applied(nn.Module):
    """A function as a module; truth values come out as 0 and 1."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        results = self.function(*inputs)
        tensors = (results,) if isinstance(results, Tensor) else results
        return tuple(tensor.to(torch.int32) if tensor.dtype == torch.bool else tensor for tensor in tensors)


def _as_float64(array: Array) -> Tensor:
    return torch.from_numpy(array.astype(np.float64) if array.dtype == np.float32 else array)


Compare = Callable[..., None]


@pytest.fixture
def equals_torch(tmp_path: Path) -> Compare:
    """``equals_torch(function, front_end, *samples)``: the package gives on every sample what the function gives, integers exactly."""

    def compare(function: Function, front_end: str, *samples: Sequence[Any], target: str = "iOS17", atol: float = 1e-6) -> None:
        module = Applied(function)
        drawn: list[Arrays] = [{f"x{place}": np.asarray(array) for place, array in enumerate(sample)} for sample in samples]
        inputs = {name: TensorSpec(array.shape, str(array.dtype)) for name, array in drawn[0].items()}  # type: ignore[arg-type]
        with torch.no_grad():
            references = [module(*map(_as_float64, arrays.values())) for arrays in drawn]
        outputs = tuple(f"y{place}" for place in range(len(references[0])))
        recipe = Recipe(
            name="applied", module=module, inputs=inputs, outputs=outputs, precision="fp32", target=target,  # type: ignore[arg-type]
            draw=lambda seed: drawn[seed % len(drawn)],
        )  # fmt: skip
        captured = (capture if front_end == "trace" else capture_by_export)(recipe)
        package = convert(conversion_of(captured), tmp_path / f"{front_end}.mlpackage")
        model = LiftedModel(read_program(package), LoadOptions(numerics="fp64", engine="interpreter"))
        for arrays, reference in zip(drawn, references, strict=True):
            actual = model.predict(arrays)
            for name, expected in zip(outputs, reference, strict=True):
                assert (actual[name].shape or (1,)) == (tuple(expected.shape) or (1,)), name
                if expected.is_floating_point():
                    np.testing.assert_allclose(actual[name].reshape(expected.shape), expected, rtol=1e-6, atol=atol, err_msg=name)
                else:
                    np.testing.assert_array_equal(actual[name].reshape(expected.shape), expected, err_msg=name)

    return compare
