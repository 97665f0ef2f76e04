"""What a package is compared with: its torch module, another package, an ONNX file, or outputs that were recorded."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from coreflow.export.package.graph import Graph, read_program
from coreflow.models.errors import BundleError, ConfigError, InputError, UnsupportedError
from coreflow.runtime.lift.onnx.session import import_onnxruntime
from coreflow.validate.gates.tolerance import UNIT_ROUNDOFF
from coreflow.validate.inputs.samples import Arrays, Sample
from coreflow.validate.inputs.states import StatelessLifted

Array = np.ndarray[Any, Any]

_CONTRACTIONS = ("linear", "matmul", "conv", "conv_transpose", "einsum", "scaled_dot_product_attention", "lstm", "gru", "rnn")
_CONTRACTIONS_PER_LAYER = 8  # of a transformer layer: six projections and two products of attention

_ONNX_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class Reference(Protocol):
    """Executes what is right; inputs by name in the package's order, outputs in the package's order."""

    @property
    def label(self) -> str:
        """What it is, in words."""

    @property
    def budget(self) -> str:
        """Whose error the package's is divided by, in words."""

    @property
    def decides(self) -> bool:
        """Whether it tells the margins of hard decisions."""

    def exact(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """R0."""

    def simulated(self, inputs: Mapping[str, Array]) -> tuple[Array, ...] | None:
        """An independent execution in the package's precision; None where there can be none."""

    def single(self, inputs: Mapping[str, Array]) -> tuple[Array, ...] | None:
        """R1; None where there is none."""

    def exact_margins(self, inputs: Mapping[str, Array]) -> Array:
        """Margins of its decisions in float64."""

    def simulated_margins(self, inputs: Mapping[str, Array]) -> Array:
        """And in the package's precision."""


class _Undecided:
    """A reference without hard decisions, or one that does not tell them."""

    decides = False

    def single(self, inputs: Mapping[str, Array]) -> tuple[Array, ...] | None:
        """There is no R1."""
        return None

    def exact_margins(self, inputs: Mapping[str, Array]) -> Array:
        """There are none."""
        raise NotImplementedError

    simulated_margins = exact_margins


class PackageReference(_Undecided):
    """Another package, lifted: float64 arithmetic is what is right, and its own fp16 the budget.

    Not vacuous, since the two are different programs; a package beside itself passes, as it should.
    """

    budget = "the reference package's own fp16"

    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        program = read_program(path)
        self._wide, self._narrow = (StatelessLifted(program, each) for each in ("fp64", "fp16"))
        self._path, self._outputs = path, _same_names(path, list(self._wide.outputs), outputs)
        self.label = f"package {path.name} in float64"

    def exact(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """In float64."""
        return self._predict(self._wide, inputs)

    def simulated(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """In fp16."""
        return self._predict(self._narrow, inputs)

    def _predict(self, model: Any, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        if list(inputs) != list(model.inputs):
            raise ConfigError(f"{self._path.name} takes {', '.join(model.inputs)}; the package takes {', '.join(inputs)}")
        found = model.predict(inputs)
        return tuple(found[name] for name in self._outputs)


class OnnxReference(_Undecided):
    """An ONNX file, run by onnxruntime as it is: in float32 as a rule, so that R0 carries that noise."""

    budget = "heuristic"

    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base of their own
            raise BundleError(f"{path} is no ONNX file that onnxruntime opens: {error}") from error
        self._path, self.label = path, f"ONNX file {path.name} in onnxruntime"
        self._takes = {entry.name: entry.type for entry in self._session.get_inputs()}
        self._outputs = _same_names(path, [entry.name for entry in self._session.get_outputs()], outputs)

    def exact(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """What onnxruntime gives."""
        if set(inputs) != set(self._takes):
            raise ConfigError(f"{self._path.name} takes {', '.join(self._takes)}; the package takes {', '.join(inputs)}")
        unknown = sorted({each for each in self._takes.values() if each not in _ONNX_DTYPES})
        if unknown:
            raise UnsupportedError(f"{self._path.name} takes {', '.join(unknown)}; {', '.join(_ONNX_DTYPES)} can be passed")
        given = {name: np.asarray(array).astype(_ONNX_DTYPES[self._takes[name]]) for name, array in inputs.items()}
        try:
            found = self._session.run(self._outputs, given)
        except Exception as error:  # as above
            raise InputError(f"{self._path.name} does not run on the package's inputs: {error}") from error
        return tuple(np.asarray(each) for each in found)

    def simulated(self, inputs: Mapping[str, Array]) -> None:
        """There is none."""


class GoldenReference(_Undecided):
    """Outputs that were recorded with the samples."""

    label, budget = "recorded outputs", "heuristic"

    def __init__(self, samples: Sequence[Sample], outputs: Sequence[str]) -> None:
        self._outputs = list(outputs)
        self._samples = list(samples)
        for sample in samples:
            missing = [name for name in outputs if name not in (sample.expected or {})]
            if missing:
                raise InputError(f"{sample.label} records no {', '.join(missing)}; an array for every output is needed")

    def exact(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """What was recorded for these inputs."""
        for sample in self._samples:
            if all(np.array_equal(np.asarray(sample.inputs[name]).astype(array.dtype), array) for name, array in inputs.items()):
                expected: Arrays = sample.expected or {}
                return tuple(np.asarray(expected[name]) for name in self._outputs)
        raise InputError("no outputs were recorded for these inputs")

    def simulated(self, inputs: Mapping[str, Array]) -> None:
        """There is none."""


def heuristic_budget(graph: Graph) -> float:
    """Relative RMS error that healthy fp16 has in a network as deep: u * sqrt(0.7 + 0.4 n), n layers.

    Measured on random pre-norm transformers of 1 to 24 layers, d = 256. A layer is counted for every eight contractions.
    """
    contractions = sum(op.type in _CONTRACTIONS for op in graph.walk())
    return UNIT_ROUNDOFF["fp16"] * math.sqrt(0.7 + 0.4 * max(1.0, contractions / _CONTRACTIONS_PER_LAYER))


def _same_names(path: Path, found: list[str], wanted: Sequence[str]) -> list[str]:
    """The outputs in the package's order; no matching by place or likeness."""
    if sorted(found) != sorted(wanted):
        raise ConfigError(
            f"{path.name} gives {', '.join(found)}; the package gives {', '.join(wanted)}, and these names have to be the same"
        )
    return list(wanted)
