"""The backend that lets the Core ML framework execute a package; macOS only.

Written against the documented API of coremltools 9.0; its tests are marked ``coreml``.
"""

import logging
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.graph import Program
from coreflow.export.package.mlpackage import package_digest
from coreflow.models.arrays import Array
from coreflow.models.errors import BundleError, InputError, UnsupportedError
from coreflow.models.spec import TensorSpec
from coreflow.models.storage import TemporaryFolder
from coreflow.runtime.backend import DEFAULT, LoadOptions, State
from coreflow.runtime.cache import cache_folder
from coreflow.runtime.interface import check_inputs, check_state, input_specs, output_specs, program_metadata, state_specs

logger = logging.getLogger(__name__)


class CoreMLModel:
    """One function of a package, executed by Core ML on the chosen compute units.

    >>> model = CoreMLModel(read_program("encoder.mlpackage"), LoadOptions(compute_units="cpu_and_ne"))
    >>> model.predict({"ids": ids, "mask": mask})["surface"]
    """

    backend = "coreml"

    def __init__(self, program: Program, options: LoadOptions = DEFAULT, cache_dir: Path | None = None) -> None:
        if platform.system() != "Darwin":
            raise UnsupportedError(
                f"{program.path.name}: backend 'coreml' needs the Core ML framework of macOS and this is {platform.system()}; use 'lifted'"
            )
        graph, self._interface = program.function(options.function_name)
        self.program = program
        self.compute_units = options.compute_units
        self.inputs: dict[str, TensorSpec] = input_specs(program, graph, self._interface)
        self.outputs: dict[str, TensorSpec] = output_specs(program, graph, self._interface)
        self.states: dict[str, TensorSpec] = state_specs(program, self._interface)
        self.metadata: dict[str, Any] = program_metadata(program)
        coremltools = quiet_coremltools()
        # Only a program with several functions may be asked for one by name.
        function = graph.name if len(program.functions) > 1 else None
        compiled, self._temporary = kept_or_temporary(program.path, cache_dir)
        try:
            self._model = coremltools.models.CompiledMLModel(
                str(compiled), compute_units=coremltools.ComputeUnit[self.compute_units.upper()], function_name=function
            )
        except Exception as error:  # the proxy raises RuntimeError, the checks around it plain Exception
            raise UnsupportedError(f"{program.path.name}: Core ML cannot load it on {self.compute_units} ({error})") from error

    def predict(self, inputs: Mapping[str, Any], state: State | None = None) -> dict[str, Any]:
        """The outputs by name, as Core ML gives them: floats as float32, integers as int32."""
        arrays = check_inputs(inputs, self.inputs, self._interface)
        # coremltools turns fp16 arrays into fp32 inside the dictionary it is given: the copies and this dictionary are ours.
        passed = {name: array.astype(np.float32 if array.dtype == np.float16 else array.dtype) for name, array in arrays.items()}
        pictures = [feature.name for feature in self._interface.inputs if feature.kind == "image" and feature.name in inputs]
        passed.update((name, inputs[name]) for name in pictures)  # the framework reads pictures itself
        if state is not None and not isinstance(state, CoreMLState):
            raise InputError(f"{self.program.path.name}: the state belongs to another backend; make it with this model's make_state()")
        if state is None and self.states:
            raise InputError(f"{self.program.path.name}: keeps {', '.join(self.states)}; pass state=model.make_state()")
        try:
            results = self._model.predict(passed) if state is None else self._model.predict(passed, state.handle)
        except RuntimeError as error:
            raise UnsupportedError(f"{self.program.path.name}: Core ML could not predict on {self.compute_units} ({error})") from error
        names = [feature.name for feature in self._interface.outputs]
        return {name: _as_declared(results[name], self.outputs[name]) if name in self.outputs else results[name] for name in names}

    def make_state(self) -> State:
        """A fresh state, all zeros."""
        if not self.states:
            raise UnsupportedError(f"{self.program.path.name}: the program keeps no state")
        return CoreMLState(self._model.make_state(), self.states)


class CoreMLState:
    """The states of one program, held by Core ML.

    >>> state = model.make_state()
    >>> model.predict({"x": x}, state)
    >>> state.read("cache")
    """

    def __init__(self, handle: Any, specs: Mapping[str, TensorSpec]) -> None:
        self.handle = handle
        self._specs = specs

    def read(self, name: str) -> Array:
        """A copy of the state ``name``."""
        spec = self._specs.get(name)
        if spec is None:
            raise InputError(f"no state {name!r}; there are {', '.join(self._specs)}")
        return np.array(self.handle.read_state(name), dtype=spec.dtype)

    def write(self, name: str, value: npt.ArrayLike) -> None:
        """Replaces the state ``name``."""
        self.handle.write_state(name, check_state(name, value, self._specs).astype(np.float32))


def kept_or_temporary(package: Path, cache_dir: Path | None = None) -> tuple[Path, TemporaryFolder | None]:
    """The compiled copy of ``package`` in ``cache_dir``, by default in the cache, where Core ML keeps none when the process ends.

    Where the cache cannot be written it lies in the temporary folder that is returned with it.
    """
    if cache_dir is not None:
        return compiled_copy(package, cache_dir), None
    try:
        return compiled_copy(package, cache_folder() / "compiled"), None
    except (OSError, UnsupportedError) as error:
        logger.info("%s: nothing can be cached: %s", package.name, error)
    temporary = TemporaryFolder()
    return compiled_copy(package, temporary.path), temporary


def compiled_copy(package: Path, cache_dir: Path) -> Path:
    """The compiled form of ``package``, made once for its digest and this version of macOS.

    It is compiled beside its final place and renamed, so that neither two processes at once nor a killed one leave an incomplete copy.
    """
    final = cache_dir / f"{package_digest(package)}-{platform.mac_ver()[0]}.mlmodelc"
    if final.is_dir():
        return final
    coremltools = quiet_coremltools()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(prefix=".compiling-", dir=cache_dir))
    except OSError as error:
        raise UnsupportedError(f"{package.name}: no place for its compiled copy in {cache_dir} ({error.strerror or error})") from error
    try:
        fresh = Path(coremltools.utils.compile_model(str(package), str(workplace / final.name)))
        try:
            fresh.rename(final)
        except OSError:
            if not final.is_dir():  # another process was first: its copy is as good
                raise
    except OSError as error:
        raise UnsupportedError(f"{package.name}: its compiled copy could not be kept in {cache_dir} ({error})") from error
    except Exception as error:  # coremltools raises plain Exception where the framework refused the model
        raise BundleError(f"{package.name}: Core ML cannot compile it ({error})") from error
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return final


def _as_declared(result: Any, spec: TensorSpec) -> Array:
    """Core ML returns a rank-0 output as a number and an fp16 one as float32."""
    return np.array(result, dtype=np.int32 if spec.dtype == "int32" else np.float32)
