"""Opens a package for comparison: as it will be executed, and lifted for the rungs below."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from coreflow.export.package.graph import Graph, Interface, Op, Program
from coreflow.models.spec import Precision, TensorSpec
from coreflow.runtime.backend import ComputeUnits, LoadOptions, Model, NumericsName
from coreflow.runtime.lifted import LiftedModel
from coreflow.runtime.load import open_model
from coreflow.validate.gates.tolerance import DEVICE, FP32, LIFTED, Limits, Tolerance
from coreflow.validate.inputs.classifiers import ClassifierModel, without_labels
from coreflow.validate.inputs.states import StatelessLifted, StatelessModel
from coreflow.validate.options import Options
from coreflow.validate.report.model import RungName


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenPackage:
    """A package, opened in every arithmetic that the ladder needs; the last rung is the one under test.

    >>> opened = open_package(read_program("encoder.mlpackage"), Options(backend="lifted"))
    >>> list(opened.rungs), opened.last
    (['R3', 'R4'], 'R4')
    """

    program: Program
    model: Model  # of the last rung
    rungs: Mapping[RungName, Model]  # R3: fp64, R4: fp16 storage, R5: a device
    precision: Precision
    tolerance: Tolerance
    numerics: NumericsName | Literal["device"]
    compute_units: ComputeUnits
    output_limits: Mapping[str, Limits] = field(default_factory=dict)  # of outputs whose limits are not the tolerance's
    states: Mapping[str, TensorSpec] = field(default_factory=dict)  # which are inputs and outputs of the rungs
    units: Mapping[str, Callable[[], Model]] = field(default_factory=dict)  # to compare, beside the one under test

    def tolerance_of(self, output: str) -> Tolerance:
        """The limits of one output."""
        limits = self.output_limits.get(output)
        return self.tolerance if limits is None else limits.on(self.tolerance)

    def rest(self) -> None:
        """Free the weights of all lifted rungs; what runs next plans again."""
        for model in self.rungs.values():
            if isinstance(model, LiftedModel):
                model.interpreter.rest()

    @property
    def path(self) -> Path:
        """Where the package is."""
        return self.program.path

    @property
    def graph(self) -> Graph:
        """The default function."""
        return self.program.function()[0]

    @property
    def interface(self) -> Interface:
        """Inputs, outputs and states of the default function."""
        return self.program.function()[1]

    @property
    def last(self) -> RungName:
        """Name of the last rung."""
        return list(self.rungs)[-1]


def open_package(program: Program, options: Options) -> OpenPackage:
    """The package of ``program`` on the backend of ``options``, and in the arithmetics of the rungs below it."""
    loading = options.loading
    program, classify = without_labels(program)
    graph, interface = program.function()
    model = open_model(program, loading)
    states = model.states
    is_lifted = isinstance(model, LiftedModel)
    if classify is not None and not is_lifted:
        model = ClassifierModel(model, classify, interface)
    if states:
        model = StatelessLifted(program, options.numerics) if is_lifted else StatelessModel(model)
    # The engine's rules stand where the device would: above the fp16 of the lifted backend, within the tolerance of a device.
    is_device = not is_lifted or options.numerics.startswith("engine")
    has_fp16 = any(value.dtype == "float16" for op in graph.ops for value in op.outputs)
    precision: Precision = "fp16" if has_fp16 else "fp32"
    rungs: dict[RungName, Model] = {}
    if options.numerics != "fp64" or not is_lifted:
        rungs["R3"] = StatelessLifted(program, "fp64")
    if is_device:
        rungs["R4"] = StatelessLifted(program, "fp16")
    rungs["R5" if is_device else "R4"] = model
    return OpenPackage(
        program=program,
        model=model,
        rungs=rungs,
        precision=precision,
        tolerance=options.limits.on(options.tolerance or (FP32 if precision == "fp32" else DEVICE if is_device else LIFTED)),
        output_limits=options.output_limits,
        numerics=options.numerics if is_lifted else "device",
        compute_units=options.compute_units,
        states=states,
        units={} if is_lifted or options.compute_units != "all" else _other_units(program, classify, loading),
    )


def _other_units(program: Program, classify: Op | None, loading: LoadOptions) -> dict[str, Callable[[], Model]]:
    """Functions that open a package in Core ML on all compute units but ``all``."""

    def open_on(unit: ComputeUnits) -> Model:
        model = open_model(program, replace(loading, backend="coreml", compute_units=unit))
        if classify is not None:
            model = ClassifierModel(model, classify, program.function()[1])
        return StatelessModel(model) if model.states else model

    return {unit: partial(open_on, unit) for unit in get_args(ComputeUnits) if unit != "all"}
