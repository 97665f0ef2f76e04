"""The torch module itself as the reference: executed in float64, and in a simulation of the package's precision.

The error of simulated fp16 is the budget of an fp16 package. The simulation (``fp16_rounding``) shares nothing with the lifted programs:
neither their lowerings nor the converter's graph. A program compared with the rounding of its own interpreter could not fail.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from coreflow.export.capture.calls import arguments, pick
from coreflow.export.capture.evaluation import tensors, uncompile
from coreflow.models.arrays import Array, Arrays
from coreflow.models.errors import ConfigError, CoreflowError
from coreflow.models.spec import Precision
from coreflow.validate.references.casts import CastsTo, Float32Epsilon
from coreflow.validate.references.choices import Choice, ChoiceRecorder
from coreflow.validate.references.fp16_rounding import Fp16Rounding, round_to_fp16


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
        self._module_fp64 = converted_copy(module, lambda tensor: tensor.double())
        self._simulated = converted_copy(module, lambda tensor: round_to_fp16(tensor.float()) if precision == "fp16" else tensor.float())
        self._source, self._module_fp32 = module, None if precision == "fp16" else self._simulated
        self._precision = precision
        self._names = tuple(names)
        self._records_choices = records_choices
        self.choices: list[Choice] = []  # of the latest call, if they are recorded
        self.has_margins = callable(getattr(module, "decision_margins", None))

    def outputs(self, inputs: Arrays) -> tuple[Array, ...]:
        """R0: the outputs in float64."""
        return self._call(self._module_fp64, inputs, torch.float64)

    def simulated_outputs(self, inputs: Arrays) -> tuple[Array, ...]:
        """The outputs of the simulated arithmetic."""
        return self._call(self._simulated, inputs, torch.float32)

    def fp32_outputs(self, inputs: Arrays) -> tuple[Array, ...]:
        """R1: the outputs in float32, nothing rounded further."""
        if self._module_fp32 is None:
            self._module_fp32 = converted_copy(self._source, lambda tensor: tensor.float())
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


def converted_copy(module: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy on the CPU in eval mode, with every floating parameter, buffer and plain tensor attribute converted.

    One tensor used twice stays one. Raises ``ConfigError`` when the module cannot be copied.
    """
    try:
        copied = copy.deepcopy(module).cpu().eval()
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"the reference {type(module).__name__} cannot be copied: {error}") from error
    uncompile(copied)
    made: dict[int, Tensor] = {}
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.is_floating_point():
                parameter.data = convert(parameter.data)
        for part in copied.modules():
            for place in (part._buffers, vars(part)):
                for name, value in place.items():
                    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.is_floating_point():
                        place[name] = made.setdefault(id(value), convert(value))
    return copied


@contextlib.contextmanager
def plain_torch(dtype: torch.dtype) -> Iterator[None]:
    """No gradients, no fused fast paths that would hide operations, and new tensors in ``dtype``; all put back afterwards.

    The limits and the epsilon of floats are float32's: in the exported module ``torch.finfo(x.dtype).min`` is a constant of that.
    """
    default, fast, onednn = torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled(), bool(torch.backends.mkldnn.enabled)
    finfo = torch.finfo
    torch.backends.mha.set_fastpath_enabled(False)
    _set_onednn(False)  # it runs a whole LSTM as one operation
    torch.set_default_dtype(dtype)
    torch.finfo = lambda of=None: finfo(torch.float32 if of in (None, torch.float64) else of)  # type: ignore[assignment,misc]
    try:
        # Not inference mode, in which composite operations reach the rounding whole.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Float32Epsilon():
            yield
    finally:
        torch.finfo = finfo  # type: ignore[misc]
        torch.set_default_dtype(default)
        torch.backends.mha.set_fastpath_enabled(fast)
        _set_onednn(onednn)


def _set_onednn(enabled: bool) -> None:
    # Not torch.backends.mkldnn.flags, which also touches an option of Intel GPUs and warns where there is none.
    torch.backends.mkldnn.enabled = enabled  # type: ignore[assignment]
