"""A program as an ``nn.Module``: the interpreter's results, the package's names, torch's own tools."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from coreflow.export.package.graph import Program, Value
from coreflow.export.package.mlpackage import read_program
from coreflow.runtime import load_model
from coreflow.runtime.backend import NumericsName
from coreflow.runtime.lift.engines.module import LiftedModule, unique_names
from coreflow.runtime.lift.numerics.named import numerics_named

IDS = np.arange(16, dtype=np.int32)[None] * 6
MASK = (np.arange(16) < 12).astype(np.float32)[None]


@pytest.fixture(scope="module")
def program(small_package: Path) -> Program:
    return read_program(small_package)


def lifted(program: Program, numerics: NumericsName = "fp32") -> LiftedModule:
    return LiftedModule(*program.function(), numerics_named(numerics)).eval()


@pytest.mark.parametrize("numerics", ["fp64", "fp32", "fp16"])
def test_results_are_the_interpreters(program: Program, small_package: Path, numerics: NumericsName) -> None:
    reference = load_model(small_package, "lifted", numerics=numerics, engine="interpreter").predict({"ids": IDS, "mask": MASK})
    module = lifted(program, numerics)
    with torch.no_grad():
        actual = module(torch.from_numpy(IDS), torch.from_numpy(MASK))
    assert module.input_names == ("ids", "mask") and module.output_names == ("probabilities", "best")
    for name, result in zip(module.output_names, actual, strict=True):
        np.testing.assert_allclose(result.numpy(), reference[name], rtol=0, atol=1e-7)


def test_weights_keep_the_packages_names_and_values(program: Program) -> None:
    module = lifted(program)
    graph, _ = program.function()
    constants = {value.name: value.data for value in graph.constants}
    parameters = dict(module.named_parameters())
    assert {"embedding_weight_to_fp16", "inner_weight_to_fp16", "outer_weight_to_fp16", "outer_bias_to_fp16"} <= parameters.keys()
    for name, parameter in parameters.items():
        np.testing.assert_array_equal(parameter.detach().numpy(), constants[name])


def test_arguments_read_as_numbers_are_no_tensors(program: Program) -> None:
    module, (graph, _) = lifted(program), program.function()
    keys = ("shape", "perm", "axes", "axis", "begin", "end")
    plain = {value.name for op in graph.ops for key in keys if isinstance(value := op.inputs.get(key), Value)}
    assert len(plain) > 3 and not plain & module.state_dict().keys()


def test_weights_that_change_change_the_result(program: Program) -> None:
    module = lifted(program)
    inputs = torch.from_numpy(IDS), torch.from_numpy(MASK)
    with torch.no_grad():
        before, _ = module(*inputs)
        module.get_parameter("outer_weight_to_fp16").zero_()
        after, _ = module(*inputs)
    assert (before - after).abs().max() > 0.01


def test_gradients_reach_the_weights(program: Program) -> None:
    module = lifted(program)
    probabilities, _ = module(torch.from_numpy(IDS), torch.from_numpy(MASK))
    probabilities[..., 0].sum().backward()
    gradient = module.get_parameter("inner_weight_to_fp16").grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_torch_exports_it(program: Program) -> None:
    module = lifted(program)
    inputs = torch.from_numpy(IDS), torch.from_numpy(MASK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(module, inputs, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(*inputs), module(*inputs))
    assert "embedding_weight_to_fp16" in exported.state_dict


def test_states_come_last_among_inputs_and_outputs(counting_package: Path) -> None:
    module = LiftedModule(*read_program(counting_package).function())
    (state,) = module.states
    assert module.input_names == ("x", state) and module.output_names[-1] == f"{state}_out"
    given = torch.tensor([10.0, 20.0])
    with torch.no_grad():
        doubled, after = module(torch.tensor([1.0, 2.0]), given)
    assert (doubled.tolist(), after.tolist(), given.tolist()) == ([22, 44], [11, 22], [10, 20])


@pytest.mark.parametrize(("a", "reference"), [(1.0, [3, 5]), (-1.0, [-1, -2])])
def test_control_flow_is_decided_by_the_inputs(branching_package: Path, a: float, reference: list[float]) -> None:
    module = LiftedModule(*read_program(branching_package).function())
    with torch.no_grad():
        (actual,) = module(torch.tensor([a]), torch.tensor([1.0, 2.0]))
    assert actual.tolist() == reference


def test_compressed_weights_are_parameters(palettized_package: Path) -> None:
    module = LiftedModule(*read_program(palettized_package).function())
    shapes = [tuple(parameter.shape) for parameter in module.parameters() if parameter.dim() > 1]
    assert shapes == [(32, 64)]


def test_a_wrong_number_of_inputs_names_the_right_ones(program: Program) -> None:
    with pytest.raises(TypeError, match="takes ids, mask; 1 tensors were given"):
        lifted(program)(torch.from_numpy(IDS))


@pytest.mark.cuda
def test_it_moves_to_another_device(program: Program) -> None:
    module, inputs = lifted(program), (torch.from_numpy(IDS), torch.from_numpy(MASK))
    with torch.no_grad():
        reference, _ = module(*inputs)
        actual, _ = module.to("cuda")(*(tensor.to("cuda") for tensor in inputs))
    torch.testing.assert_close(actual.cpu(), reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "reference"),
    [
        (["a.b", "a_b"], ["a_b", "a_b_1"]),
        (["1x", ""], ["_1x", "_"]),
        (["lambda", "self"], ["lambda_1", "self_1"]),
        (["é/x"], ["_x"]),
        (["__a", "_a"], ["_a", "_a_1"]),
    ],
    ids=str,
)
def test_names_become_identifiers_and_stay_unique(names: list[str], reference: list[str]) -> None:
    assert unique_names(names, taken=("self",)) == reference
