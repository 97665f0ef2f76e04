"""A placement beside a compute plan: pairs, ties, order, what is learned; and the plan of a real Mac, where there is one."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from coreflow.export.engine.compute_plan import PlanOp, compare, large_kernels, learn, plan_ops, read_plan, this_machine
from coreflow.export.engine.placement import place
from coreflow.export.engine.targets import find_targets
from coreflow.export.package.mlpackage import read_program
from coreflow.models.errors import ConfigError, UnsupportedError
from tests.export.engine.test_placement import Chain

M4 = find_targets("M4/macOS27")[0]


class MLNeuralEngineComputeDevice:
    """Named as coremltools names it: devices are told by their class."""


class MLCPUComputeDevice:
    """The same of the CPU."""


@dataclass
class Plan:
    """A compute plan of the form that coremltools documents, with one function ``main``."""

    ops: Sequence[tuple[str, str, type, float | None]]  # result, operator, preferred device, weight
    supported: dict[str, list[type]] = field(default_factory=dict)

    @property
    def model_structure(self) -> Any:
        operations = [
            SimpleNamespace(operator_name=operator, outputs=[SimpleNamespace(name=name)], blocks=[]) for name, operator, _, _ in self.ops
        ]
        return SimpleNamespace(program=SimpleNamespace(functions={"main": SimpleNamespace(block=SimpleNamespace(operations=operations))}))

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        name = operation.outputs[0].name
        device = next(device for other, _, device, _ in self.ops if other == name)
        if device is type(None):
            return None
        supported = self.supported.get(name, [MLCPUComputeDevice, MLNeuralEngineComputeDevice])
        return SimpleNamespace(preferred_compute_device=device(), supported_compute_devices=[kind() for kind in supported])

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
        weight = next(weight for other, _, _, weight in self.ops if other == operation.outputs[0].name)
        return None if weight is None else SimpleNamespace(weight=weight)


PLACEMENT = place(Chain((1, 256, 32, 32)).conv(256, 32, 3).add("relu", (1, 256, 32, 32)).graph(), M4)
SHARES = [op.share for op in PLACEMENT.ops]


def test_a_plan_is_read_without_constants_and_ops_that_have_no_device() -> None:
    plan = Plan(
        [
            ("w", "const", type(None), None),
            ("conv_0", "ios18.conv", MLNeuralEngineComputeDevice, 0.9),
            ("relu_1", "ios18.relu", MLCPUComputeDevice, 0.1),
        ]
    )
    assert [(op.name, op.type, op.device, op.share) for op in plan_ops(plan, "main")] == [
        ("conv_0", "ios18.conv", "engine", 0.9),
        ("relu_1", "ios18.relu", "cpu", 0.1),
    ]
    with pytest.raises(UnsupportedError, match="no function 'other'; it has main"):
        plan_ops(plan, "other")


def test_a_tie_agrees_with_either_device() -> None:
    plan = Plan([("conv_0", "conv", MLNeuralEngineComputeDevice, SHARES[0]), ("relu_1", "relu", MLCPUComputeDevice, SHARES[1])])
    comparison = compare(PLACEMENT, plan_ops(plan, "main"))
    assert comparison.disagreements == ()
    assert comparison.largest_share_error == pytest.approx(0)
    assert comparison.keeps_order


def test_another_device_and_another_support_are_disagreements() -> None:
    plan = Plan(
        [("conv_0", "conv", MLCPUComputeDevice, 0.5), ("relu_1", "relu", MLNeuralEngineComputeDevice, None)],
        supported={"relu_1": [MLCPUComputeDevice]},
    )
    comparison = compare(PLACEMENT, plan_ops(plan, "main"))
    assert [pair.predicted.name for pair in comparison.disagreements] == ["conv_0", "relu_1"]
    assert comparison.largest_share_error == pytest.approx(abs(SHARES[0] - 0.5))


def test_what_a_compiler_renamed_or_moved_is_said_and_not_compared() -> None:
    measured = [
        PlanOp("relu_1", "relu", "engine", ("cpu", "engine"), None),
        PlanOp("conv_0", "conv", "engine", ("cpu", "engine"), None),
        PlanOp("conv_relu", "conv", "engine", ("cpu", "engine"), None),
    ]
    comparison = compare(PLACEMENT, measured)
    assert not comparison.keeps_order
    assert [op.name for op in comparison.only_measured] == ["conv_relu"]
    assert comparison.largest_share_error is None
    assert [op.name for op in compare(PLACEMENT, measured[2:]).only_predicted] == ["conv_0", "relu_1"]


def test_disagreements_are_kept_as_lines_with_the_features_of_the_op(tmp_path: Path) -> None:
    file = tmp_path / "learned.jsonl"
    plan = Plan([("conv_0", "conv", MLCPUComputeDevice, 0.5), ("relu_1", "relu", MLCPUComputeDevice, 0.5)])
    comparison = compare(PLACEMENT, plan_ops(plan, "main"))
    for _ in range(2):
        assert learn(file, PLACEMENT, comparison, {"system": "macOS 27"}) == 1
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 2 and lines[0] == lines[1]
    assert lines[0]["features"]["type"] == "conv" and lines[0]["features"]["inputs"][0]["shape"] == [1, 256, 32, 32]
    assert (lines[0]["predicted"]["device"], lines[0]["measured"]["device"], lines[0]["target"]) == ("engine", "cpu", "M4/macOS27")
    with pytest.raises(ConfigError, match="cannot be written"):
        learn(tmp_path, PLACEMENT, comparison, {})


@pytest.mark.parametrize(("kernel", "is_large"), [(12, False), (13, True), (16, True)])
def test_large_kernels_are_known_before_a_plan_is_asked_for(kernel: int, is_large: bool) -> None:
    placement = place(Chain((1, 8, 32, 32)).conv(8, 32, kernel).graph(), M4)
    assert bool(large_kernels(placement)) == is_large
    strip = place(Chain((1, 8, 32, 32)).add("conv", (1, 8, 32, 32), weight=np.zeros((8, 8, 31, 1), np.float16)).graph(), M4)
    assert not large_kernels(strip)


def test_a_large_kernel_is_refused_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    placement = place(Chain((1, 8, 32, 32)).conv(8, 32, 16).graph(), M4)
    program: Any = SimpleNamespace(path=Path("large.mlpackage"))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(UnsupportedError, match=r"conv_0 \(16 x 16\).*--force"):
        read_plan(program, placement, "main")


def test_elsewhere_than_on_a_mac_there_is_no_plan(exported: Path) -> None:
    if platform.system() == "Darwin":
        pytest.skip("this is a Mac")
    (package,) = (exported / "bundle").glob("packages/mapper_in.mlpackage")
    program = read_program(package)
    with pytest.raises(UnsupportedError, match="needs the Core ML framework of macOS"):
        read_plan(program, place(program.function()[0], M4), "main")


@pytest.mark.coreml
def test_the_plan_of_this_mac_is_read(exported: Path) -> None:
    """Not yet run anywhere: written against the documented API."""
    (package,) = (exported / "bundle").glob("packages/mapper_in.mlpackage")
    program = read_program(package)
    placement = place(program.function()[0], M4)
    measured = read_plan(program, placement, "main")
    assert {op.device for op in measured} <= {"engine", "cpu"}
    comparison = compare(placement, measured)
    assert comparison.pairs
    assert this_machine()["system"].startswith("macOS ")
