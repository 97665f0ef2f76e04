"""The torch module itself as the reference: executed in float64, and in a simulation of the package's precision.

The error of simulated fp16 is the budget of an fp16 package. The simulation (``fp16_rounding``) shares nothing with the lifted programs:
neither their lowerings nor the converter's graph. A program compared with the rounding of its own interpreter could not fail.
"""

import contextlib
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from coreflow.export.capture.calls import arguments, pick
from coreflow.export.capture.casts import CastsTo
from coreflow.export.capture.evaluation import tensors
from coreflow.export.capture.precision import converted_copy, plain_torch, round_to_fp16
from coreflow.models.arrays import Array, Arrays
from coreflow.models.errors import ConfigError, CoreflowError
from coreflow.models.spec import Precision
from coreflow.validate.references.choices import Choice, ChoiceRecorder
from coreflow.validate.references.fp16_rounding import Fp16Rounding


class TorchReference:
    """A torch module, executed in float64 and in the simulated precision of the package. The module itself is left as it was.

    >>> reference = TorchReference(module)
    >>> error = reference.simulated_outputs({"x": x})[0] - reference.outputs({"x": x})[0]

    Inputs and weights are rounded to ``precision``, the package's; fp32's own execution is the budget of an fp32 package. ``names`` are
    those of the outputs, of a module that returns them by name; see ``export.capture.calls``.
    """

    label = "torch in float64"

    def __init__(
        self, module: nn.Module, precision: Precision = "fp16", names: Sequence[str] = (), *, records_choices: bool = False
    ) -> None:
        self.budget = f"torch's own {precision}"
        self._source, self._precision, self._names = module, precision, tuple(names)
        self._records_choices = records_choices
        self.choices: list[Choice] = []  # of the latest call, if they are recorded
        self.has_margins = callable(getattr(module, "decision_margins", None))

    # Copies of the module, each made when it is first needed: what runs one arithmetic only holds one.

    @cached_property
    def _module_fp64(self) -> nn.Module:
        return converted_copy(self._source, Tensor.double)

    @cached_property
    def _simulated(self) -> nn.Module:
        return (
            converted_copy(self._source, lambda tensor: round_to_fp16(tensor.float())) if self._precision == "fp16" else self._module_fp32
        )

    @cached_property
    def _module_fp32(self) -> nn.Module:
        return converted_copy(self._source, Tensor.float)

    def outputs(self, inputs: Arrays) -> tuple[Array, ...]:
        """R0: the outputs in float64."""
        return self._call(self._module_fp64, inputs, torch.float64)

    def simulated_outputs(self, inputs: Arrays) -> tuple[Array, ...]:
        """The outputs of the simulated arithmetic."""
        return self._call(self._simulated, inputs, torch.float32)

    def fp32_outputs(self, inputs: Arrays) -> tuple[Array, ...]:
        """R1: the outputs in float32, nothing rounded further."""
        return self._call(self._module_fp32, inputs, torch.float32, rounds=False)

    def margins(self, inputs: Arrays) -> Array:
        """The module's ``decision_margins`` in float64."""
        return self._call(self._module_fp64, inputs, torch.float64, "decision_margins")[0]

    def simulated_margins(self, inputs: Arrays) -> Array:
        """The module's ``decision_margins`` in the simulated arithmetic."""
        return self._call(self._simulated, inputs, torch.float32, "decision_margins")[0]

    def _call(
        self, module: nn.Module, inputs: Arrays, dtype: torch.dtype, method: str = "__call__", *, rounds: bool = True
    ) -> tuple[Array, ...]:
        # Cloned: a module may write to its inputs, and they are the caller's.
        given = {name: tensor.clone() for name, tensor in tensors(inputs, dtype).items()}
        rounding = Fp16Rounding() if rounds and self._precision == "fp16" and dtype == torch.float32 else contextlib.nullcontext()
        if not isinstance(rounding, contextlib.nullcontext):
            given = {name: round_to_fp16(tensor) if tensor.is_floating_point() else tensor for name, tensor in given.items()}
        ordered, named = arguments(module, given)
        recorder = ChoiceRecorder() if self._records_choices else contextlib.nullcontext()
        with plain_torch(dtype), rounding, recorder, CastsTo(dtype):  # the casts last: what the others do is no part of the module
            try:
                result = getattr(module, method)(*ordered, **named)
            except CoreflowError:
                raise
            except Exception as error:
                shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
                raise ConfigError(f"the reference {type(module).__name__} does not run in {dtype} on {shapes}: {error}") from error
        self.choices = recorder.choices if isinstance(recorder, ChoiceRecorder) else []
        return tuple(tensor.detach().numpy() for tensor in pick(result, self._names if method == "__call__" else ()))
