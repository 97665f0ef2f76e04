"""The device that checks ask: Core ML on this Mac, or the lifted backend in the place of it, to try the command elsewhere."""

import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from coreflow.export.package.mlpackage import read_program
from coreflow.models.errors import ConfigError
from coreflow.runtime.backend import ComputeUnits, EngineNumericsName, LoadOptions, Model, NumericsName
from coreflow.runtime.load import open_model


@dataclass(frozen=True, slots=True)
class Device:
    """What executes the packages of a check; ``simulated`` names numerics of the lifted backend that stand for the Neural Engine.

    >>> Device(simulated="engine-m4").open(package).predict({"x": x})
    """

    simulated: str = ""

    def __post_init__(self) -> None:
        if self.simulated and self.simulated not in get_args(EngineNumericsName):
            raise ConfigError(f"no numerics {self.simulated!r} to simulate with; {', '.join(get_args(EngineNumericsName))} are right")

    @property
    def has_core_ml(self) -> bool:
        """Whether Core ML executes."""
        return not self.simulated and platform.system() == "Darwin"

    @property
    def no_core_ml(self) -> str:
        """Why Core ML does not execute; empty where it does."""
        if self.simulated:
            return f"it needs Core ML, and the device is simulated by {self.simulated}"
        return "" if self.has_core_ml else f"it needs the Core ML framework of macOS, and this is {platform.system()}"

    def open(self, package: Path, units: ComputeUnits = "cpu_and_ne") -> Model:
        """The package on compute units of this device; simulated, it computes its first output alone."""
        if self.simulated:
            return simulate(package, _numerics(self.simulated))
        return open_model(read_program(package), LoadOptions(backend="coreml", compute_units=units))


def simulate(package: Path, numerics: NumericsName) -> Model:
    """What gives the first output of a package on any machine; what serves others alone is left out."""
    program = read_program(package)
    graph, interface = program.function()
    needed, ops = {id(graph.outputs[0])}, []
    for op in reversed(graph.ops):
        if any(id(value) in needed for value in op.outputs):
            needed |= {id(value) for value in op.reads()}
            ops.append(op)
    kept = replace(graph, outputs=graph.outputs[:1], ops=tuple(reversed(ops)))
    outputs = tuple(feature for feature in interface.outputs if feature.name == graph.outputs[0].name)
    program = replace(program.with_function(kept), interfaces={graph.name: replace(interface, outputs=outputs)})
    return open_model(program, LoadOptions(backend="lifted", numerics=numerics, engine="interpreter"))


def _numerics(name: str) -> NumericsName:
    return next(known for known in get_args(EngineNumericsName) if known == name)


def numerics_of(chip: str) -> NumericsName:
    """The published numerics of a chip by its name, as ``Apple M4 Pro``; those of an M4 where nothing is published of it."""
    word = next((word.lower() for word in chip.split() if word[:1] in "Mm" and word[1:].isdigit()), "m4")
    return next((name for name in get_args(EngineNumericsName) if name == f"engine-{word}"), "engine-m4")
