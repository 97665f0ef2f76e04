"""The same module from a recipe, a class, an exported program and a TorchScript file gives packages of equal outputs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from coreflow.export import Recipe, TensorSpec, build
from coreflow.export.sources.input_texts import parse_inputs
from coreflow.export.sources.source import SourceOptions, load_source
from coreflow.models.errors import ConfigError
from coreflow.runtime import load_model

CLASS = "tests.export.sources.test_sources:Network"


class Network(nn.Module):
    """Two layers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


def sources(folder: Path) -> dict[str, tuple[str, SourceOptions]]:
    """What names the network, and the options with it."""
    module, x, inputs = network(), torch.zeros(2, 6), {"x": TensorSpec((2, 6))}
    save_file(module.state_dict(), folder / "weights.safetensors")
    torch.save(module.state_dict(), folder / "weights.pt")
    torch.export.save(torch.export.export(module, (x,)), folder / "network.pt2")
    torch.jit.script(module).save(str(folder / "scripted.pt"))
    return {
        "class": (CLASS, SourceOptions(inputs=inputs, weights=folder / "weights.safetensors")),
        "class and .pt": (CLASS, SourceOptions(inputs=inputs, weights=folder / "weights.pt", arguments={"width": 8})),
        "exported program": (str(folder / "network.pt2"), SourceOptions()),
        "TorchScript": (str(folder / "scripted.pt"), SourceOptions(inputs=inputs)),
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.:DeprecationWarning")
def test_packages_of_one_module_are_equal_wherever_it_comes_from(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float16)

    def output(recipe: Recipe, name: str) -> Any:
        (tmp_path / name).mkdir()
        (array,) = load_model(build(recipe, tmp_path / name), "lifted", engine="interpreter").predict({"x": x}).values()
        return array

    reference = output(Recipe(name="network", module=network(), inputs={"x": TensorSpec((2, 6))}, outputs=("output",)), "recipe")
    for name, (source, options) in sources(tmp_path).items():
        (recipe,) = load_source(source, options).recipes
        assert recipe.outputs == ("output",)
        np.testing.assert_array_equal(output(recipe, name), reference, err_msg=name)


def test_options_survive_a_manifest() -> None:
    options = SourceOptions(inputs=parse_inputs(["ids:1x4:int32:0..9", "x:2x3"]), arguments={"width": 4}, target="iOS18")
    assert SourceOptions.from_json(options.to_json()) == options
    assert SourceOptions().to_json() == {}


@pytest.mark.parametrize("text", ["x", "x:", "x:1x", "x:1x2:float99", "1x:2", "ids:1x4:int32:0-9", "x:0"], ids=str)
def test_inputs_of_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"NAME:SHAPE, as in|extent below 1"):
        parse_inputs([text])


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nothing/here", {}, "is nothing to export; a run of `coreflow train`, FILE.py:NAME"),
        (CLASS, {}, r"which inputs\? Give each, as in --input"),
        (CLASS, {"task": "fill-mask", "inputs": {"x": TensorSpec((2, 6))}}, "takes no --task"),
        (CLASS, {"inputs": {"x": TensorSpec((2, 5))}}, "does not run on x"),
        (CLASS, {"arguments": {"depth": 3}}, "cannot be made of .*depth"),
        (CLASS, {"weights": Path("nowhere.safetensors")}, "nowhere.safetensors is not a file"),
        ("tests.nowhere:Network", {}, "tests.nowhere cannot be imported"),
        ("tests.export.sources.test_sources:Nothing", {}, "has no Nothing"),
        ("tests.export.sources.test_sources:network", {}, "is a function; a class of nn.Module is right"),
        ("nowhere.pt2", {}, "nowhere.pt2 is not a file"),
        (__file__ + ":NOTHING", {"weights": Path("w.pt")}, "takes no --weights"),
    ],
    ids=str,
)
def test_sources_that_are_none_are_refused(source: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_source(source, SourceOptions(**options))


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(network().state_dict(), weights)
    with pytest.raises(ConfigError, match=r"is no TorchScript file; a file of weights goes with its class"):
        load_source(str(weights))
    (tmp_path / "broken.pt2").write_bytes(b"x")
    with pytest.raises(ConfigError, match="is no exported program of torch"):
        load_source(str(tmp_path / "broken.pt2"))
    with pytest.raises(ConfigError, match="is no file of weights"):
        load_source(CLASS, SourceOptions(weights=tmp_path / "broken.pt2", inputs={"x": TensorSpec((2, 6))}))


def test_whole_numbers_of_an_exported_program_need_bounds(tmp_path: Path) -> None:
    file = tmp_path / "embedding.pt2"
    torch.export.save(torch.export.export(nn.Embedding(10, 4), (torch.zeros(1, 3, dtype=torch.int64),)), file)
    with pytest.raises(ConfigError, match=r"whole numbers, whose bounds the program does not say; --input input:1x3:int32:0\.\.HIGHEST"):
        load_source(str(file))
    (recipe,) = load_source(str(file), SourceOptions(inputs=parse_inputs(["input:1x3:int32:0..9"]))).recipes
    assert recipe.inputs["input"].bounds == (0, 9)
