"""Packages that keep states are judged as functions of them."""

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe
from coreflow.models.errors import ConfigError, InputError
from coreflow.models.spec import TensorSpec
from coreflow.runtime import load_model
from coreflow.runtime.lift.onnx.write import write_onnx
from coreflow.validate import validate
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.inputs.states import StatelessLifted, StatelessModel
from coreflow.validate.options import Evidence
from coreflow.validate.recorded import replay
from coreflow.validate.replay.cut import record_inputs

C = 16


class Memory(nn.Module):
    """A leaky sum of what was seen, and a linear map of it."""

    memory: Tensor

    def __init__(self, keep: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(1, C))
        self.head, self.keep = nn.Linear(C, C), keep

    def forward(self, x: Tensor) -> Tensor:
        self.memory.mul_(self.keep).add_(torch.tanh(x))
        return self.head(self.memory)


def module_of(keep: float = 0.5) -> Memory:
    torch.manual_seed(0)
    return Memory(keep).eval()


def package_of(module: nn.Module, folder: Path) -> Path:
    ct = quiet_coremltools()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = ct.convert(
            torch.jit.trace(copy.deepcopy(module), (torch.zeros(1, C),), check_trace=False),
            inputs=[ct.TensorType(name="x", shape=(1, C), dtype=np.float16)],
            outputs=[ct.TensorType(name="y", dtype=np.float16)],
            states=[ct.StateType(wrapped_type=ct.TensorType(shape=(1, C), dtype=np.float16), name="memory")],
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
        )
    path = folder / "memory.mlpackage"
    model.save(str(path))
    return path


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package_of(module_of(), tmp_path_factory.mktemp("memory"))


def recipe_of(module: nn.Module) -> Recipe:
    return Recipe(name="memory", module=module, inputs={"x": TensorSpec((1, C))}, outputs=("y",), target="iOS18")


def test_a_state_is_an_output_of_its_own_and_its_ops_have_origins(package: Path) -> None:
    module = module_of()
    before = module.memory.clone()
    report = validate(package, module)
    assert report.verdict == "pass", report.text
    assert not report.notes, "a fresh conversion of the function has the same ops"
    assert list(report.outputs) == ["y", "memory_out"] and "R2" in report.outputs["memory_out"].rungs
    assert {op.origin.module for op in report.ops if op.origin is not None and op.type == "linear"} == {"head"}
    assert torch.equal(module.memory, before), "the reference is left as it was"


def test_a_recipe_needs_not_name_the_states(package: Path) -> None:
    report = validate(package, recipe_of(module_of()), inputs=[{"x": np.ones((1, C), np.float16)}])
    assert report.verdict == "pass" and report.samples.given == 1


def test_another_update_of_the_state_is_caught_in_the_state(package: Path) -> None:
    report = validate(package, module_of(keep=0.25))
    assert (report.verdict, report.cause) == ("fail", "translation"), "the ops are the same, a factor is not"
    assert report.outputs["memory_out"].outcome == "fail"


def test_another_weight_is_an_error_of_weights(package: Path) -> None:
    module = module_of()
    with torch.no_grad():
        module.head.weight[3] = 0
    report = validate(package, module)
    assert (report.verdict, report.cause) == ("fail", "weights")
    assert (report.outputs["y"].outcome, report.outputs["memory_out"].outcome) == ("fail", "pass")


def test_a_lifted_onnx_file_names_states_alike(package: Path, tmp_path: Path) -> None:
    write_onnx(read_program(package), tmp_path / "memory.onnx", "fp32")
    report = validate(package, tmp_path / "memory.onnx")
    assert report.verdict == "pass" and list(report.outputs) == ["y", "memory_out"]


def test_a_write_to_another_place_than_torch_writes_to_is_caught(tmp_path: Path) -> None:
    """A place that depends on an input is fixed when the module is traced."""

    class Cache(nn.Module):
        memory: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("memory", torch.zeros(1, C))

        def forward(self, x: Tensor) -> Tensor:
            place = int(x[0, 0] > 0)
            self.memory[:, place] = x[:, 0]
            return self.memory.relu() + x

    report = validate(package_of(Cache().eval(), tmp_path), Cache().eval())
    assert report.verdict == "fail" and report.outputs["memory_out"].outcome == "fail"


@pytest.mark.slow
def test_a_failure_is_replayed_from_the_state_that_it_began_with(package: Path, tmp_path: Path) -> None:
    report = validate(package, module_of(keep=0.25), evidence=Evidence(folder=tmp_path))
    assert report.replay is not None
    for reference in (None, module_of(keep=0.25), recipe_of(module_of(keep=0.25))):
        assert replay(report.replay, reference=reference, package=package).verdict == "fail"
    assert replay(report.replay, reference=module_of(), package=package).verdict == "incomplete", "another reference than was recorded"
    (alone,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (alone / "op.mlpackage").exists()


def test_recorded_inputs_come_from_the_samples_state(package: Path) -> None:
    graph, _ = read_program(package).function()
    name = next(op.name for op in graph.ops if op.type == "mul")
    memory = np.linspace(-2, 2, C, dtype=np.float16)[None]
    inputs = {"x": np.zeros((1, C), np.float16), "memory": memory}
    entering = record_inputs(package, name, Sample(label="memory", inputs=inputs))
    assert any(np.array_equal(array, memory) for array in entering.values())


def test_recorded_outputs_include_the_states(package: Path) -> None:
    module, x = module_of(), np.linspace(-1, 1, C, dtype=np.float16)[None]
    y = module(torch.from_numpy(x).float()).detach().numpy()
    sample = Sample(label="first", inputs={"x": x}, expected={"y": y, "memory_out": module.memory.numpy()})
    assert validate(package, None, [sample]).verdict == "pass"
    with pytest.raises(InputError, match="first records no memory_out"):
        validate(package, None, [replace(sample, expected={"y": y})])


def test_two_packages_with_states_are_compared(package: Path, tmp_path: Path) -> None:
    assert validate(package, package).verdict == "pass"
    assert validate(package, package_of(module_of(keep=0.4), tmp_path)).verdict == "fail"


def test_a_module_without_the_buffer_is_refused(package: Path) -> None:
    with pytest.raises(ConfigError, match="keeps memory; Linear has no such buffer, its buffers are: none"):
        validate(package, nn.Linear(C, C))


def test_both_stateless_forms_give_the_results_of_successive_predictions(package: Path) -> None:
    model = load_model(package, "lifted", engine="interpreter")
    state = model.make_state()
    ways: list[Any] = [StatelessLifted(model.program), StatelessModel(model)]  # type: ignore[attr-defined]
    random, memories = np.random.default_rng(0), [np.zeros((1, C), np.float16)] * 2
    for _ in range(3):
        x = random.standard_normal((1, C)).astype(np.float16)
        expected = model.predict({"x": x}, state)
        for place, way in enumerate(ways):
            outputs = way.predict({"x": x, "memory": memories[place]})
            np.testing.assert_array_equal(outputs["y"], expected["y"])
            np.testing.assert_array_equal(outputs["memory_out"], state.read("memory"))
            memories[place] = outputs["memory_out"].astype(np.float16)
    assert np.abs(memories[0]).max() > 0.5
