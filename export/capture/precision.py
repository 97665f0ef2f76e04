"""A module in another precision: a copy of it, and a torch that computes in float64 throughout."""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from coreflow.export.capture.casts import Float32Epsilon
from coreflow.export.capture.evaluation import uncompile
from coreflow.models.errors import ConfigError


def round_to_fp16(values: Tensor) -> Tensor:
    """The nearest fp16 numbers, in the dtype of ``values``; inf beyond 65504."""
    return values.to(torch.float16).to(values.dtype)


def converted_copy(module: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy on the CPU in eval mode, with every floating parameter, buffer and plain tensor attribute converted.

    One tensor used twice stays one. Raises ``ConfigError`` when the module cannot be copied.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about the insides of exported programs
            memo: dict[int, Any] = {  # in place of copies: a copy in fp32 first would be the peak of an export
                id(weight): nn.Parameter(convert(weight.detach().cpu()), requires_grad=weight.requires_grad)
                for weight in module.parameters()
                if weight.is_floating_point() and type(weight) is nn.Parameter
            }
            converted = {id(weight) for weight in memo.values()}
            copied = copy.deepcopy(module, memo).cpu().eval()
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"the reference {type(module).__name__} cannot be copied: {error}") from error
    uncompile(copied)
    made: dict[int, Tensor] = {}
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.is_floating_point() and id(parameter) not in converted:
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
