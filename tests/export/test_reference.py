"""A bundle of recipes carries weights and golden samples, and is validated by them where nobody has the modules."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from coreflow.export import Recipe, TensorSpec, export_bundle
from coreflow.export.package.manifest import read_manifest
from coreflow.export.reference import golden_samples
from coreflow.export.sources.source import Source
from coreflow.models.golden import read_samples
from coreflow.validate import validate_bundle


class Total(nn.Module):
    """A projection of a sum over calls; two names for one weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(32, 32)
        self.second = self.first
        self.register_buffer("total", torch.zeros(1, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.get_buffer("total").add_(x)))


def recipe() -> Recipe:
    inputs = {"x": TensorSpec((1, 32))}
    return Recipe(name="sums", module=Total().eval(), inputs=inputs, outputs=("y",), states=("total",), target="iOS18")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, source = tmp_path_factory.mktemp("bundles") / "sums", Source(recipes=(recipe(),))
    list(export_bundle(source.recipes, out, write_companions=source.write_companions, jobs=1))
    return out


def test_golden_samples_begin_with_empty_states() -> None:
    module, (inputs, outputs) = Total().eval(), golden_samples(recipe())[3]
    with torch.no_grad():
        reference = module(torch.from_numpy(inputs["x"]).float()).numpy()
    np.testing.assert_allclose(outputs["y"], reference, rtol=1e-6)
    np.testing.assert_array_equal(outputs["total_out"], inputs["x"].astype(np.float32))


def test_weights_and_samples_lie_among_the_companions(bundle: Path) -> None:
    companions = bundle / str(read_manifest(bundle).companions)
    module = Total()
    weights = load_file(companions / "weights" / "sums.safetensors")
    torch.testing.assert_close(weights["first.weight"], module.first.weight.detach())
    assert len(read_samples(companions, "sums")) == 8


def test_a_bundle_is_validated_without_its_modules(bundle: Path) -> None:
    report = validate_bundle(bundle, backend="lifted")
    assert (report.verdict, report.stages["sums"].verdict) == ("pass", "pass"), report.text
    assert list(report.stages["sums"].outputs) == ["y", "total_out"]
