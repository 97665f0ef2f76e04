"""Records the inputs of one op while a sample runs: those of the small package that ``export.cut`` makes of that op."""

from pathlib import Path
from typing import Any

import numpy as np

from coreflow.export.package.cut_plan import Port, plan_cut
from coreflow.export.package.graph import Op
from coreflow.export.package.mlpackage import read_program
from coreflow.models.arrays import Array
from coreflow.models.errors import InputError
from coreflow.runtime.backend import LoadOptions, NumericsName
from coreflow.runtime.interface import check_inputs
from coreflow.runtime.lifted import LiftedModel
from coreflow.validate.inputs.samples import Sample


def record_inputs(
    package: str | Path, op_name: str, sample: Sample, numerics: NumericsName = "fp16", *, radius: int = 0, function_name: str | None = None
) -> dict[str, Array]:
    """Inputs of ``cut(package, op_name, ..., radius)``, by name and in its dtypes, recorded while ``sample`` is executed.

    Under numerics ``fp16`` every value is an fp16 number, and the cut reproduces the results of the op to the last bit; under other
    numerics the values are rounded where they enter. A state is the sample's, else that of a first prediction. ``InputError`` when NaN or
    inf enters, which no model takes: an earlier op is to blame, which a larger radius includes.
    """
    program = read_program(package)
    plan = plan_cut(program, op_name, radius, function_name)
    model = LiftedModel(program, LoadOptions(numerics=numerics, engine="interpreter", function_name=function_name))
    graph, interface = program.function(function_name)
    inputs = {name: array for name, array in sample.inputs.items() if name not in model.states}
    checked = check_inputs(inputs, model.inputs, interface)
    defaults = {
        feature.name: np.full(feature.shape, feature.default or 0.0, model.inputs[feature.name].dtype) for feature in interface.inputs
    }
    recorded: dict[int, Array] = {id(value): {**defaults, **checked}[value.name] for value in graph.inputs if value.kind != "state"}
    recorded_ids = {id(port.value) for port in plan.inputs}

    def record(op: Op, results: tuple[Any, ...]) -> None:
        for value, result in zip(op.outputs, results, strict=True):
            if id(value) in recorded_ids:
                recorded[id(value)] = result.cpu().numpy().copy()

    state = model.make_state() if model.states else None
    if state is not None:
        for name in model.states.keys() & sample.inputs.keys():
            state.write(name, sample.inputs[name])
    model.predict(inputs, state, observe=record)
    return {port.name: _as_input(port, recorded[id(port.value)], f"{plan.op.type} {plan.op.name!r}") for port in plan.inputs}


def _as_input(port: Port, values: Array, user: str) -> Array:
    with np.errstate(over="ignore"):  # of the check below
        array = values.astype(port.dtype).reshape(values.shape or (1,))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{user} reads {port.value.name!r}, which holds NaN or inf; cut with a larger radius, so that it is made inside")
    return array
