"""Core ML's own compute plan of a package beside its predicted placement: read on a Mac, compared anywhere.

Written against the documented API of coremltools 9.0 (``coremltools.models.compute_plan``). Reading has not been run on a Mac yet;
comparing is tested with a plan object of the same form.
"""

import json
import math
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from coreflow.export.engine.placement import PlacedOp, Placement
from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.graph import Program
from coreflow.models.errors import ConfigError, UnsupportedError

PlanDevice = Literal["engine", "cpu", "gpu", "none"]
# Above this a plan takes long and much: 13 x 13 up to 23 s, 16 x 16 212 s and 11.7 GB, all below under 1 s (K of tables.toml).
LARGEST_KERNEL = 12 * 12
_DEVICES: Mapping[str, PlanDevice] = {
    "MLNeuralEngineComputeDevice": "engine",
    "MLCPUComputeDevice": "cpu",
    "MLGPUComputeDevice": "gpu",
}


@dataclass(frozen=True, slots=True)
class PlanOp:
    """One op of a compute plan; ``share`` is its part of the program's cost, None where the plan has none.

    >>> [(op.name, op.device, op.share) for op in plan_ops(plan, "main")]
    """

    name: str  # of its first result
    type: str
    device: PlanDevice
    supported: tuple[PlanDevice, ...]
    share: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    """A predicted op and the plan's op of the same result and type.

    >>> [(pair.predicted.name, pair.measured.device) for pair in compare(placement, plan_ops(plan, "main")).disagreements]
    """

    predicted: PlacedOp
    measured: PlanOp

    @property
    def agrees(self) -> bool:
        """Whether device and support are as predicted; a tie agrees with either device."""
        return self.agrees_on_support and (self.predicted.device == self.measured.device or self._is_either)

    @property
    def agrees_on_support(self) -> bool:
        """Whether the plan names the engine among the devices exactly if the tables do."""
        return self.predicted.support.engine == ("engine" in self.measured.supported)

    @property
    def _is_either(self) -> bool:
        return self.predicted.is_tied and self.measured.device in ("engine", "cpu")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A placement beside a plan: what both have, and what only one has, in the order of the file and of the plan.

    >>> comparison = compare(placement, measured)
    >>> len(comparison.disagreements), comparison.largest_share_error, comparison.keeps_order
    """

    pairs: tuple[Pair, ...]
    only_predicted: tuple[PlacedOp, ...]
    only_measured: tuple[PlanOp, ...]
    keeps_order: bool  # whether the plan lists the common ops as the file does

    @property
    def disagreements(self) -> tuple[Pair, ...]:
        """The pairs that differ in device or support."""
        return tuple(pair for pair in self.pairs if not pair.agrees)

    @property
    def largest_share_error(self) -> float | None:
        """The largest difference of a cost share; None where no share can be compared."""
        differences = [abs(pair.predicted.share - pair.measured.share) for pair in self.pairs if pair.measured.share is not None]
        return max(differences, default=None)


def compare(placement: Placement, measured: Sequence[PlanOp]) -> Comparison:
    """Pairs ops by the name of their first result and their type; a compiler that fuses or renames leaves ops unpaired, which is said."""
    by_name = {op.name: op for op in measured}
    pairs = [
        Pair(op, other) for op in placement.ops if (other := by_name.get(op.result)) is not None and _plain_type(other.type) == op.type
    ]
    paired = {pair.measured.name for pair in pairs}
    both = {pair.predicted.result for pair in pairs}
    places = {op.name: place for place, op in enumerate(measured)}
    order = [places[pair.measured.name] for pair in pairs]
    return Comparison(
        pairs=tuple(pairs),
        only_predicted=tuple(op for op in placement.ops if op.result not in both),
        only_measured=tuple(op for op in measured if op.name not in paired),
        keeps_order=order == sorted(order),
    )


def plan_ops(plan: Any, function: str) -> tuple[PlanOp, ...]:
    """The ops of one function of an ``MLComputePlan`` that have a device, in the plan's order; constants and blocks are left out."""
    program = plan.model_structure.program
    if program is None or function not in program.functions:
        known = ", ".join(program.functions) if program is not None else "no program"
        raise UnsupportedError(f"the compute plan has no function {function!r}; it has {known}")
    return tuple(_plan_ops(plan, program.functions[function].block.operations))


def _plan_ops(plan: Any, operations: Sequence[Any]) -> Iterator[PlanOp]:
    for operation in operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is None or not operation.outputs or _plain_type(operation.operator_name) in ("const", "identity"):
            continue
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        yield PlanOp(
            name=operation.outputs[0].name,
            type=operation.operator_name,
            device=_device(usage.preferred_compute_device),
            supported=tuple(_device(device) for device in usage.supported_compute_devices),
            share=None if cost is None else float(cost.weight),
        )


def _device(device: Any) -> PlanDevice:
    return _DEVICES.get(type(device).__name__, "none")


def _plain_type(operator: str) -> str:
    """A plan may name the opset too, as in ``ios18.conv``."""
    return operator.rpartition(".")[2]


def large_kernels(placement: Placement) -> tuple[PlacedOp, ...]:
    """Convolutions whose kernel is beyond ``LARGEST_KERNEL`` elements: even to ask for a plan compiles them for the engine."""
    return tuple(op for op in placement.ops if op.type in ("conv", "conv_transpose") and math.prod(op.features.kernel) > LARGEST_KERNEL)


def read_plan(program: Program, placement: Placement, function: str, *, force: bool = False) -> tuple[PlanOp, ...]:
    """The compute plan of a package on this Mac, with compute units CPU_AND_NE.

    ``UnsupportedError`` elsewhere than on macOS, for a program with large kernels unless ``force``, and where Core ML gives no plan.
    """
    if platform.system() != "Darwin":
        raise UnsupportedError(f"a compute plan needs the Core ML framework of macOS, and this is {platform.system()}")
    if (large := large_kernels(placement)) and not force:
        kernels = ", ".join(f"{op.name} ({' x '.join(map(str, op.features.kernel))})" for op in large)
        raise UnsupportedError(
            f"{program.path.name}: {kernels}: even for a plan Core ML compiles large kernels, one of 16 x 16 for minutes and with 11.7 GB; "
            "--force asks for it"
        )
    coremltools = quiet_coremltools()
    from coremltools.models.compute_plan import MLComputePlan

    with tempfile.TemporaryDirectory() as folder:
        try:
            compiled = coremltools.utils.compile_model(str(program.path), str(Path(folder) / "plan.mlmodelc"))
            plan = MLComputePlan.load_from_path(str(compiled), coremltools.ComputeUnit.CPU_AND_NE)
        except Exception as error:  # coremltools raises plain Exception and RuntimeError where the framework refuses
            raise UnsupportedError(f"{program.path.name}: Core ML gives no compute plan ({error})") from error
        return plan_ops(plan, function)


def learn(file: Path, placement: Placement, comparison: Comparison, machine: Mapping[str, str]) -> int:
    """Appends every disagreement to ``file`` as a line of JSON, with the op's features and nothing of the package; returns how many."""
    lines = [
        json.dumps(
            {
                "target": placement.target.key,
                **machine,
                "features": asdict(pair.predicted.features),
                "ms": dict(pair.predicted.ms),
                "predicted": {"device": pair.predicted.device, "engine": pair.predicted.support.engine, "share": pair.predicted.share},
                "measured": {"device": pair.measured.device, "supported": pair.measured.supported, "share": pair.measured.share},
                "margin_ms": pair.predicted.margin_ms if math.isfinite(pair.predicted.margin_ms) else None,
            }
        )
        for pair in comparison.disagreements
    ]
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise ConfigError(f"--learn {file}: cannot be written ({error.strerror or error})") from error
    return len(lines)


def this_machine() -> dict[str, str]:
    """Chip and system of this machine, as far as Python tells."""
    return {"system": f"macOS {platform.mac_ver()[0]}", "processor": platform.machine()}
