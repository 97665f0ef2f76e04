"""An ONNX file as the reference, run by onnxruntime."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coreflow.models.arrays import Array, Arrays
from coreflow.models.errors import BundleError, ConfigError, InputError, UnsupportedError
from coreflow.runtime.lift.onnx.session import import_onnxruntime, open_session
from coreflow.validate.references.drawn_errors import DrawnErrors
from coreflow.validate.references.package import check_output_names
from coreflow.validate.references.reference import WithoutMargins

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class OnnxReference(WithoutMargins):
    """An ONNX file, run by onnxruntime as it is: in float32 as a rule, so that R0 carries that noise.

    >>> OnnxReference(Path("encoder.onnx"), ["surface"]).outputs({"ids": ids, "mask": mask})
    """

    budget = DrawnErrors.label

    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        import_onnxruntime()  # that it is missing is another error than a file that it does not open
        try:
            self._session = open_session(path, threads=0)
        except UnsupportedError as error:
            raise BundleError(f"{path} is no ONNX file that onnxruntime opens: {error.__cause__}") from error
        self._path, self.label = path, f"ONNX file {path.name} in onnxruntime"
        self._input_types = {entry.name: entry.type for entry in self._session.get_inputs()}
        self._outputs = check_output_names(path, [entry.name for entry in self._session.get_outputs()], outputs)

    def outputs(self, inputs: Arrays) -> tuple[Array, ...]:
        """Outputs of onnxruntime."""
        types = self._input_types
        if set(inputs) != set(types):
            raise ConfigError(f"{self._path.name} takes {', '.join(types)}; the package takes {', '.join(inputs)}")
        unknown = sorted({type_ for type_ in types.values() if type_ not in _DTYPES})
        if unknown:
            raise UnsupportedError(f"{self._path.name} takes {', '.join(unknown)}; {', '.join(_DTYPES)} can be passed")
        feeds = {name: np.asarray(array).astype(_DTYPES[types[name]]) for name, array in inputs.items()}
        try:
            outputs = self._session.run(self._outputs, feeds)
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise InputError(f"{self._path.name} does not run on the package's inputs: {error}") from error
        return tuple(np.asarray(output) for output in outputs)

    def simulated_outputs(self, inputs: Arrays) -> None:
        """None: onnxruntime has no simulation of fp16."""
